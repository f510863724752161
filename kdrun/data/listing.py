"""A list of pictures with labels, as a folder, a table or a file of many has them; before any is decoded."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from kdrun.config import rules
from kdrun.errors import InputError
from kdrun.storage import files

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {  # what people call them
    **{"train": "train", "training": "train"},
    **{name: "validation" for name in ("validation", "val", "valid", "dev")},
    **{"test": "test", "testing": "test"},
}
_USUAL = {"image_column": ("image", "img", "picture"), "label_column": ("label", "labels", "fine_label", "class")}
_SHOWN = 3
LARGEST = 1 << 30  # bytes of a picture's file
Column = Annotated[str | None, rules.optional(rules.text)]


@dataclass(frozen=True)
class Listing:
    """Pictures in an order: what they are called, where they belong, and how one's bytes are read, which raises OSError
    where they cannot be.

    `names` are for people, and part of nothing; `labels` are int32 [n] and `splits` of SPLITS, one a picture. `stamp`
    is plain values that change when a file does (its size and time), so that what was decoded before is found
    quickly; `left_out` counts what was passed over, by reason.
    """

    path: Path
    names: Sequence[str]
    labels: np.ndarray
    splits: Sequence[str]
    class_names: tuple[str, ...]
    read: Callable[[int], bytes]
    stamp: Mapping[str, Any]
    left_out: Mapping[str, int] = field(default_factory=dict)


def of_files(path: Path, names: Sequence[str], files_: Sequence[str], **described: Any) -> Listing:
    """A listing of a file for each picture; `described` are the other fields."""
    stamp = {"path": str(path.absolute()), "names": list(names), "files": stamp_of(files_)}
    return Listing(path=path, names=names, read=partial(_content, files_), stamp=stamp, **described)


def _content(paths: Sequence[str], place: int) -> bytes:
    return files.read(paths[place], LARGEST)


def stamp_of(paths: Sequence[Path | str]) -> list[list[int]]:
    """Size and time of each file. Raises InputError for one that is not there."""
    found = []
    for path in paths:
        try:
            one = os.stat(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
        found.append([one.st_size, one.st_mtime_ns])
    return found


def some(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(map(str, names[:_SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def class_order(names: set[str]) -> tuple[str, ...]:
    """Names of classes in the order of their labels: as numbers where all are, else as text."""
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numbers else (0, name)))


def of_texts(path: Path, texts: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int32 [n] for what is said of each picture, and the classes' names. Raises InputError where these look
    like names of pictures."""
    names = class_order(set(texts))
    if len(names) > max(100, len(texts) // 2):
        raise InputError(
            f"{path}: its labels are {len(names):,} different ones for {len(texts):,} pictures, {some(names)}: ids "
            "rather than classes. Name the column of the classes."
        )
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[text] for text in texts], np.int32), names


def column(path: Path, held: Sequence[str], asked: str | None, key: str) -> str:
    """The column that `key` of data names, else one that is usually called so. Raises InputError where it is not
    there."""
    found = asked if asked in held else next((name for name in _USUAL[key] if name in held and asked is None), None)
    if found is None:
        raise InputError(f"data.path: {path} has the columns {', '.join(held)}. Say which with data.{key}=NAME.")
    return found


def split_of(path: Path, given: str, where: str) -> str:
    """The split that a word means. Raises InputError for another word, which stands `where`."""
    if given.lower() not in SPLIT_NAMES:
        raise InputError(f"{path}: {where}: {given!a} is no split. Write train, validation or test.")
    return SPLIT_NAMES[given.lower()]
