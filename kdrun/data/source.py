"""Data sources: four arrays, known by a sha256. A name and its keys become one; see kdrun.registry.

A source of your own is a function of its keys, registered with `@register("data", NAME)`, that returns an object with
what `Source` has; `Arrays` is one of arrays in memory.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from kdrun.errors import InputError
from kdrun.registry import register

NAMES = ("x_train", "y_train", "x_test", "y_test")


class Source(Protocol):
    """Images, uint8 [n, height, width] or [n, height, width, 1 or 3], and labels, integers [n], under NAMES.

    A source may have more: `names`, where it has not all of NAMES, or x_validation and y_validation, too;
    `class_names`; `left_out`, counts by reason; `digests(split)`, the sha256 of each image, uint8 [n, 32];
    `picture_names(split)`. Its arrays may be kdrun.data.rows.Rows of an array on disk.
    """

    path: object  # what errors call it
    num_classes: int | None  # None: the largest label plus one
    sha256: str  # of all that it holds

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one of NAMES, without reading it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One of NAMES. Raises InputError where it cannot be read."""
        ...


class Arrays:
    """A source of arrays in memory, by NAMES; `path` is what errors call it."""

    def __init__(self, arrays: Mapping[str, np.ndarray], num_classes: int | None = None, path: object = "the data"):
        missing = [name for name in NAMES if name not in arrays]
        if missing:
            raise InputError(f"{path}: {', '.join(missing)} is not there. A source has {', '.join(NAMES)}.")
        self.path, self.num_classes = path, num_classes
        self._arrays = {name: np.asarray(arrays[name]) for name in NAMES}
        digest = hashlib.sha256()
        for name, array in self._arrays.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        self.sha256 = digest.hexdigest()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name].copy()


@register("data", "of_run")
def of_run() -> Source:
    """The data of the run that a stage takes: nothing to be opened."""
    raise InputError("data=of_run is for stage=evaluate and stage=adjust_bias. Give data, data=mnist or others.")


def existing(path: str | None, what: str) -> Path:
    """The value of data.path. Raises InputError where it is not there; `what` is what it should be."""
    if path is None or not Path(path).exists():
        raise InputError(f"data.path: {path} does not exist. Set data.path to {what}.")
    return Path(path)
