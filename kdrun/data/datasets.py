"""Datasets: a source's arrays, checked before anything is trained on them, and split."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kdrun import registry
from kdrun.config.keys import DATA
from kdrun.config.schema import ALL_IMAGES, parameters
from kdrun.data.batches import SUBSET
from kdrun.data.source import NAMES, Source
from kdrun.errors import InputError


class Split(NamedTuple):
    """Images, uint8 [n, height, width, channels], and labels, int32 [n]."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Three splits, the number of classes, the sha256 of the files that they were read from, and each class's name:
    its number, where the data have no names."""

    train: Split
    validation: Split
    test: Split
    num_classes: int
    sha256: str
    class_names: tuple[str, ...]


class Shapes(NamedTuple):
    """What can be said of a dataset from its headers alone: array shapes (n first) of training and test images."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def shapes(data: Mapping) -> Shapes:
    """Shapes of the configured dataset from its files' headers. Raises InputError where a file cannot be used."""
    return _shapes(_source(_key(data)))


def _shapes(source: Source) -> Shapes:
    train, test = source.shape("x_train"), source.shape("x_test")
    for name, shape in (("x_train", train), ("x_test", test)):
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)) or 0 in shape:
            raise InputError(
                f"{source.path}: {name} has shape {list(shape)}; it must be [n, height, width] or "
                "[n, height, width, 1 or 3], and not empty."
            )
        labels = name.replace("x_", "y_")
        if source.shape(labels) != shape[:1]:
            raise InputError(
                f"{source.path}: {labels} has shape {list(source.shape(labels))}; {name} has {shape[0]} images, so it "
                f"must be [{shape[0]}]."
            )
    if train[1:] != test[1:]:
        raise InputError(
            f"{source.path}: x_train's images are {list(train[1:])} and x_test's {list(test[1:])}; they must be of "
            "one size."
        )
    return Shapes(train, test)


def fingerprint(data: Mapping) -> str:
    """The sha256 of the configured dataset's files."""
    return _source(_key(data)).sha256


def load(data: Mapping, seed: int = 0) -> Dataset:
    """The configured dataset, split: the first `validation_size` training images are the validation set.

    With `train_on_validation` they are in the training split, too. Of that, `include_classes`, `exclude_classes` and
    `train_fraction` choose images: all of some classes, and of each of these the same fraction, drawn by `seed`.
    Raises InputError where a file is missing, damaged, or holds something else than images and labels. Arrays are
    kept for the process, so that a sweep's jobs read them once; they are read-only.
    """
    x_train, y_train, x_test, y_test, num_classes, class_names = _arrays(_key(data))
    held_out, used = data["validation_size"], data["train_size"]
    end = None if used is None else held_out + used
    first = 0 if data.get("train_on_validation") else held_out
    train = Split(x_train[first:end], y_train[first:end])
    subset = [data.get(key, default) for key, default in ALL_IMAGES.items()]
    if subset != list(ALL_IMAGES.values()):
        chosen = _chosen(train.labels, seed, *subset)
        train = Split(train.images[chosen], train.labels[chosen])
    return Dataset(
        train,
        Split(x_train[:held_out], y_train[:held_out]),
        Split(x_test[: data["test_size"]], y_test[: data["test_size"]]),
        num_classes,
        fingerprint(data),
        class_names,
    )


def _chosen(labels: np.ndarray, seed: int, include, exclude, fraction: float) -> np.ndarray:
    """Indices, in order, of the training images that the students see."""
    wanted = range(int(labels.max()) + 1) if include is None else include
    random, chosen = np.random.default_rng([seed, 0, SUBSET]), []
    for label in sorted(set(wanted) - set(exclude)):
        of_class = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(of_class)))
        chosen.append(random.permutation(of_class)[:count])
    return np.sort(np.concatenate(chosen or [np.zeros(0, np.int64)]))


def order(dataset: Dataset) -> str:
    """The sha256 of all images and labels in their order: what logits in a file must be made for."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        for array in split:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def own_keys(data: Mapping) -> dict:
    """The keys of data that are its source's own."""
    return {key: value for key, value in data.items() if key not in (*DATA, "name")}


def _key(data: Mapping) -> tuple:
    name = data["name"]
    if not registry.has("data", name):  # the record of somebody else's run may name any
        raise InputError(f"data={name}: there is no such dataset here. A file of your own is named by plugins=[FILE].")
    return registry.get("data", name), json.dumps(own_keys(data), sort_keys=True)


@lru_cache(maxsize=2)
def _source(key: tuple) -> Source:
    entry, own = key[0], json.loads(key[1])
    keys = {
        key: own.get(key, None if each.default is each.empty else each.default)
        for key, each in parameters(entry).items()
    }
    source = entry.call(**keys)
    if missing := [part for part in ("shape", "read", "sha256") if not hasattr(source, part)]:
        raise InputError(
            f"data={entry.name}: what {entry.file.name} returns has no {missing[0]}. See kdrun.data.source."
        )
    return source


@lru_cache(maxsize=1)
def _arrays(key: tuple) -> tuple:
    source = _source(key)
    _shapes(source)
    arrays = {name: source.read(name) for name in NAMES}
    for name, array in arrays.items():
        is_images = name.startswith("x_")
        fits, said = (array.dtype == np.uint8, "uint8") if is_images else (array.dtype.kind in "iu", "integers")
        if not fits:
            raise InputError(f"{source.path}: {name} is {array.dtype}; it must be {said}.")
    num_classes = source.num_classes or int(arrays["y_train"].max()) + 1
    for name in ("y_train", "y_test"):
        low, high = int(arrays[name].min()), int(arrays[name].max())
        if low < 0 or high >= num_classes:
            raise InputError(
                f"{source.path}: {name} holds labels from {low} to {high}; with {num_classes} classes they must be "
                f"from 0 to {num_classes - 1}."
            )
    if num_classes < 2:
        raise InputError(f"{source.path}: y_train holds one class only; at least 2 are needed.")
    images = [a if a.ndim == 4 else a[..., np.newaxis] for a in (arrays["x_train"], arrays["x_test"])]
    labels = [arrays[name].astype(np.int32) for name in ("y_train", "y_test")]
    for array in (*images, *labels):
        array.flags.writeable = False
    names = tuple(getattr(source, "class_names", None) or map(str, range(num_classes)))
    if len(names) != num_classes:
        raise InputError(f"{source.path}: it has {len(names)} class names for {num_classes} classes. Each has one.")
    return images[0], labels[0], images[1], labels[1], num_classes, names
