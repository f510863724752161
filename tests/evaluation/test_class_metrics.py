"""Metrics by class against loops over images, in float64, written from their definitions."""

import numpy as np
import pytest
import reference

from kdrun.evaluation import by_class

CASES = {
    "two classes": (2, [0, 1]),
    "ten classes": (10, range(10)),
    "one without test images": (5, [0, 1, 3, 4]),
    "the last one without": (5, [0, 1, 2, 3]),
    "one class alone has images": (4, [2]),
    "a hundred": (100, range(100)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("never", [(), (1,)], ids=["", "class 1 is never predicted"])
def test_they_are_what_loops_over_images_give(case, never):
    (classes, present), random = CASES[case], np.random.default_rng(7)
    labels = np.array([*present, *random.choice(list(present), 300)], np.int32)
    z = random.normal(0, 1, (len(labels), classes))
    z[np.arange(len(labels)), labels] += 1.5
    z[:, list(never)] = -20
    expected = reference.by_class(z, labels)
    found = by_class.evaluate(z.astype(np.float32), labels)
    assert found["class_accuracy"] == expected["class_accuracy"]  # quotients of the same two numbers
    assert found["balanced_accuracy"] == pytest.approx(expected["balanced_accuracy"], rel=1e-14)
    assert by_class.recorded_confusion(z, labels) == {"confusion": expected["confusion"]}
    assert [value is None for value in found["class_accuracy"]] == [label not in present for label in range(classes)]
    assert {type(value) for value in found["class_accuracy"]} <= {float, type(None)}  # what JSON can hold
    if never and 1 in present:
        assert found["class_accuracy"][1] == 0
    alike = reference.measures(z, labels)
    assert {name: found[name] for name in alike} == {name: pytest.approx(value) for name, value in alike.items()}


def test_where_classes_are_equally_many_balanced_accuracy_is_accuracy():
    labels = np.arange(400) % 4
    z = np.random.default_rng(0).normal(0, 1, (400, 4))
    found = by_class.evaluate(z, labels)
    assert found["balanced_accuracy"] == pytest.approx(found["accuracy"], rel=1e-14)
    rarer = np.concatenate([np.flatnonzero(labels == label)[: 100 // (label + 1)] for label in range(4)])
    found = by_class.evaluate(np.where(labels[:, None] == [0, 1, 2, 3], 1.0, 0.0)[rarer] * [1, 0, 1, 0], labels[rarer])
    assert found["balanced_accuracy"] == 0.5 != found["accuracy"]


def test_of_more_than_a_hundred_classes_there_is_no_matrix():
    z = np.eye(101)
    assert by_class.recorded_confusion(z, np.arange(101)) == {}
    assert len(by_class.evaluate(z, np.arange(101))["class_accuracy"]) == 101
