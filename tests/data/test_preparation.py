"""What a network is shown: statistics of the training images against NumPy's, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from kdrun.data import preparation
from kdrun.data.datasets import Dataset, Split
from kdrun.data.preparation import Preparation
from kdrun.errors import InputError


def dataset(images: np.ndarray) -> Dataset:
    split = Split(images, np.zeros(len(images), np.int32))
    return Dataset(split, split, split, 2, "0" * 64, ("0", "1"))


def prepared(images: np.ndarray, normalise) -> Preparation:
    return preparation.of_data({"name": "mine", "image_size": 8, "normalise": normalise}, dataset(images))


@settings(deadline=None, max_examples=30)
@given(some.integers(1, 3000), some.sampled_from([1, 3]), some.integers(0, 2**32 - 1))
def test_mean_and_deviation_of_each_channel_are_numpys(count, channels, seed):
    """Over more images than are counted at once, too."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, 2, channels), np.uint8)
    mean, std = preparation.statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)
    assert prepared(images, "dataset") == Preparation(8, mean, std)


def test_nearly_alike_images_lose_no_digits():
    """Where a float64 sum of squares would: one pixel in a million is another one."""
    images = np.full((1000, 32, 32, 1), 200, np.uint8)
    images[500, 16, 16] = 201
    n = images.size
    (mean,), (std,) = preparation.statistics(images)
    assert mean == (200 * n + 1) / (255 * n)
    assert std == pytest.approx(np.sqrt((n - 1) / n**2) / 255, rel=1e-14)


def test_what_is_asked_for_is_what_is_shown():
    colour = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 3), np.uint8)
    assert prepared(colour, "none") == Preparation(8)
    assert prepared(colour, "imagenet") == Preparation(8, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert prepared(colour[..., :1], [[0.5], [0.25]]) == Preparation(8, (0.5,), (0.25,))
    with pytest.raises(InputError, match=r"for images of 1 channel.*mine's have 3"):
        prepared(colour, [[0.5], [0.25]])
    with pytest.raises(InputError, match="channel 1 of the training images are alike"):
        prepared(colour * np.array([1, 0, 1], np.uint8), "dataset")


def test_a_run_remembers_it():
    for shown in (Preparation(8), Preparation(8, (1 / 3,), (0.1,))):
        record = {"config": {"data": {"image_size": 8}}, **preparation.recorded(shown)}
        assert preparation.of_run(record) == shown
