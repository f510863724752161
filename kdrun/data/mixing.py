"""Mixing of a batch's images with each other, as plain numbers: a pure function of (seed, step), without state.

Each image is mixed with the one that has its place counted from the batch's end, which is as random as any.
"""

from collections.abc import Mapping

import numpy as np

from kdrun.data import batches

_CUT = 6  # a stream of random numbers beside those of batches


def is_on(training: Mapping) -> bool:
    """Whether images are mixed, by a role's keys or those of distilling."""
    return bool(training["mixup"] or training["cutmix"])


def mixes(seed: int, step: int, count: int, mixup: float, cutmix: float) -> np.ndarray:
    """How images are mixed in each of `count` steps from `step` on: float32 [count, 5].

    The first number is how much of a pixel is an image's own, from Beta(mixup, mixup) (arXiv 1710.09412); the others
    are top, bottom, left and right, as parts of the image's sides, of a box of pixels that are all the other's: of an
    area of 1 - Beta(cutmix, cutmix), its middle anywhere, cut off at the edges (arXiv 1905.04899). Where both are above
    0, each step is of one of them, as often of one as of the other; where one is 0, none is of it.
    """
    found = np.zeros((count, 5), np.float32)
    found[:, 0] = batches.shares(seed, step, count, mixup)
    for number in range(count) if cutmix else ():
        random = np.random.default_rng([seed, step + number, _CUT])
        side = np.sqrt(1.0 - random.beta(cutmix, cutmix))
        middle = random.random(2)
        low, high = np.clip(middle - side / 2, 0.0, 1.0), np.clip(middle + side / 2, 0.0, 1.0)
        if random.random() < 0.5 or not mixup:
            found[number] = [1.0, low[0], high[0], low[1], high[1]]
    return found
