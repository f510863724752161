"""Pictures in Parquet files, as Hugging Face writes data sets: bytes of a picture and a label in each row."""

import json
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from kdrun.config import rules
from kdrun.data.listing import SPLIT_NAMES, Column, Listing, column, of_texts, stamp_of
from kdrun.data.source import existing
from kdrun.data.store import Keys, StoredSource
from kdrun.errors import InputError
from kdrun.registry import register


@register("data", "parquet")
def parquet(*, path: rules.Path, image_column: Column, label_column: Column, **keys: Unpack[Keys]) -> StoredSource:
    """Parquet files of pictures and labels, by split; decoded once, and kept in `store`."""
    found = existing(path, "a .parquet file, or a folder of them named train-*.parquet, test-*.parquet")
    return StoredSource(listed(found, image_column, label_column), **keys)


def listed(path: Path, image_column: str | None = None, label_column: str | None = None) -> Listing:
    """The pictures in a Parquet file, or in those of a folder, whose names begin with their split.

    Raises InputError.
    """
    try:
        import pyarrow
        from pyarrow import parquet as pq
    except ImportError as error:
        raise InputError("data=parquet needs pyarrow, which is not installed: pip install 'kdrun[parquet]'") from error
    parts = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not parts:
        raise InputError(f"data.path: {path} holds no .parquet files.")
    rows: list[tuple[int, int]] = []
    said: list[Any] = []
    names: list[str] | None = None
    splits: list[str] = []
    try:
        for number, part in enumerate(parts):
            schema = pq.read_schema(part)
            image = column(part, schema.names, image_column, "image_column")
            label = column(part, schema.names, label_column, "label_column")
            labels = pq.read_table(part, columns=[label]).column(label).to_pylist()
            rows += [(number, row) for row in range(len(labels))]
            said += labels
            splits += [_split(part)] * len(labels)
            names = _class_names(schema, label) or names
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"data.path: {part} cannot be read ({' '.join(str(error).split())}).") from error
    if not rows or any(each is None for each in said):
        raise InputError(f"data.path: {path}: {label} is empty in some rows, or there are none. Each needs a label.")
    if names is not None and all(isinstance(each, int) for each in said):  # numbers of these; some may be in no row
        labels, class_names = np.array(said), tuple(names)
        if labels.min() < 0 or labels.max() >= len(names):
            raise InputError(
                f"data.path: {path}: its labels are from {labels.min()} to {labels.max()}, and it names {len(names)} "
                "classes. It is damaged."
            )
    else:
        labels, class_names = of_texts(path, [str(each) for each in said])
    return Listing(
        path=path,
        names=[f"{parts[number].name}, row {row}" for number, row in rows],
        labels=labels.astype(np.int32),
        splits=splits,
        class_names=class_names,
        read=partial(_content, parts, image, rows),
        stamp={"files": stamp_of(parts), "paths": [str(part.absolute()) for part in parts], "image": image},
    )


def _split(part: Path) -> str:
    word = part.name.replace("_", "-").split("-")[0].split(".")[0].lower()
    return SPLIT_NAMES.get(word, "train")


def _class_names(schema: Any, label: str) -> list[str] | None:
    """The classes' names, where Hugging Face's own description of the columns has them."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in described] if isinstance(described, list) else None


@lru_cache(maxsize=1)
def _pictures(part: Path, image: str) -> Any:
    import pyarrow
    from pyarrow import parquet as pq

    try:
        return pq.read_table(part, columns=[image], memory_map=True).column(image)
    except (pyarrow.ArrowException, ValueError) as error:
        raise OSError(" ".join(str(error).split())) from error


def _content(parts: list[Path], image: str, rows: list[tuple[int, int]], place: int) -> bytes:
    number, row = rows[place]
    value = _pictures(parts[number], image)[row].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else b""
