"""Batches are a pure function of (seed, step)."""

import numpy as np
import pytest

from kdrun.data import batches
from kdrun.data.augmentation import Augmentation


def _bytes(seed, step, count, batch_size, size, views):
    return tuple(part.tobytes() for part in batches.stream(seed, step, count, batch_size, size, views))


def _long(seed, size, views, passes, batch_size=1):
    """Indices and views of the first whole passes, each [passes, size]."""
    count = batches.steps_per_epoch(size * passes, batch_size)
    indices, chosen = batches.stream(seed, 0, count, batch_size, size, views)
    whole = slice(size * passes)
    return indices.ravel()[whole].reshape(passes, size), chosen.ravel()[whole].reshape(passes, size)


@pytest.mark.parametrize(
    ("size", "batch_size", "steps"), [(100, 10, 10), (100, 7, 15), (128, 128, 1), (129, 128, 2), (3, 8, 1), (1, 1, 1)]
)
def test_an_epoch_is_rounded_up_to_whole_steps(size, batch_size, steps):
    assert batches.steps_per_epoch(size, batch_size) == steps


def test_stream_gives_int32_of_the_asked_shape():
    for part in batches.stream(0, 5, 3, 4, 10, 9):
        assert part.shape == (3, 4)
        assert part.dtype == np.int32


@pytest.mark.parametrize("batch_size", [1, 5, 7, 23, 50])
@pytest.mark.parametrize("split", [[20], [1] * 20, [3, 1, 9, 7], [19, 1]])
def test_any_split_of_steps_into_calls_gives_the_same_bytes(batch_size, split):
    size, views, first = 23, 9, 4
    whole = _bytes(1, first, 20, batch_size, size, views)
    parts, step = [], first
    for count in split:
        parts.append(_bytes(1, step, count, batch_size, size, views))
        step += count
    assert b"".join(p[0] for p in parts) == whole[0]
    assert b"".join(p[1] for p in parts) == whole[1]


def test_calls_before_change_nothing():
    first = _bytes(3, 17, 4, 6, 25, 5)
    for step in (900, 0, 17, 5):  # other passes, more of them than are remembered
        batches.stream(4, step, 30, 6, 25, 5)
        batches.stream(3, step, 30, 6, 25, 5)
    assert _bytes(3, 17, 4, 6, 25, 5) == first


def test_changing_what_was_returned_changes_nothing_later():
    first = _bytes(3, 0, 5, 5, 25, 5)
    for part in batches.stream(3, 0, 5, 5, 25, 5):
        part[:] = 0
    assert _bytes(3, 0, 5, 5, 25, 5) == first


@pytest.mark.parametrize(("size", "batch_size"), [(24, 6), (23, 6), (23, 50), (1, 3), (7, 7)])
def test_every_pass_holds_each_index_exactly_once(size, batch_size):
    indices, _ = _long(0, size, 3, 6, batch_size)
    for one in indices:
        assert sorted(one.tolist()) == list(range(size))


def test_batch_size_only_cuts_the_stream():
    whole = _long(5, 30, 18, 4, 1)
    for batch_size in (4, 7, 30, 64):
        for part, other in zip(whole, _long(5, 30, 18, 4, batch_size), strict=True):
            assert part.tobytes() == other.tobytes()


def test_a_late_step_is_in_its_own_pass():
    size, batch_size, number = 10, 4, 1_000_003
    step = number * size // batch_size  # 4 divides neither; position 2 steps into the middle of a pass
    position = step * batch_size
    indices, _ = batches.stream(0, step, 10, batch_size, size, 1)
    to_next_pass = -position % size
    one = indices.ravel()[to_next_pass : to_next_pass + size]
    assert sorted(one.tolist()) == list(range(size))


def test_other_seeds_and_passes_give_other_orders_and_views():
    orders, views = set(), set()
    for seed in range(5):
        indices, chosen = _long(seed, 50, 18, 5)
        for one, view in zip(indices, chosen, strict=True):
            orders.add(one.tobytes())
            views.add(view[np.argsort(one)].tobytes())  # the view of index 0, 1, 2, ...
    assert len(orders) == len(views) == 25


def test_orders_are_shuffled():
    indices, _ = _long(0, 1000, 1, 3)
    for one in indices:
        assert abs(np.corrcoef(one, np.arange(1000))[0, 1]) < 5 / np.sqrt(1000)
        assert np.count_nonzero(one == np.arange(1000)) < 10


@pytest.mark.parametrize(("jitter", "flip"), [(0, False), (0, True), (1, False), (2, True)])
def test_views_are_in_range_and_each_occurs_equally_often(jitter, flip):
    views = Augmentation(jitter, flip).view_count
    assert views == (2 * jitter + 1) * (2 * jitter + 1) * (1 + flip)
    _, chosen = _long(2, 5000, views, 2)
    assert chosen.min() == 0
    assert chosen.max() == views - 1
    for one in chosen:
        expected = len(one) / views
        counts = np.bincount(one, minlength=views)
        assert counts.min() > 0
        assert np.all(np.abs(counts - expected) <= 5 * np.sqrt(expected))


def test_an_index_has_one_view_in_a_pass_whatever_the_batch_size():
    size, views = 40, 50
    indices, chosen = _long(6, size, views, 3)
    for batch_size in (3, 16, 40):
        others, other_chosen = _long(6, size, views, 3, batch_size)
        for number in range(3):
            expected = dict(zip(indices[number].tolist(), chosen[number].tolist(), strict=True))
            seen = dict(zip(others[number].tolist(), other_chosen[number].tolist(), strict=True))
            assert seen == expected
    by_index = [view[np.argsort(one)] for one, view in zip(indices, chosen, strict=True)]
    assert np.mean(by_index[0] == by_index[1]) < 0.3  # 1 in 50 by chance
