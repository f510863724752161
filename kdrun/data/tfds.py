"""Pictures of a data set that TensorFlow Datasets (TFDS) has prepared; downloaded only where that is asked for.

TFDS reads records by TensorFlow, which a data source must not load: a process of its own does it, once, and writes the
pictures' bytes, still encoded, into a sealed folder beside those of decoded pictures.
"""

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from functools import partial
from importlib import util
from pathlib import Path
from typing import Annotated, Any, Unpack

import numpy as np
from filelock import FileLock

from kdrun.config import rules
from kdrun.data.listing import SPLIT_NAMES, Column, Listing, column, of_texts, stamp_of
from kdrun.data.store import Keys, StoredSource
from kdrun.errors import InputError, KdrunError
from kdrun.registry import place_and_text, register
from kdrun.runtime import child, locks, signals
from kdrun.runtime.child import Child, Lost
from kdrun.storage import arrays, files, manifest

log = logging.getLogger(__name__)

_FORMAT = 1  # raise when a folder would be written otherwise
_NAME = re.compile(r"(\w+(?:/[\w.+=-]+)?)(?::(\d+\.\d+\.\d+))?", re.ASCII)
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}  # GPUs are for those who train
_NOISE = re.compile(r"\{\{.*?\}\} | \[Op:.*")  # where in a graph TensorFlow had an error
_MOST = 400  # characters of what TFDS says: of a name that there is not it lists a thousand others


@register("data", "tfds")
def tfds(
    *,
    path: rules.Path,
    dataset: Annotated[str, rules.text],
    download: bool,
    image_column: Column,
    label_column: Column,
    **keys: Unpack[Keys],
) -> StoredSource:
    """A data set in the folder `path` of TFDS; its pictures are decoded once, and kept in `store`."""
    if util.find_spec("tensorflow_datasets") is None:
        raise InputError("data=tfds needs tensorflow-datasets, which is not installed: pip install 'kdrun[tfds]'")
    folder = _prepared(Path(path), dataset)
    if folder is None and download:
        log.info("data: TFDS downloads and prepares %s in %s", dataset, path)
        _answer(Path(path), shows=True, download=dataset, path=path)
        folder = _prepared(Path(path), dataset)
    if folder is None:
        raise InputError(
            f"data.path: {path} holds no {dataset}, prepared by TFDS. Give the folder that does, TFDS' data_dir, or "
            "have it downloaded: data.download=true."
        )
    return StoredSource(listed(folder, Path(keys["store"]), image_column, label_column), **keys)


def _prepared(path: Path, dataset: str) -> Path | None:
    """The folder of a data set's version, where it is there. Raises InputError where there are several."""
    if not (named := _NAME.fullmatch(dataset)):
        raise InputError(f"data.dataset must be NAME or NAME/CONFIG, and may have :VERSION, as 1.0.0, got {dataset!a}.")
    found = sorted(each.parent for each in (path / named[1]).glob(f"**/{named[2] or '*'}/dataset_info.json"))
    found = [each for each in found if not each.name.startswith("incomplete.")]  # being written, or left so
    if len(found) > 1:
        names = ", ".join(f"{each.parent.relative_to(path)}:{each.name}" for each in found)
        raise InputError(f"data.dataset={dataset}: {path} holds {names}. Give one of them.")
    return found[0] if found else None


def listed(folder: Path, store: Path, image_column: str | None, label_column: str | None) -> Listing:
    """The pictures of a data set's version, a folder of TFDS; read into `store`, where that was not done before.

    Two processes read once. Raises InputError for what is damaged, has no such columns, or no labelled pictures in
    train, validation or test; KdrunError where `store` cannot be written or is full.
    """
    paths = sorted(each for each in folder.iterdir() if each.is_file())
    stamp = {"tfds": _FORMAT, "names": [each.name for each in paths], "files": stamp_of(paths)}
    stamp |= {"image": image_column, "label": label_column}
    entry = store / f"tfds-{manifest.digest(stamp)[:32]}"
    try:
        store.mkdir(parents=True, exist_ok=True)
        waiting = f"data: another kdrun is reading {folder}; waiting for it"
        with signals.on_signals(), locks.held(FileLock(entry.with_suffix(".lock")), waiting):
            if (facts := _opened(entry)) is None:
                log.info("data: reading %s into %s", folder, entry)
                new = entry.with_suffix(".partial")
                shutil.rmtree(new, ignore_errors=True)  # of a kdrun that was killed
                with manifest.made(entry, new) as facts:
                    facts |= _answer(store, read=str(folder), into=str(new), image=image_column, label=label_column)
        ends, labels = arrays.mapped(entry / "ends.npy"), arrays.mapped(entry / "labels.npy")
        pictures = np.memmap(entry / "pictures", np.uint8, "r")
    except OSError as error:
        raise files.no_room(error, store) or KdrunError(
            f"{store} cannot keep what TFDS has read ({error.strerror}). Set data.store to another folder."
        ) from error
    return Listing(
        path=folder,
        names=[f"{split}, record {number}" for split, count in facts["splits"] for number in range(count)],
        labels=np.array(labels),
        splits=[SPLIT_NAMES[split.lower()] for split, count in facts["splits"] for _ in range(count)],
        class_names=tuple(facts["class_names"]),
        read=partial(_content, pictures, ends),
        stamp=stamp,
        left_out=facts["left_out"],
    )


def _content(pictures: np.ndarray, ends: np.ndarray, place: int) -> bytes:
    return pictures[ends[place] : ends[place + 1]].tobytes()


def _opened(entry: Path) -> dict | None:
    """What was sealed with an entry, every byte of it checked, or None; a damaged one is set aside."""
    try:
        return manifest.opened(entry) if entry.exists() else None
    except manifest.Damaged as error:
        log.warning("data: %s is damaged (%s). Set aside as %s", entry, error, manifest.set_aside(entry))
        return None


def _answer(written: Path, shows: bool = False, **told: str | None) -> dict:
    """What `main` answers in a process of its own; `shows`: its bars go to the terminal. Raises InputError for what it
    could not do, NoRoom where it has `written` and the disk is full."""
    with Child("kdrun.data.tfds", _ENVIRONMENT, shows) as process:
        try:
            return process.ask(told)[0]
        except Lost as error:
            what = told.get("read") or told["download"]
            raise InputError(f"data=tfds: the process of TFDS for {what} {error}.") from error
        except InputError as error:
            raise files.no_room(error, written) or error from error


def main() -> None:
    """In the other process: download or read, as it is told."""
    child.serve(_done)


def _done(told: Mapping[str, Any], payload: bytes) -> tuple[dict, bytes]:
    try:
        return (_download(**told) if "download" in told else _read(**told)), payload
    except InputError:
        raise
    except Exception as error:
        said = _NOISE.sub("", place_and_text(error, Path(__file__))[1])
        said = said if len(said) <= _MOST else f"{said[:_MOST]}..."
        what = told.get("read") or told["download"]
        raise InputError(f"data=tfds: {what} cannot be used ({said}).") from error


def _download(download: str, path: str) -> dict:
    import tensorflow_datasets as library

    library.builder(download, data_dir=path).download_and_prepare()
    return {}


def _read(read: str, into: str, image: str | None, label: str | None) -> dict:
    """Write pictures, one after the other, where each ends, and labels; returns the splits, with how many are of each,
    the classes' names, and what is left out."""
    json.loads(files.read(Path(read, "features.json")), object_hook=_of_tfds)
    import tensorflow_datasets as library

    builder = library.builder_from_directory(read)
    features = builder.info.features
    image = column(Path(read), sorted(features), image, "image_column")
    label = column(Path(read), sorted(features), label, "label_column")
    if not isinstance(features[image], library.features.Image) or features[image].np_dtype not in (np.uint8, np.uint16):
        raise InputError(f"data.image_column={image}: {read} has {features[image]!r} there, which is no picture.")
    decode, names = library.decode, getattr(features[label], "names", None) or ()
    two = decode.PartialDecoding({key: features[key] for key in (image, label)}, {image: decode.SkipDecoding()})
    in_order = library.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    said: Any = []
    ends, splits, left_out = [0], [], Counter[str]()
    with Path(into, "pictures").open("wb") as file:
        for split, info in builder.info.splits.items():
            if split.lower() not in SPLIT_NAMES:
                left_out[f"in the split {split}"] = info.num_examples
                continue
            before = len(said)
            for row in library.as_numpy(builder.as_dataset(split, decoders=two, read_config=in_order)):
                if names and row[label] == -1:  # as TFDS marks what has none
                    left_out["without a label"] += 1
                    continue
                ends.append(ends[-1] + file.write(row[image]))
                said.append(row[label])
            splits.append([split, len(said) - before])
    if not said:
        raise InputError(f"{read} holds no labelled pictures in train, validation or test.")
    if not names:
        said, names = of_texts(Path(read), [each.decode() if isinstance(each, bytes) else str(each) for each in said])
    np.save(Path(into, "ends.npy"), np.array(ends, np.int64))
    np.save(Path(into, "labels.npy"), np.array(said, np.int32))
    return {"splits": splits, "class_names": list(names), "left_out": left_out}


def _of_tfds(described: dict) -> dict:
    """Raises InputError where a feature is of a class that is not TFDS' own: TFDS would import its module, whatever
    that is."""
    for key in ("pythonClassName", "python_class_name", "type"):
        if not str(described.get(key, "tensorflow_datasets.")).startswith("tensorflow_datasets."):
            raise InputError(f"features.json names {described[key]}, which is no feature of TFDS' own.")
    return described
