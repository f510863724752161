"""Rows of an array on disk, chosen and ordered by place, read when they are asked for."""

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

_CAN_ADVISE = hasattr(mmap, "MADV_RANDOM")  # not on every system


class Rows:
    """Like array[places], of an array that may be larger than memory: nothing is read until rows are asked for.

    `array` is [n, ...], mostly a memory map; `places`, int64 [m], are which of its rows, in which order.
    """

    def __init__(self, array: "np.ndarray | Parts", places: np.ndarray):
        self.array, self.places = array, places
        self.shape: tuple[Any, ...] = (len(places), *array.shape[1:])
        self.dtype, self.ndim, self.nbytes = array.dtype, array.ndim, len(places) * array[:1].nbytes

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: Any) -> np.ndarray:
        """The rows of a slice, or at some places: copies, in memory."""
        first, *others = key if isinstance(key, tuple) else (key,)
        places = self.places[first]
        _announce(self.array, places)
        found = self.array[places]
        return found[(slice(None), *others)] if others else np.asarray(found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    @staticmethod
    def joined(parts: Sequence["Rows"]) -> "Rows":
        """Rows of one array, one part after the other."""
        return Rows(parts[0].array, np.concatenate([part.places for part in parts]))

    def chosen(self, places: np.ndarray | slice) -> "Rows":
        """Some of these rows, nothing read."""
        return Rows(self.array, self.places[places])


def _announce(array: "np.ndarray | Parts", places: np.ndarray) -> None:
    """Have the system read just these rows of a memory map. Left to itself it reads around each, by megabytes, which is
    many times too much where the rows are drawn and the map is larger than memory."""
    held = array.base if isinstance(array, np.memmap) else None
    if not isinstance(held, mmap.mmap) or not _CAN_ADVISE:
        return
    held.madvise(mmap.MADV_RANDOM)
    length = array[:1].nbytes
    for place in np.ravel(places).tolist():
        start = array.offset + place * length
        before = start % mmap.PAGESIZE
        held.madvise(mmap.MADV_WILLNEED, start - before, length + before)


class Parts:
    """Like np.concatenate(parts), of arrays [n, ...] of which some may be on disk, and read when they are asked for."""

    def __init__(self, parts: Sequence[np.ndarray | Rows]):
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])
        self.shape: tuple[Any, ...] = (int(self._ends[-1]), *parts[0].shape[1:])
        self.dtype: np.dtype = parts[0].dtype
        self.ndim: int = parts[0].ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """The rows of a slice, or at some places."""
        places = key if isinstance(key, np.ndarray) else np.arange(len(self))[key]
        which = np.searchsorted(self._ends, places, side="right")
        found = np.empty((*places.shape, *self.shape[1:]), self.dtype)
        for number, part in enumerate(self._parts):
            here = which == number
            found[here] = part[places[here] - (self._ends[number] - len(part))]
        return found


Images = np.ndarray | Rows


def pixels(images: Images, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some pixels of each image, uint8 [n, k, channels], at `rows` and `columns`, int [k]."""
    if isinstance(images, Rows) and isinstance(images.array, np.ndarray):  # no more than these is copied
        _announce(images.array, images.places)
        return images.array[images.places[:, np.newaxis], rows, columns]
    return images[:, rows, columns]


def in_file(images: Images) -> np.ndarray:
    """An order of images, int64 [n], in which those on disk are read one after the other."""
    return np.argsort(images.places, kind="stable") if isinstance(images, Rows) else np.arange(len(images))


def chosen(images: Images, places: np.ndarray | slice) -> Images:
    """Some images, nothing read where they are on disk."""
    return images.chosen(places) if isinstance(images, Rows) else images[places]
