"""What is made of an image before a network sees it, as plain values; models.preprocessing does it."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from kdrun.data.datasets import Dataset
from kdrun.data.rows import Images
from kdrun.errors import InputError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of red, green and blue, as torchvision's networks have them
_AT_ONCE = 1024  # images that are counted at once: they may be larger than memory


class Preparation(NamedTuple):
    """How images are prepared for a network: resized to `image_size` pixels a side, scaled to [0, 1], and then, where
    there are `mean` and `std`, one of each channel, (x - mean) / std."""

    image_size: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def of_data(data: Mapping, dataset: Dataset) -> Preparation:
    """What a network that is trained on a config's data, as its role sees them, is shown.

    Raises InputError where its `normalise` is not for such images.
    """
    asked, channels = data["normalise"], dataset.train.images.shape[3]
    if asked == "none":
        return Preparation(data["image_size"])
    if asked == "dataset":
        return Preparation(data["image_size"], *statistics(dataset.train.images))
    mean, std = IMAGENET if asked == "imagenet" else (tuple(each) for each in asked)
    if len(mean) != channels:
        raise InputError(
            f"data.normalise={asked} is for images of {len(mean)} channel(s), and {data['name']}'s have {channels}. "
            "Set data.normalise=dataset, or give as many numbers."
        )
    return Preparation(data["image_size"], mean, std)


def of_run(record: Mapping) -> Preparation:
    """What the network of a run is shown, as its record has it: on other data, too."""
    normalisation = record.get("normalisation") or {}
    mean, std = (tuple(map(float, normalisation.get(key, ()))) for key in ("mean", "std"))
    return Preparation(record["config"]["data"]["image_size"], mean, std)


def recorded(preparation: Preparation) -> dict:
    """What a run's record says of a preparation beside the image size."""
    if not preparation.mean:
        return {}
    return {"normalisation": {"mean": list(preparation.mean), "std": list(preparation.std)}}


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images, uint8 [n, height, width, channels], scaled to [0, 1].

    From sums of whole numbers, which are exact. Raises InputError where all pixels of a channel are alike.
    """
    counts = [[0] * 256 for _ in range(images.shape[3])]
    for start in range(0, len(images), _AT_ONCE):
        block = images[start : start + _AT_ONCE]
        for channel, before in enumerate(counts):
            here = np.bincount(block[..., channel].ravel(), minlength=256).tolist()
            counts[channel] = [a + b for a, b in zip(before, here, strict=True)]
    n = math.prod(images.shape[:3])
    sums = [sum(value * count for value, count in enumerate(of_one)) for of_one in counts]
    squares = [sum(value**2 * count for value, count in enumerate(of_one)) for of_one in counts]
    spreads = [n * square - total**2 for total, square in zip(sums, squares, strict=True)]
    if 0 in spreads:
        raise InputError(
            f"data.normalise=dataset: all pixels of channel {spreads.index(0)} of the training images are alike, so "
            "there is nothing to divide by. Set data.normalise=none."
        )
    return tuple(total / (255 * n) for total in sums), tuple(math.sqrt(spread) / (255 * n) for spread in spreads)
