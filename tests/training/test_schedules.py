"""Learning rates against the formula."""

import math

import numpy as np
import pytest

from kdrun.training.schedules import learning_rates


def _optimizer(schedule="constant", warmup_epochs=0.0, learning_rate=0.01):
    return {"learning_rate": learning_rate, "schedule": schedule, "warmup_epochs": warmup_epochs}


def _expected(optimizer, step, per_epoch, total):
    """Linear over the warm-up, all of it reached at its last step; then constant or half a cosine from there on."""
    warmup = optimizer["warmup_epochs"] * per_epoch
    if step + 1 < warmup:
        return optimizer["learning_rate"] * (step + 1) / warmup
    if optimizer["schedule"] == "constant" or step < warmup:
        return optimizer["learning_rate"]
    return optimizer["learning_rate"] * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup_epochs", [0.0, 0.05, 0.5, 1.0, 1.25, 3.0])
@pytest.mark.parametrize("learning_rate", [1e-3, 0.5])
def test_against_the_formula(schedule, warmup_epochs, learning_rate):
    per_epoch, epochs = 7, 5
    total = per_epoch * epochs
    optimizer = _optimizer(schedule, warmup_epochs, learning_rate)
    rates = learning_rates(optimizer, 0, total, per_epoch, total)
    assert rates.dtype == np.float32
    assert rates.shape == (total,)
    expected = [_expected(optimizer, step, per_epoch, total) for step in range(total)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-9 * learning_rate)


def test_constant_is_the_learning_rate_itself():
    rates = learning_rates(_optimizer(learning_rate=1e-3), 0, 20, 5, 20)
    assert rates.tobytes() == np.full(20, 1e-3, np.float32).tobytes()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup_epochs", [0.3, 1.0, 2.0, 100.0])
def test_warm_up_rises_from_above_zero(schedule, warmup_epochs):
    per_epoch, total = 10, 100
    rates = learning_rates(_optimizer(schedule, warmup_epochs), 0, total, per_epoch, total)
    rising = rates[: min(total, int(warmup_epochs * per_epoch))]
    assert rates[0] > 0
    assert np.all(np.diff(rising) > 0)
    assert rates.max() <= np.float32(0.01)
    if warmup_epochs * per_epoch <= total:
        assert rates.max() == np.float32(0.01)


def test_cosine_falls_from_the_learning_rate_through_a_half_to_nearly_zero():
    total = 1000
    rates = learning_rates(_optimizer("cosine"), 0, total, 100, total)
    assert rates[0] == np.float32(0.01)
    assert rates[total // 2] == pytest.approx(0.005, rel=1e-6)
    assert np.all(np.diff(rates) < 0)
    assert 0 < rates[-1] < 1e-5 * 0.01
    assert learning_rates(_optimizer("cosine"), total, 1, 100, total)[0] == 0


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup_epochs", [0.0, 0.7, 2.0])
def test_chunks_equal_the_whole(schedule, warmup_epochs):
    optimizer, total = _optimizer(schedule, warmup_epochs), 60
    whole = learning_rates(optimizer, 0, total, 12, total).tobytes()
    for chunk in (1, 7, 12):
        parts = [
            learning_rates(optimizer, step, min(chunk, total - step), 12, total) for step in range(0, total, chunk)
        ]
        assert b"".join(part.tobytes() for part in parts) == whole


def test_a_warm_up_as_long_as_the_training_is_finite():
    rates = learning_rates(_optimizer("cosine", 4.0), 0, 40, 10, 40)
    np.testing.assert_allclose(rates, 0.01 * np.arange(1, 41) / 40, rtol=1e-6)


@pytest.mark.parametrize("warmup_epochs", [0.0, 2.0])
def test_in_steps_the_rate_is_multiplied_after_each_of_the_epochs(warmup_epochs):
    optimizer = _optimizer("step", warmup_epochs, 0.05) | {"step_epochs": [3, 5, 6], "step_factor": 0.1}
    per_epoch, total = 7, 8 * 7
    rates = learning_rates(optimizer, 0, total, per_epoch, total)
    expected = 0.05 * 0.1 ** np.repeat([0, 0, 0, 1, 1, 2, 3, 3], per_epoch)
    if warmup_epochs:
        expected[:14] *= np.arange(1, 15) / 14
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    parts = [learning_rates(optimizer, step, 4, per_epoch, total) for step in range(0, total, 4)]
    assert b"".join(part.tobytes() for part in parts) == rates.tobytes()
