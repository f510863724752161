"""Pictures in folders: a folder for each class, below one for each split or without."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

import numpy as np

from kdrun.config import rules
from kdrun.data.listing import SPLIT_NAMES, Listing, class_order, of_files
from kdrun.data.pictures import SUFFIXES
from kdrun.data.source import existing
from kdrun.data.store import Keys, StoredSource
from kdrun.errors import InputError
from kdrun.registry import register

_LAYOUT = "It must be of folders: DIR/CLASS/*.jpg, or DIR/train/CLASS/*.jpg with DIR/val and DIR/test beside it or not"
Found = tuple[str, str, str]  # split, class, path below the folder


@register("data", "folder")
def folder(*, path: rules.Path, **keys: Unpack[Keys]) -> StoredSource:
    """A folder of pictures in folders, one for each class; decoded once, and kept in `store`."""
    root = existing(path, "a folder of pictures, with a folder for each class")
    return StoredSource(listed(root), **keys)


def listed(root: Path) -> Listing:
    """The pictures below a folder. Nested folders belong to the class that they are in. Raises InputError."""
    if not root.is_dir():
        raise InputError(f"data.path: {root} is a file. {_LAYOUT}. Of a file: data=npz, data=table, data=parquet.")
    left_out: Counter[str] = Counter()
    found = sorted(_in_splits(root, left_out))
    if not found:
        kinds = ", ".join(suffix.lstrip(".") for suffix in SUFFIXES)
        raise InputError(f"data.path: {root} holds no pictures ({kinds}) in folders of classes. {_LAYOUT}.")
    class_names = class_order({each[1] for each in found})
    places = {name: place for place, name in enumerate(class_names)}
    names = [each[2] for each in found]
    return of_files(
        *(root, names, [os.path.join(root, name) for name in names]),
        labels=np.array([places[each[1]] for each in found], np.int32),
        splits=[each[0] for each in found],
        class_names=class_names,
        left_out=left_out,
    )


def _in_splits(root: Path, left_out: Counter) -> Iterator[Found]:
    tops = _folders(root, left_out)
    splits = {name: SPLIT_NAMES[name.lower()] for name in tops if name.lower() in SPLIT_NAMES}
    if "train" not in splits.values():
        yield from _in_classes(root, tops, "", "train", left_out)
        return
    if twice := [split for split, count in Counter(splits.values()).items() if count > 1]:
        names = ", ".join(name for name, split in splits.items() if split == twice[0])
        raise InputError(f"data.path: {root} holds {names}, which mean the same split. Leave one.")
    for name in tops:
        if name in splits:
            yield from _in_classes(root / name, _folders(root / name, left_out), name, splits[name], left_out)
        else:
            left_out["folders beside train"] += 1


def _in_classes(top: Path, classes: list[str], below: str, split: str, left_out: Counter) -> Iterator[Found]:
    for name in classes:
        pictures = list(pictures_below(top / name, left_out))
        left_out["classes without pictures"] += not pictures
        for picture in pictures:
            yield split, name, os.path.join(below, name, picture)


def _folders(top: Path, left_out: Counter) -> list[str]:
    """The names of the folders in a folder; what else is in it belongs to no class."""
    found = []
    try:
        with os.scandir(top) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    left_out["hidden"] += 1
                elif entry.is_dir():
                    found.append(entry.name)
                else:
                    left_out["in no class's folder"] += 1
    except OSError as error:
        raise InputError(f"data.path: {top} cannot be listed ({error.strerror}).") from error
    return sorted(found)


def pictures_below(top: Path, left_out: Counter) -> Iterator[str]:
    """The pictures anywhere below a folder, as paths from it. A folder is entered once, whatever links to it."""
    entered = {_place(top)}
    for folder, folders, names in os.walk(top, followlinks=True):
        left_out["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
        inside = [name for name in sorted(folders) if not name.startswith(".")]
        places = {name: _place(os.path.join(folder, name)) for name in inside}
        folders[:] = [name for name in inside if places[name] is not None and places[name] not in entered]
        entered |= set(places.values())
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(SUFFIXES):
                yield os.path.relpath(os.path.join(folder, name), top)
            else:
                left_out["not pictures by name"] += 1


def _place(folder: str | Path) -> tuple[int, int] | None:
    """What tells a folder from all others, however it is reached."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino
