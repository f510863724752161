"""Metrics of a whole split, against one image at a time."""

import math

import numpy as np
import pytest

from kdrun.evaluation import metrics


def _probabilities(row):
    """Softmax of one row of logits by exact summation."""
    largest = max(row)
    exponentials = [math.exp(x - largest) for x in row]
    total = math.fsum(exponentials)
    return [e / total for e in exponentials]


def _logits(scale, classes, count=37, seed=0):
    return np.random.default_rng([seed, classes]).normal(size=(count, classes)) * scale


@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_evaluate_against_one_image_at_a_time(scale, classes, dtype):
    z, v = _logits(scale, classes).astype(dtype), _logits(scale, classes, seed=1).astype(dtype)
    v[::3] = z[::3]  # some that agree
    labels = np.random.default_rng(2).integers(classes, size=len(z))
    labels[::2] = z[::2].argmax(axis=1)  # some that are right
    entropies, divergences, errors, agreed = [], [], 0, 0
    for z_row, v_row, label in zip(z.tolist(), v.tolist(), labels.tolist(), strict=True):
        q, p = _probabilities(z_row), _probabilities(v_row)
        entropies.append(-math.log(q[label]))
        divergences.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        errors += z_row.index(max(z_row)) != label
        agreed += z_row.index(max(z_row)) == v_row.index(max(v_row))
    assert 0 < errors < len(z)
    assert 0 < agreed < len(z)
    results = metrics.evaluate(z, labels, v)
    assert results == {
        "accuracy": pytest.approx((len(z) - errors) / len(z), rel=1e-12),
        "errors": errors,
        "count": len(z),
        "cross_entropy": pytest.approx(math.fsum(entropies) / len(z), rel=1e-10),
        "teacher_kl": pytest.approx(math.fsum(divergences) / len(z), rel=1e-9, abs=1e-14),
        "teacher_agreement": pytest.approx(agreed / len(z), rel=1e-12),
    }
    assert {name: type(value) for name, value in results.items()} == {
        name: int if name in ("errors", "count") else float
        for name in results  # what JSON can hold
    }


def test_without_a_teacher_nothing_is_said_of_one():
    z = _logits(1, 4)
    assert set(metrics.evaluate(z, np.zeros(len(z), int))) == {"accuracy", "errors", "count", "cross_entropy"}


def test_log_softmax_sums_to_one_and_ignores_shifts():
    z = _logits(5, 10)
    log_q = metrics.log_softmax(z.astype(np.float32))
    assert log_q.dtype == np.float64
    np.testing.assert_allclose(np.exp(log_q).sum(axis=1), 1, rtol=1e-14)
    shifts = np.linspace(-700, 700, len(z))[:, np.newaxis]
    np.testing.assert_allclose(metrics.log_softmax(z + shifts), metrics.log_softmax(z), atol=1e-11)


def test_extreme_logits():
    z = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [1e4, 1e4, -1e4]])
    v = np.array([[-1e4, 1e4, 0], [-1e4, 1e4, 0], [1e4, 1e4, -1e4]])
    results = metrics.evaluate(z, np.array([1, 1, 0]), v)
    assert results["cross_entropy"] == pytest.approx((2e4 + 0 + math.log(2)) / 3, rel=1e-14)
    assert results["teacher_kl"] == pytest.approx(2e4 / 3, rel=1e-14)  # 1 * (0 - -2e4) in the first row, 0 elsewhere
    assert results["errors"] == 1
    assert results["teacher_agreement"] == pytest.approx(2 / 3)


def test_the_divergence_is_from_teacher_to_student():
    p, q = np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]])
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2)
    results = metrics.evaluate(np.log(q), np.array([0]), np.log(p))
    assert results["teacher_kl"] == pytest.approx(forward, rel=1e-12)
    assert abs(forward - backward) > 1e-2


def test_nothing_parts_a_network_from_itself():
    z = _logits(3, 10)
    results = metrics.evaluate(z, z.argmax(axis=1), z)
    assert results["teacher_kl"] == 0
    assert results["teacher_agreement"] == results["accuracy"] == 1
    assert results["errors"] == 0


def test_agreement_counts_classes_not_logits():
    z = np.array([[1, 2, 3], [3, 2, 1], [0, 9, 0], [0, 0, 1]])
    other = np.array([[0, 0, 1], [1, 2, 3], [1, 2, 1], [5, 0, 4]])
    assert metrics.agreement(z, other) == 0.5
    assert metrics.agreement(other, z) == 0.5
    assert metrics.agreement(z, z * 100.0) == 1


def test_a_tie_goes_to_the_lowest_class():
    tied = np.array([[2, 2, 1], [1, 2, 2], [0, 0, 0]], np.float32)
    assert metrics.evaluate(tied, np.array([0, 1, 0]))["errors"] == 0
    assert metrics.evaluate(tied, np.array([1, 2, 2]))["errors"] == 3
    assert metrics.agreement(tied, np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]])) == 1


def test_tiny_differences_of_large_means_are_not_lost():
    z = np.array([[1000.0, 1000.0 + 1e-3]])
    expected = math.log1p(math.exp(1e-3))
    assert metrics.evaluate(z, np.array([0]))["cross_entropy"] == pytest.approx(expected, rel=1e-9)
