"""Distillation on logits, against float64 NumPy written from the formula T^2 KL(softmax(v/T) || softmax(z/T))."""

import math

import numpy as np
import pytest

from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.objectives.batch import Batch  # noqa: E402
from kdrun.objectives.logits import cross_entropy, kd  # noqa: E402

SCALES = [0.1, 3.0, 50.0]
CLASSES = [2, 10, 1000]
EPSILON = 2.0**-23  # of float32


def _log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def _kl(z, v, temperature):
    """KL(softmax(v/T) || softmax(z/T)) of each row."""
    log_q = _log_softmax(np.asarray(z, np.float64) / temperature)
    log_p = _log_softmax(np.asarray(v, np.float64) / temperature)
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def _gradient(function, rows, step=1e-5):
    """Of the mean over rows of function(row number, perturbed row), by central differences."""
    batch, classes = rows.shape
    shifts = step * np.eye(classes)
    slopes = [(function(i, row + shifts) - function(i, row - shifts)) / (2 * step) for i, row in enumerate(rows)]
    return np.stack(slopes) / batch


def _logits(scale, classes, batch=4, seed=0):
    rng = np.random.default_rng([seed, classes])
    return (scale * rng.normal(size=(2, batch, classes))).astype(np.float32)


def _kd(z, v, temperature, squared=True):
    batch = Batch(tf.constant(z), tf.constant(v), temperature=tf.constant(temperature, tf.float32))
    return kd(batch, scale_by_temperature_squared=squared, standardise_logits=False)


def _kd_gradient(z, v, temperature, squared=True):
    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = _kd(z, v, temperature, squared)
    return tape.gradient(loss, z).numpy()


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("scale", SCALES)
def test_kd_value(scale, classes, temperature, squared):
    z, v = _logits(scale, classes)
    factor = temperature**2 if squared else 1
    expected = factor * _kl(z, v, temperature).mean()
    result = _kd(z, v, temperature, squared)
    assert result.dtype == tf.float32
    assert result.shape == ()
    # log-probabilities are rounded to float32, and their difference is what counts
    largest = np.abs(_log_softmax(np.stack([z, v]) / temperature)).max()
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=factor * EPSILON * largest)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("scale", SCALES)
def test_kd_gradient(scale, classes, temperature, squared):
    z, v = _logits(scale, classes)
    factor = temperature**2 if squared else 1
    expected = factor * _gradient(lambda i, rows: _kl(rows, v[i], temperature), z.astype(np.float64))
    result = _kd_gradient(z, v, temperature, squared)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max() + 1e-9)


def test_kd_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2)
    v, z = np.log([[3.0, 1.0]]), np.log([[2.0, 2.0]])
    forward = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert forward == pytest.approx(0.130812, abs=1e-6)
    assert _kd(z, v, 1.0).numpy() == pytest.approx(forward, rel=1e-5)  # the teacher is the first argument of KL
    assert _kd(v, z, 1.0).numpy() == pytest.approx(backward, rel=1e-5)
    # at T = 2 and logits twice as large the distributions are the same
    assert _kd(2 * z, 2 * v, 2.0, squared=False).numpy() == pytest.approx(forward, rel=1e-5)
    assert _kd(2 * z, 2 * v, 2.0, squared=True).numpy() == pytest.approx(4 * forward, rel=1e-5)


def test_kd_is_a_sum_over_classes():
    # two classes against two hundred of which a hundred share each one's probability: the same divergence
    z, v = np.array([[0.0, 1.0]], np.float32), np.array([[2.0, 0.0]], np.float32)
    expected = _kl(z, v, 1.0)[0]
    assert _kd(z, v, 1.0).numpy() == pytest.approx(expected, rel=1e-5)
    assert _kd(np.repeat(z, 100, axis=1), np.repeat(v, 100, axis=1), 1.0).numpy() == pytest.approx(expected, rel=1e-5)


def test_kd_is_a_mean_over_the_batch():
    z, v = _logits(3.0, 10)
    ones = [_kd(z[i : i + 1], v[i : i + 1], 4.0).numpy() for i in range(len(z))]
    assert _kd(z, v, 4.0).numpy() == pytest.approx(np.mean(ones, dtype=np.float64), rel=1e-5)
    assert _kd(np.tile(z, (3, 1)), np.tile(v, (3, 1)), 4.0).numpy() == pytest.approx(np.mean(ones), rel=1e-5)


@pytest.mark.parametrize("scale", [*SCALES, 1e4])
@pytest.mark.parametrize("classes", CLASSES)
def test_kd_of_a_network_with_itself_is_exactly_zero(scale, classes):
    z, _ = _logits(scale, classes)
    for temperature in (1.0, 3.0, 20.0):
        assert _kd(z, z, temperature).numpy() == 0
        np.testing.assert_allclose(_kd_gradient(z, z, temperature), 0, atol=1e-6)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_kd_of_extreme_logits(temperature, squared):
    high = 1e4
    v = np.array([[high, -high, 0], [-high, high, 0], [high, high, -high]], np.float32)
    z = np.array([[-high, high, 0], [-high, high, 0], [high, -high, high]], np.float32)
    # first: certain of a class whose log-probability is -2e4/T; second: the same; third: half of log 1/2 + 2e4/T
    # less log 1/2 of either, (2e4/T - log 2 + log 2) / 2
    factor = temperature**2 if squared else 1
    expected = factor * (2 * high + 0 + high) / temperature / 3
    assert _kd(z, v, temperature, squared).numpy() == pytest.approx(expected, rel=1e-6)
    p = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]])
    q = np.array([[0, 1, 0], [0, 1, 0], [0.5, 0, 0.5]])
    expected_gradient = factor * (q - p) / temperature / 3
    np.testing.assert_allclose(_kd_gradient(z, v, temperature, squared), expected_gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_kd_of_short_floats_is_computed_in_float32(dtype):
    z, v = (tf.cast(x, dtype) for x in _logits(20.0, 1000))
    short = _kd(z, v, 7.0)
    assert short.dtype == tf.float32
    assert short.numpy() == _kd(tf.cast(z, tf.float32), tf.cast(v, tf.float32), 7.0).numpy()
    exact = 49 * _kl(tf.cast(z, tf.float64).numpy(), tf.cast(v, tf.float64).numpy(), 7.0).mean()
    np.testing.assert_allclose(short.numpy(), exact, rtol=1e-5)
    # large scores and large temperatures overflow float16 on the way: T^2 = 90,000
    large = _kd(tf.constant([[6e4, -6e4]], dtype), tf.constant([[-6e4, 6e4]], dtype), 300.0)
    one = float(tf.cast(tf.constant(6e4, dtype), tf.float64))
    np.testing.assert_allclose(large.numpy(), 300.0**2 * 2 * one / 300.0, rtol=1e-5)


def test_mixed_types_are_allowed():
    z, v = _logits(3.0, 10)
    v16 = v.astype(np.float16)
    np.testing.assert_allclose(_kd(z, v16, 2.0).numpy(), 4 * _kl(z, v16, 2.0).mean(), rtol=1e-5)


def test_kd_does_not_depend_on_the_order_of_the_batch_or_of_the_classes():
    z, v = _logits(3.0, 10, batch=64)
    expected = _kd(z, v, 4.0).numpy()
    rng = np.random.default_rng(1)
    for _ in range(3):
        rows, columns = rng.permutation(64), rng.permutation(10)
        assert _kd(z[rows], v[rows], 4.0).numpy() == pytest.approx(expected, rel=2e-6)
        assert _kd(z[:, columns], v[:, columns], 4.0).numpy() == pytest.approx(expected, rel=2e-6)
        unshuffled = np.empty_like(z)
        unshuffled[rows] = _kd_gradient(z[rows], v[rows], 4.0)
        np.testing.assert_allclose(unshuffled, _kd_gradient(z, v, 4.0), rtol=1e-5, atol=1e-8)


def test_kd_ignores_a_constant_added_to_a_row():
    z, v = _logits(3.0, 10)
    shift = np.array([[-8.0], [0.5], [4.0], [16.0]], np.float32)
    assert _kd(z + shift, v - shift, 3.0).numpy() == pytest.approx(_kd(z, v, 3.0).numpy(), rel=1e-5)


def test_kd_is_never_negative_beyond_rounding():
    for seed in range(20):
        z, v = _logits(1.0, 10, seed=seed)
        assert _kd(z, v, 1.0).numpy() > 0
        assert _kd(z, z + 1e-3 * v, 1.0).numpy() > -EPSILON * 10


# With d = z - v of mean zero over classes and T large, p is uniform up to O(1/T), log p - log q = -d/T + a constant
# that makes both sum to one, and T^2 KL -> variance of d over uniform p / 2 = ||d||^2 / (2 C) per example.
def test_kd_tends_to_half_the_mean_squared_difference_of_zero_mean_logits():
    z, v = (x - x.mean(axis=1, keepdims=True) for x in _logits(2.0, 10, batch=16).astype(np.float64))
    limit = np.mean(np.sum((z - v) ** 2, axis=1) / (2 * 10))
    distances = [abs(_kd(z, v, temperature).numpy() - limit) / limit for temperature in (5.0, 20.0, 80.0)]
    assert distances[0] > 2 * distances[1] > 4 * distances[2]
    assert distances[2] < 0.01
    # the gradient: (z - v) / C of each example's mean over the batch
    gradient = _kd_gradient(z.astype(np.float32), v.astype(np.float32), 1000.0)
    np.testing.assert_allclose(gradient, (z - v) / 10 / 16, atol=0.01 * np.abs(z - v).max() / 10 / 16)


def test_the_factor_keeps_gradients_of_the_same_size_when_temperature_rises():
    z, v = _logits(1.0, 10)
    with_factor = [np.abs(_kd_gradient(z, v, t)).mean() for t in (10.0, 20.0)]
    without = [np.abs(_kd_gradient(z, v, t, squared=False)).mean() for t in (10.0, 20.0)]
    assert with_factor[1] / with_factor[0] == pytest.approx(1, abs=0.1)
    assert without[1] / without[0] == pytest.approx(0.25, abs=0.03)


def test_kd_compiles_with_the_temperature_as_an_input():
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None, 10]), tf.TensorSpec([None, 10]), tf.TensorSpec([])])
    def compiled(z, v, temperature):
        traces.append(1)
        batch = Batch(z, v, temperature=temperature)
        return kd(batch, scale_by_temperature_squared=True, standardise_logits=False)

    z, v = _logits(3.0, 10)
    for temperature in (1.0, 4.0, 9.0):
        expected = temperature**2 * _kl(z, v, temperature).mean()
        assert compiled(z, v, temperature).numpy() == pytest.approx(expected, rel=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("scale", SCALES)
def test_cross_entropy_value_and_gradient(scale, classes):
    z, _ = _logits(scale, classes)
    labels = np.random.default_rng(3).integers(classes, size=len(z)).astype(np.int32)

    def entropy(rows, label):
        return -_log_softmax(rows)[..., label]

    expected = np.mean([entropy(row, label) for row, label in zip(z.astype(np.float64), labels, strict=True)])
    logits = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = cross_entropy(logits, tf.constant(labels))
    assert loss.dtype == tf.float32
    assert loss.shape == ()
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5, atol=1e-7)
    slopes = _gradient(lambda i, rows: entropy(rows, labels[i]), z.astype(np.float64))
    np.testing.assert_allclose(tape.gradient(loss, logits).numpy(), slopes, rtol=1e-4, atol=1e-6)


def test_cross_entropy_of_extreme_and_short_logits():
    z = np.array([[1e4, -1e4, 0], [1e4, -1e4, 0], [1e4, 1e4, -1e4]], np.float32)
    labels = np.array([0, 1, 1], np.int32)
    expected = (0 + 2e4 + math.log(2)) / 3
    assert cross_entropy(tf.constant(z), labels).numpy() == pytest.approx(expected, rel=1e-6)
    for dtype in ("float16", "bfloat16"):
        short = tf.cast(z, dtype)
        one = float(tf.cast(short, tf.float64)[0, 0])
        result = cross_entropy(short, labels)
        assert result.dtype == tf.float32
        assert result.numpy() == pytest.approx((2 * one + math.log(2)) / 3, rel=1e-6)
