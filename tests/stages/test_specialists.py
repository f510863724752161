"""Specialists: how they begin, what they are told apart from, and how they are heard, by NumPy from the weights."""

from pathlib import Path

import numpy as np
import pytest
import reference

from kdrun.cli.main import main
from kdrun.runtime import tensorflow as startup
from kdrun.stages.specialists import combined, confusable

startup.load_tensorflow()

SIZES = {"validation": 200, "train": 640, "test": 250}
COMMON = [*(f"data.{split}_size={size}" for split, size in SIZES.items()), "data.image_size=28", "batch_size=32"]
COMMON += ["model@teacher.model=mlp", "teacher.model.hidden_units=[12]", "model@student.model=mlp", "optimizer=sgd"]
COMMON += ["measure_latency=false", "tensorboard.histograms=false"]
HARMS = ["optimizer.learning_rate=2", "optimizer.warmup_epochs=3"]  # a rate that rises until it harms


def only(outputs: Path, stage: str) -> Path:
    (found,) = outputs.glob(f"{stage}/*/run.json")
    return found.parent


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """A generalist whose last epoch is not its best, and below `still` and `trained` one specialist of two classes.

    The first is trained at a rate at which no weight changes, the other like the generalist.
    """
    outputs = tmp_path_factory.mktemp("specialists")
    assert main([*COMMON, *HARMS, "stage=teacher", "epochs=3", f"outputs={outputs}"]) == 0
    command = [*COMMON, "stage=specialists", f"run={only(outputs, 'teacher')}", "clusters=9"]
    still = ["optimizer.learning_rate=1e-30", "optimizer.momentum=0", "specialist.epochs=1"]
    assert main([*command, *still, f"outputs={outputs / 'still'}"]) == 0
    assert main([*command, *HARMS, "specialist.epochs=3", f"outputs={outputs / 'trained'}"]) == 0
    return outputs


def generalist(outputs: Path, split: str) -> np.ndarray:
    return reference.logits(only(outputs, "teacher"), "best", reference.split(split, **SIZES)[0])


def classes_of(outputs: Path) -> list[int]:
    (found,) = reference.record(only(outputs / "still", "specialists"))["results"]["specialists"]
    return found["classes"]


def relabelled(labels: np.ndarray, classes: list[int]) -> np.ndarray:
    """A class is its place among the specialist's own; all others are one, the last."""
    return np.array([classes.index(label) if label in classes else len(classes) for label in labels])


def test_best_weights_are_not_the_last(outputs):
    """Without which nothing below would be shown."""
    for run_dir in (only(outputs, "teacher"), only(outputs / "trained", "specialist")):
        validation = reference.record(run_dir)["results"]["validation"]
        assert validation["best"]["cross_entropy"] < 0.9 * validation["last"]["cross_entropy"]


def test_a_specialist_has_the_two_classes_that_the_generalist_confuses(outputs):
    z = generalist(outputs, "validation")
    log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
    assert [classes_of(outputs)] == confusable(log_p, 9)
    assert len(classes_of(outputs)) == 2


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_specialist_begins_as_the_generalist_with_one_column_for_all_others(which, outputs):
    classes = classes_of(outputs)
    others = [label for label in range(10) if label not in classes]
    began = reference.network(only(outputs / "still", "specialist"), which)
    best = reference.network(only(outputs, "teacher"), "best")
    kernel, bias = (array.astype(np.float64) for array in best.get_layer("classifier").get_weights())
    assert np.abs(bias).min() > 1e-4
    for found, whole in zip(began.get_layer("classifier").get_weights(), (kernel, bias), strict=True):
        mean = sum(whole[..., [label]] for label in others) / len(others)
        expected = np.concatenate([whole[..., [label]] for label in classes] + [mean], axis=-1)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    for found, expected in zip(
        began.get_layer("hidden1").get_weights(), best.get_layer("hidden1").get_weights(), strict=True
    ):
        assert np.array_equal(found, expected)


def test_its_labels_are_places_among_its_classes_and_the_others_the_last(outputs):
    run_dir, classes = only(outputs / "still", "specialist"), classes_of(outputs)
    images, labels = reference.split("test", **SIZES)
    labels = relabelled(labels, classes)
    assert (np.load(run_dir / "predictions/test.npz")["labels"] == labels).all()
    expected = reference.measures(reference.logits(run_dir, "last", images), labels)
    found = reference.record(run_dir)["results"]["test"]["last"]
    assert found["cross_entropy"] == pytest.approx(expected["cross_entropy"], rel=1e-5)
    assert found["count"] == 250 and abs(found["errors"] - expected["errors"]) <= 1


def test_half_of_what_it_learns_from_is_all_of_its_classes(outputs):
    """What it loses, before it has learned anything, is between the least and the most that drawn others allow."""
    run_dir, classes = only(outputs / "still", "specialist"), classes_of(outputs)
    found = reference.record(run_dir)["results"]
    for split in ("train", "validation"):
        images, labels = reference.split(split, **SIZES)
        labels, z = relabelled(labels, classes), reference.logits(run_dir, "last", images)
        losses = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), labels]
        ours, others = losses[labels < 2], np.sort(losses[labels == 2])
        count = len(ours)
        low, high = ((ours.sum() + some.sum()) / (2 * count) for some in (others[:count], others[-count:]))
        if split == "validation":
            assert found[split]["last"]["count"] == 2 * count
            assert low < found[split]["last"]["cross_entropy"] < high
        else:
            assert found["steps"] == -(-2 * count // 32)
            assert found["dustbin_shift"] == pytest.approx(np.log(len(others) / count))
            assert found["dustbin_shift"] > 0.5


@pytest.mark.parametrize("kind", ["still", "trained"])
def test_all_together_are_the_generalist_and_the_best_specialist_its_dustbin_raised(kind, outputs):
    classes, results = classes_of(outputs), reference.record(only(outputs / kind, "specialists"))["results"]
    images, labels = reference.split("test", **SIZES)
    z = generalist(outputs, "test")
    log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
    ours = reference.logits(only(outputs / kind, "specialist"), "best", images)
    ours[:, 2] += results["specialists"][0]["dustbin_shift"]
    q = combined(log_p, [(classes, ours - np.logaddexp.reduce(ours, axis=1, keepdims=True))])
    among = np.isin(labels, classes)
    whole, together = (reference.measures(each, labels) for each in (z, np.log(q)))
    of_classes = [reference.measures(each[among], labels[among]) for each in (z, np.log(q))]
    (found,) = results["specialists"]
    named = (results["generalist"]["test"], results["combined"]["test"], *found["test_of_classes"].values())
    for said, expected in zip(named, (whole, together, *of_classes), strict=True):
        assert said["cross_entropy"] == pytest.approx(expected["cross_entropy"], rel=1e-4)
        assert said["count"] == expected["count"] and abs(said["errors"] - expected["errors"]) <= 1
    alone = reference.logits(only(outputs / kind, "specialist"), "best", images)
    expected = reference.measures(alone, relabelled(labels, classes))
    assert found["test"]["cross_entropy"] == pytest.approx(expected["cross_entropy"], rel=1e-4)
    assert abs(together["cross_entropy"] / whole["cross_entropy"] - 1) > 1e-3  # the specialist makes a difference
