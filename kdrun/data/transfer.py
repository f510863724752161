"""A transfer set: images without labels, of which a teacher alone says what is on them (arXiv 1503.02531, section 2).

They are learned from beside the labelled training images, and stand behind them.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdrun.data import datasets, folder, splits, store
from kdrun.data.datasets import Dataset, Split
from kdrun.data.listing import Listing, of_files
from kdrun.data.rows import Images, Parts, Rows
from kdrun.errors import InputError
from kdrun.storage import arrays

UNLABELLED = -1  # the label of an image that has none
_NAMES = ("images", "x_transfer", "x_train")  # of the array in a .npz file; another name, where it is the only one
_ADVICE = "It must hold one array of images, uint8, or more of which one is called images."


class Transfer(NamedTuple):
    """Images, uint8 [n, height, width, channels], the sha256 of each one's pixels, uint8 [n, 32], and of them all."""

    images: Images
    digests: np.ndarray
    sha256: str


def load(data: Mapping) -> Transfer | None:
    """The configured transfer set, its images as large as those of the configured dataset, of as many channels; None
    where there is none. Raises InputError where it cannot be used, KdrunError where its pictures cannot be kept."""
    if not data.get("transfer"):
        return None
    shape = datasets.whole(data).training.images.shape[1:]
    decoding = data.get("resize", "stretch"), data.get("skip_broken", False)
    return _load(data["transfer"], data["transfer_store"], shape, *decoding)


def fingerprints(data: Mapping) -> tuple[str, str | None]:
    """What identifies the images that a student learns from: those of the configured dataset and transfer set."""
    found = load(data)
    return datasets.fingerprint(data), found and found.sha256


def images_per_epoch(dataset: Dataset, transfer: Transfer | None) -> int | None:
    """How many images an epoch of a student takes where there is a transfer set, whether it learns from it or not; None
    where there is none."""
    return len(dataset.train.labels) + len(transfer.images) if transfer else None


def added(dataset: Dataset, transfer: Transfer) -> Dataset:
    """A dataset with a transfer set's images behind its training images, labelled UNLABELLED; its sha256 is of both."""
    labelled, images = dataset.train, transfer.images
    if isinstance(labelled.images, np.ndarray) and isinstance(images, np.ndarray):
        together: Images = np.concatenate([labelled.images, images])
    else:
        parts = Parts([labelled.images, images])
        together = Rows(parts, np.arange(len(parts)))
    labels = np.concatenate([labelled.labels, np.full(len(images), UNLABELLED, labelled.labels.dtype)])
    both = hashlib.sha256((dataset.sha256 + transfer.sha256).encode()).hexdigest()
    return dataset._replace(train=Split(together, labels), sha256=both)


@lru_cache(maxsize=1)
def _load(path: str, kept_in: str, shape: tuple[int, int, int], resize: str, skip_broken: bool) -> Transfer:
    place = Path(path)
    if not place.exists():
        raise InputError(f"data.transfer: {path} does not exist. Give a folder of pictures, or an .npz file of images.")
    if place.is_dir():
        images, digests = _of_folder(place, Path(kept_in), shape, resize, skip_broken)
    else:
        images = _of_npz(place, shape)
        digests = splits.digests_of(images)
    return Transfer(images, digests, hashlib.sha256(digests.tobytes()).hexdigest())


def _of_folder(
    place: Path, kept_in: Path, shape: tuple[int, int, int], resize: str, skip_broken: bool
) -> tuple[Images, np.ndarray]:
    height, width, channels = shape
    if height != width:
        raise InputError(
            f"data.transfer: {place} is a folder, whose pictures become squares, and the labelled images are "
            f"{height}x{width}. Give an .npz file of images of that size."
        )
    left_out: Counter[str] = Counter()
    names = sorted(folder.pictures_below(place, left_out))
    if not names:
        raise InputError(f"data.transfer: {place} holds no pictures.")
    listing: Listing = of_files(
        *(place, names, [os.path.join(place, name) for name in names]),
        labels=np.full(len(names), UNLABELLED, np.int32),
        splits=["train"] * len(names),
        class_names=(),
        left_out=left_out,
    )
    stored = store.obtain(kept_in, listing, channels, height, resize, exactly=True)
    if stored.broken:
        store.complain(listing, stored.broken, skip_broken)
    return Rows(stored.pixels, np.arange(len(stored.pixels))), stored.digests


def _of_npz(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    held = arrays.npz_names(path)
    called = next(iter(held)) if len(held) == 1 else next((name for name in _NAMES if name in held), _NAMES[0])
    file = arrays.Npz(path, [called], _ADVICE, "data.transfer: ")
    header = file.headers[called]
    given = (*header.shape, 1) if len(header.shape) == 3 else header.shape
    if header.dtype != np.uint8 or given[1:] != shape or not given[0]:
        raise InputError(
            f"data.transfer: {path}: {called} is {header.dtype} {list(header.shape)}; it must be uint8 "
            f"{['n', *shape]}, as the labelled images are."
        )
    return file.read()[called].reshape(given)
