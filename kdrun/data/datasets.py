"""Datasets: a source's arrays, checked before anything is trained on them, and split."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kdrun import registry
from kdrun.config.keys import DATA
from kdrun.config.schema import ALL_IMAGES, parameters
from kdrun.data import splits
from kdrun.data.batches import SUBSET
from kdrun.data.listing import SPLITS
from kdrun.data.rows import Images, Rows, chosen
from kdrun.data.source import NAMES, Source
from kdrun.errors import InputError

log = logging.getLogger(__name__)

_MOST_DRAWN = 10_000  # images of a split whose size nobody gave
_SHARE = 6  # one in so many, if that is fewer
_BLOCK = 1 << 26  # bytes of images that are hashed at a time


class Split(NamedTuple):
    """Images, uint8 [n, height, width, channels], in memory or on disk, and labels, int32 [n]."""

    images: Images
    labels: np.ndarray


class Dataset(NamedTuple):
    """Three splits, the number of classes, the sha256 of all images and labels, and each class's name: its number,
    where the data have no names."""

    train: Split
    validation: Split
    test: Split
    num_classes: int
    sha256: str
    class_names: tuple[str, ...]


class Whole(NamedTuple):
    """All of a source's images, before sizes are looked at.

    The validation images are the first ones of `training`: `brought` of them are those that the source brings, None
    where it brings none. `digests` are the sha256 of each image's pixels, uint8 [n, 32], and `names` what pictures are
    called, by training and test.
    """

    training: Split
    test: Split
    brought: int | None
    num_classes: int
    class_names: tuple[str, ...]
    digests: tuple[np.ndarray, np.ndarray]
    names: tuple[object, object]
    left_out: Mapping[str, int]
    sha256: str


class Shapes(NamedTuple):
    """What can be said of a dataset from its headers alone: array shapes (n first) of training and test images; where
    the test split is yet to be drawn, they are the same."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def shapes(data: Mapping) -> Shapes:
    """Shapes of the configured dataset from its files' headers. Raises InputError where a file cannot be used."""
    found = _shapes(_source(_key(data)))
    return Shapes(found["x_train"], found.get("x_test", found["x_train"]))


def _shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """The shapes of a source's images, by name."""
    names = _names(source)
    if "x_train" not in names:
        raise InputError(f"{source.path}: it holds no training images.")
    found = {name: source.shape(name) for name in names if name.startswith("x_")}
    for name, shape in found.items():
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)) or 0 in shape:
            raise InputError(
                f"{source.path}: {name} has shape {list(shape)}; it must be [n, height, width] or "
                "[n, height, width, 1 or 3], and not empty."
            )
        labels = name.replace("x_", "y_")
        if labels not in names or source.shape(labels) != shape[:1]:
            given = list(source.shape(labels)) if labels in names else "not there"
            raise InputError(
                f"{source.path}: {labels} {'has shape ' if labels in names else 'is '}{given}; {name} has {shape[0]} "
                f"images, so it must be [{shape[0]}]."
            )
        if shape[1:] != found["x_train"][1:]:
            raise InputError(
                f"{source.path}: x_train's images are {list(found['x_train'][1:])} and {name}'s {list(shape[1:])}; "
                "they must be of one size."
            )
    return found


def _names(source: Source) -> tuple[str, ...]:
    return tuple(getattr(source, "names", NAMES))


def fingerprint(data: Mapping) -> str:
    """The sha256 of the configured dataset: of its images and labels in their order, whatever file they are in."""
    return whole(data).sha256


def known_as(data: Mapping) -> tuple[str, ...]:
    """The configured dataset's fingerprint, and what runs of kdrun 0.1 recorded instead: the sha256 of its files."""
    return (fingerprint(data), *([_source(_key(data)).sha256] if _split(data) == "first" else []))


def load(data: Mapping, seed: int = 0) -> Dataset:
    """The configured dataset, split: the first training images, as many as `validation_count` says, are the validation
    set.

    With `train_on_validation` they are in the training split, too. Of that, `include_classes`, `exclude_classes` and
    `train_fraction` choose images: all of some classes, and of each of these the same fraction, drawn by `seed`.
    Raises InputError where a file is missing, damaged, or holds something else than images and labels. Arrays are
    kept for the process, so that a sweep's jobs read them once; they are read-only.
    """
    found, held_out, used = whole(data), validation_count(data), data["train_size"]
    images, labels = found.training
    first = 0 if data.get("train_on_validation") else held_out
    train = _some(found.training, slice(first, None if used is None else held_out + used))
    subset = [data.get(key, default) for key, default in ALL_IMAGES.items()]
    if subset != list(ALL_IMAGES.values()):
        train = _some(train, _of_classes(train.labels, seed, *subset))
    return Dataset(
        train,
        Split(chosen(images, slice(0, held_out)), labels[:held_out]),
        _some(found.test, slice(0, test_count(data))),
        found.num_classes,
        found.sha256,
        found.class_names,
    )


def validation_count(data: Mapping) -> int:
    """How many of the first training images are validation images. Raises InputError where the data bring others."""
    found, asked = whole(data), data["validation_size"]
    count = len(found.training.labels)
    if found.brought is not None:
        if asked is not None and asked != found.brought:
            raise InputError(
                f"data.validation_size={asked}: the data have validation images of their own, {found.brought:,}. Leave "
                "it out."
            )
        return found.brought
    held_out = _count(asked, count)
    return splits.cut(found.digests[0], held_out) if _split(data) == "stratified" else held_out


def test_count(data: Mapping) -> int | None:
    """How many of the test images are used, from the first on; None: all."""
    asked = data["test_size"]
    return None if asked is None or not _brings_test(data) else _count(asked, len(whole(data).test.labels))


def _count(asked: int | float | None, of: int) -> int:
    """A size in images: as it is given, a fraction of so many, or what suits so many."""
    if asked is None:
        return max(1, min(_MOST_DRAWN, of // _SHARE))
    return max(1, round(asked * of)) if isinstance(asked, float) else asked


def _some(split: Split, places: np.ndarray | slice) -> Split:
    return Split(chosen(split.images, places), split.labels[places])


def _of_classes(labels: np.ndarray, seed: int, include, exclude, fraction: float) -> np.ndarray:
    """Indices, in order, of the training images that the students see."""
    wanted = range(int(labels.max()) + 1) if include is None else include
    random, found = np.random.default_rng([seed, 0, SUBSET]), []
    for label in sorted(set(wanted) - set(exclude)):
        of_class = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(of_class)))
        found.append(random.permutation(of_class)[:count])
    return np.sort(np.concatenate(found or [np.zeros(0, np.int64)]))


def order(dataset: Dataset) -> str:
    """The sha256 of all images and labels in their order: what logits in a file must be made for."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        for block in blocks(split.images):
            digest.update(block.data)
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()


def blocks(images: Images) -> Iterator[np.ndarray]:
    """Images in order, some at a time, in memory."""
    at_once = max(1, _BLOCK // max(1, images.nbytes // max(1, len(images))))
    for start in range(0, len(images), at_once):
        yield np.ascontiguousarray(images[start : start + at_once])


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


def _split(data: Mapping) -> str:
    return data.get("split", "first")  # runs of before have no such key


def _brings_test(data: Mapping) -> bool:
    return "x_test" in _names(_source(_key(data)))


def whole(data: Mapping) -> Whole:
    """All images of the configured dataset, in the order that splits are cut from. Raises what `load` does."""
    drawn_test = None if _brings_test(data) else data["test_size"]
    return _whole(_key(data), _split(data), data.get("split_seed", 0), drawn_test)


@lru_cache(maxsize=1)
def _whole(key: tuple, split: str, seed: int, test_size: int | float | None) -> Whole:
    source = _source(key)
    _shapes(source)
    parts, num_classes, class_names = _labelled(source, {name: _checked(source, name) for name in _names(source)})
    sums = {part: _digests(source, part, parts[part].images) for part in parts}
    names = {part: _picture_names(source, part, len(parts[part].labels)) for part in parts}
    if split == "stratified":
        for part, (images, labels) in parts.items():
            by = splits.drawn_order(labels, sums[part], seed)
            parts[part], sums[part], names[part] = (
                Split(chosen(images, by), labels[by]),
                sums[part][by],
                names[part][by],
            )
    training, digests, called = (_joined(each) for each in (parts, sums, names))
    brought = len(parts["validation"].labels) if "validation" in parts else None
    if "test" in parts:
        test, test_digests, test_names = parts["test"], sums["test"], names["test"]
    else:
        if brought is not None:
            raise InputError(
                f"{source.path}: it has validation images and no test images. Call them test, or add some: validation "
                "images can be drawn from the training images, and are where nothing is said."
            )
        count = _count(test_size, len(training.labels))
        count = splits.cut(digests, count) if split == "stratified" else count
        if count >= len(training.labels):
            raise InputError(
                f"data.test_size={test_size} leaves no training images: {source.path} has {len(training.labels)}, and "
                "no test split of its own. Give fewer."
            )
        test, test_digests, test_names = _some(training, slice(0, count)), digests[:count], called[:count]
        training, digests, called = _some(training, slice(count, None)), digests[count:], called[count:]
    for array in (*training, *test):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return Whole(
        *(training, test, brought, num_classes, class_names, (digests, test_digests), (called, test_names)),
        left_out=getattr(source, "left_out", {}),
        sha256=_content(training, test, brought, num_classes, digests, test_digests),
    )


def _joined(parts: Mapping):
    """Validation images and training images, or what is known of them, one after the other."""
    if "validation" not in parts:
        return parts["train"]
    both = (parts["validation"], parts["train"])
    if not isinstance(both[0], Split):
        return np.concatenate(both)
    images = [split.images for split in both]
    together = Rows.joined(images) if isinstance(images[0], Rows) else np.concatenate(images)
    return Split(together, np.concatenate([split.labels for split in both]))


def _content(training: Split, test: Split, brought: int | None, num_classes: int, *digests: np.ndarray) -> str:
    """The sha256 of all images and labels, from the images' own."""
    shape = [list(training.images.shape[1:]), len(training.labels), len(test.labels), brought, num_classes]
    digest = hashlib.sha256(json.dumps(shape).encode())
    for sums, labels in zip(digests, (training.labels, test.labels), strict=True):
        digest.update(np.ascontiguousarray(sums).data)
        digest.update(labels.astype("<i4").tobytes())
    return digest.hexdigest()


def _checked(source: Source, name: str) -> Images:
    """One of a source's arrays. Raises InputError where it is not of pixels, or of labels."""
    array = source.read(name)
    is_images = name.startswith("x_")
    fits, said = (array.dtype == np.uint8, "uint8") if is_images else (array.dtype.kind in "iu", "integers")
    if not fits:
        raise InputError(f"{source.path}: {name} is {array.dtype}; it must be {said}.")
    return array[..., np.newaxis] if is_images and array.ndim == 3 else array


def _digests(source: Source, part: str, images: Images) -> np.ndarray:
    if hasattr(source, "digests"):
        return source.digests(part)
    return splits.digests_of(np.asarray(images))


def _picture_names(source: Source, part: str, count: int) -> np.ndarray:
    if hasattr(source, "picture_names"):
        return np.asarray(source.picture_names(part), object)
    return np.arange(count)


def _labelled(source: Source, arrays: Mapping) -> tuple[dict[str, Split], int, tuple[str, ...]]:
    """A source's splits, the number of classes and their names. Raises InputError for labels that are of no class."""
    given = {part: arrays[f"y_{part}"] for part in SPLITS if f"y_{part}" in arrays}
    everything = np.concatenate(list(given.values()))
    numbers = np.unique(everything)
    names = getattr(source, "class_names", None)
    num_classes = source.num_classes or max(len(names or ()), int(given["train"].max()) + 1)
    ids = source.num_classes is None and names is None and numbers[0] >= 0 and numbers[-1] >= 2 * len(numbers)
    if ids and len(numbers) <= max(100, len(everything) // 2):
        log.info("data: labels are %s different numbers up to %s, taken for %s classes", *_ids(numbers))
        given = {part: np.searchsorted(numbers, labels) for part, labels in given.items()}
        num_classes, names = len(numbers), tuple(map(str, numbers.tolist()))
    for part, labels in given.items():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise InputError(
                f"{source.path}: y_{part} holds labels from {low} to {high}; with {num_classes} classes they must be "
                f"from 0 to {num_classes - 1}."
            )
    if num_classes < 2 or len(np.unique(given["train"])) < 2:
        raise InputError(f"{source.path}: y_train holds one class only; at least 2 are needed.")
    names = tuple(names or map(str, range(num_classes)))
    if len(names) != num_classes:
        raise InputError(f"{source.path}: it has {len(names)} class names for {num_classes} classes. Each has one.")
    return (
        {part: Split(arrays[f"x_{part}"], labels.astype(np.int32)) for part, labels in given.items()},
        num_classes,
        names,
    )


def _ids(numbers: np.ndarray) -> tuple[int, int, int]:
    return len(numbers), int(numbers[-1]), len(numbers)
