"""What is wrong with images and labels, looked for before anything is trained on them.

What spoils numbers is refused; what only hurts is a line.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np

from kdrun.config.schema import ALL_IMAGES
from kdrun.data import datasets, transfer
from kdrun.data.datasets import Dataset, Whole
from kdrun.data.listing import some
from kdrun.data.rows import Images, chosen, in_file, pixels
from kdrun.errors import InputError

_IMBALANCE = 10  # times as many images as another class has
_AT_ONCE = 1024  # images that are looked at
_SPOILT = 0.5  # of the test images that are in training, too


def findings(data: Mapping) -> list[str]:
    """What hurts in the configured dataset, a line each; none where nothing does.

    Raises InputError for what spoils numbers: half of the test images in training, too, or images without anything on
    them.
    """
    return list(_findings(json.dumps(data)))


@lru_cache(maxsize=4)  # of a sweep's jobs, the data are mostly the same
def _findings(given: str) -> list[str]:
    data = json.loads(given)
    whole, dataset = datasets.whole(data), datasets.load({**data, **ALL_IMAGES})  # what a student leaves out, it leaves
    return [
        *(f"{count:,} left out: {why}" for why, count in whole.left_out.items()),
        *_classes(dataset),
        *_copies(data, whole, dataset),
        *_blank(whole),
        *_transferred(data, whole, dataset),
    ]


def counts(dataset: Dataset) -> dict[str, list[int]]:
    """How many images of each class a split has, by split."""
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {name: np.bincount(split.labels, minlength=dataset.num_classes).tolist() for name, split in splits.items()}


def _classes(dataset: Dataset) -> Iterator[str]:
    of_split, names = counts(dataset), dataset.class_names
    for split, of_class in of_split.items():
        if missing := [name for name, count in zip(names, of_class, strict=True) if not count]:
            yield f"the {split} split has no images of {len(missing):,} of {len(names):,} classes: {some(missing)}"
    train = np.array(of_split["train"])
    there = np.flatnonzero(train)
    most, least = there[np.argmax(train[there])], there[np.argmin(train[there])]
    if train[most] >= _IMBALANCE * train[least]:
        yield (
            f"classes are not balanced: {train[most]:,} training images of {names[most]}, {train[least]:,} of "
            f"{names[least]}. Look at balanced accuracy"
        )


def _copies(data: Mapping, whole: Whole, dataset: Dataset) -> Iterator[str]:
    """Images that are in more than one split, or in one twice, or have two labels."""
    held_out, used = datasets.validation_count(data), len(dataset.train.labels)
    training, test = (_as_keys(each) for each in whole.digests)
    test = test[: len(dataset.test.labels)]
    trained_on = training if data.get("train_on_validation") else training[held_out:]
    trained_on = trained_on[:used] if data["train_size"] else trained_on
    in_both = np.isin(test, trained_on)
    if (copies := int(in_both.sum())) and copies >= _SPOILT * len(test):
        raise InputError(
            f"data: {copies:,} of the {len(test):,} test images are training images, too, so that the test says "
            f"nothing: {some(_called(whole, 1, in_both))}. Take them out of one, or leave out the test images: then "
            "some are drawn."
        )
    if copies:
        yield f"{copies:,} test images are training images, too: {some(_called(whole, 1, in_both))}"
    both = np.isin(training[:held_out], training[held_out:])
    if both.any() and not data.get("train_on_validation"):
        yield f"{both.sum():,} validation images are training images, too: {some(_called(whole, 0, both))}"
    _, first, times = np.unique(training, return_index=True, return_counts=True)
    if more := len(training) - len(first):
        twice = np.zeros(len(training), bool)
        twice[first[times > 1]] = True
        yield f"{more:,} training images are copies of others: {some(_called(whole, 0, twice))}"
    labelled = np.unique(np.stack([training, whole.training.labels.astype(training.dtype)], 1), axis=0)
    if disputed := len(labelled) - len(first):
        yield f"{disputed:,} images are there with more than one label"


def _transferred(data: Mapping, whole: Whole, dataset: Dataset) -> Iterator[str]:
    """Images without labels that are among the others. In the training set they are no harm."""
    if (unlabelled := transfer.load(data)) is None:
        return
    keys, training, test = (_as_keys(each) for each in (unlabelled.digests, *whole.digests))
    for said, number, those in (
        ("test", 1, test[: len(dataset.test.labels)]),
        ("validation", 0, training[: datasets.validation_count(data)]),
    ):
        both = np.isin(those, keys)
        if both.any():
            yield f"{both.sum():,} {said} images are in data.transfer, too: {some(_called(whole, number, both))}"


def _blank(whole: Whole) -> Iterator[str]:
    """Images of one value."""
    for number, (said, split) in enumerate((("training", whole.training), ("test", whole.test))):
        blank = _of_one_value(split.images)
        if blank.all():
            raise InputError(f"data: all {said} images are of one value: there is nothing on them. Give others.")
        if blank.any():
            yield f"{blank.sum():,} {said} images are of one value: {some(_called(whole, number, blank))}"


def _of_one_value(images: Images) -> np.ndarray:
    """Which images are of one value, bool [n].

    They may be on disk, and more than memory holds: a few pixels of each are looked at first, some images at a time, in
    the order in which they lie there.
    """
    height, width = images.shape[1:3]
    rows, columns = (np.arange(5) * (side - 1) // 4 for side in (height, width))
    grid = np.repeat(rows, 5), np.tile(columns, 5)
    blank, order = np.empty(len(images), bool), in_file(images)
    for start in range(0, len(order), _AT_ONCE):
        here = order[start : start + _AT_ONCE]
        looked_at = pixels(chosen(images, here), *grid)
        blank[here] = (looked_at == looked_at[:, :1, :1]).all(axis=(1, 2))
    for place in np.flatnonzero(blank):
        image = images[place]
        blank[place] = (image == image.flat[0]).all()
    return blank


def _as_keys(digests: np.ndarray) -> np.ndarray:
    """The first eight bytes of each sum as a number: what sorts quickly."""
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]


def _called(whole: Whole, number: int, which: np.ndarray) -> list[str]:
    """What chosen pictures of the training or the test images are called; without a name, by their place."""
    names = np.asarray(whole.names[number], object)
    return [name if isinstance(name, str) else f"image {name}" for name in names[np.flatnonzero(which)]]
