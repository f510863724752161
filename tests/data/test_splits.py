"""Splits: drawn by class and by content, or the first ones."""

import numpy as np
import pictures
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pictures import NONE, forget

from kdrun.data import datasets, splits


def some_sums(random: np.random.Generator, count: int, different: int) -> np.ndarray:
    kinds = random.integers(0, 256, (different, 32), np.uint8)
    return kinds[random.integers(0, different, count)]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 6), st.integers(1, 80), st.integers(0, 2**31 - 1))
@example(4, 4, 320799)
def test_every_beginning_of_the_order_has_each_class_in_its_share(classes, count, seed):
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, count)])
    sums = random.integers(0, 256, (len(labels), 32), np.uint8)  # no two alike
    order = splits.drawn_order(labels, sums, seed)
    assert sorted(order) == list(range(len(labels)))
    for label in range(classes):
        share = (labels == label).mean()
        counts = np.cumsum(labels[order] == label)
        off = np.abs(counts - share * np.arange(1, len(labels) + 1)).max()
        assert off <= (1 + share * (classes - 2)) / 2 + 1e-9  # half an image of each class


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 60), st.integers(1, 20), st.integers(0, 2**31 - 1))
def test_equal_images_are_on_one_side_and_their_order_does_not_count(count, different, seed):
    random = np.random.default_rng(seed)
    sums = some_sums(random, count, different)
    labels = random.integers(0, 3, count)  # of equal images, perhaps not the same
    order = splits.drawn_order(labels, sums, seed)
    for asked in range(1, count):
        cut = splits.cut(sums[order], asked)
        assert cut >= asked
        one, other = ({each.tobytes() for each in sums[part]} for part in (order[:cut], order[cut:]))
        assert not one & other
    shuffled = random.permutation(count)
    again = splits.drawn_order(labels[shuffled], sums[shuffled], seed)
    assert np.array_equal(sums[shuffled][again], sums[order])
    assert np.array_equal(labels[shuffled][again], labels[order])


def test_another_seed_is_another_order():
    random = np.random.default_rng(0)
    labels, sums = np.arange(100) % 4, random.integers(0, 256, (100, 32), np.uint8)
    orders = [splits.drawn_order(labels, sums, seed) for seed in range(3)]
    assert np.array_equal(orders[0], splits.drawn_order(labels, sums, 0))
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])


@pytest.fixture(scope="module")
def without_test(tmp_path_factory):
    """300 images and no test images."""
    path = tmp_path_factory.mktemp("without") / "my.npz"
    images, labels = pictures.digits(300)
    np.savez(path, x_train=images, y_train=labels)
    return {"name": "npz", "path": str(path), "num_classes": None, **NONE}


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ({"validation_size": None}, (209, 41, 50)),  # a sixth of 300; of the other 250 a sixth
        ({"validation_size": 0.2, "test_size": 0.1}, (216, 54, 30)),
        ({"validation_size": 10, "test_size": 20}, (270, 10, 20)),
    ],
)
@pytest.mark.parametrize("split", ["first", "stratified"])
def test_sizes_are_numbers_fractions_or_what_suits(without_test, asked, sizes, split):
    forget()
    found = datasets.load({**without_test, **asked, "split": split})
    assert tuple(len(part.labels) for part in found[:3]) == sizes
    together = np.concatenate([part.images for part in found[:3]])
    assert len({image.tobytes() for image in together}) == 300  # each image once
    if split == "stratified":
        for part, size in zip(found[:3], sizes, strict=True):
            counts = np.bincount(part.labels, minlength=10)
            assert counts.max() - counts.min() <= 2 and counts.sum() == size


def test_a_fraction_of_test_images_that_are_there(tmp_path):
    path = pictures.write_npz(tmp_path / "my.npz", pictures.arrays(60, 40))
    forget()
    data = {"name": "npz", "path": str(path), "num_classes": None, "train_size": None, "test_size": 0.25}
    found = datasets.load({**data, "validation_size": 10, "split": "stratified"})
    assert np.bincount(found.test.labels).tolist() == [1] * 10


def test_ids_are_mapped_when_they_are_few(tmp_path, caplog):
    held = pictures.arrays(60, 40)
    held |= {key: 1000 + 7 * held[key] for key in ("y_train", "y_test")}
    path = pictures.write_npz(tmp_path / "my.npz", held)
    forget()
    with caplog.at_level("INFO", "kdrun"):
        found = datasets.load({"name": "npz", "path": str(path), "num_classes": None, "validation_size": 10, **NONE})
    assert found.class_names == tuple(str(1000 + 7 * label) for label in range(10)) and found.num_classes == 10
    assert found.test.labels.tolist() == ((held["y_test"] - 1000) // 7).tolist()
