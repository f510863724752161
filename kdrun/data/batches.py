"""Batches: which images a training step sees, and in which view, as a pure function of (seed, step).

Training is one endless stream: a fresh permutation of the training set per pass, one pass after the other, cut into
batches of equal size. There is no shuffle buffer and no state, so resuming in mid-epoch is arithmetic. An epoch is
ceil(n / batch_size) steps.

A view is what augmentation makes of an image, as one integer: see augmentation.
"""

from functools import lru_cache

import numpy as np

# streams of random numbers that must not meet: generators are made of [seed, step or pass, stream]
_ORDER, _VIEW, _SHUFFLE, _MIX, SUBSET, OTHERS = range(6)


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Steps that an epoch over `size` images takes: ceil(size / batch_size)."""
    return -(-size // batch_size)


def relative_seed(seed: int, number: int) -> int:
    """The seed of a run's relative: of a peer, or a later generation; number 0 is the run itself. Far from the seeds
    beside it, which other runs have."""
    return (seed + number * 2**24) % 2**31


def stream(seed: int, step: int, count: int, batch_size: int, size: int, views: int) -> tuple[np.ndarray, np.ndarray]:
    """The batches of `count` steps from `step` on.

    Returns image indices and views, both int32 [count, batch_size]. The view of an image is keyed by (seed, pass,
    index).
    """
    positions = np.arange(step * batch_size, (step + count) * batch_size, dtype=np.int64)
    passes, offsets = positions // size, positions % size
    indices = np.empty(positions.shape, np.int32)
    chosen = np.empty(positions.shape, np.int32)
    for number in np.unique(passes):
        here = passes == number
        order, view = _pass(seed, int(number), size, views)
        indices[here] = order[offsets[here]]
        chosen[here] = view[indices[here]]
    return indices.reshape(count, batch_size), chosen.reshape(count, batch_size)


def shares(seed: int, step: int, count: int, mixup: float) -> np.ndarray:
    """How much of an image is its own where images are mixed (arXiv 1710.09412), float32 [count]: for each step from
    Beta(mixup, mixup), 1 without mixing."""
    if not mixup:
        return np.ones(count, np.float32)
    steps = range(step, step + count)
    return np.array([np.random.default_rng([seed, n, _MIX]).beta(mixup, mixup) for n in steps], np.float32)


def shuffled(seed: int, labels: np.ndarray, how: str) -> np.ndarray:
    """For each image, the one whose teacher's answer it is given: itself for `none`, else by a permutation of `all`
    images, or of those of its class (`within_class`); int64 [n]."""
    order, random = np.arange(len(labels)), np.random.default_rng([seed, 0, _SHUFFLE])
    groups = [order] if how == "all" else [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for group in groups if how != "none" else ():
        order[group] = random.permutation(group)
    return order


@lru_cache(maxsize=4)
def _pass(seed: int, number: int, size: int, views: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng([seed, number, _ORDER]).permutation(size).astype(np.int32)
    view = np.random.default_rng([seed, number, _VIEW]).integers(views, size=size, dtype=np.int32)
    return order, view
