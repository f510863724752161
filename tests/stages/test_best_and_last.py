"""Best or last, in inference mode: runs whose first epoch is the best, against a plain forward pass of their weights.

The rate rises until it harms, so that the best weights and the last ones are far apart in everything that is said of
them. The teacher normalises by batch statistics and the students drop units, so that numbers made in training mode, or
with a batch's own statistics, are far off, too.
"""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import reference
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kdrun
from kdrun.cli.main import main
from kdrun.data import datasets
from kdrun.reports import figures, jobs, plots
from kdrun.runs import record as runs
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

SIZES = {"validation": 200, "train": 1280, "test": 230}
COMMON = [*(f"data.{split}_size={size}" for split, size in SIZES.items()), "data.image_size=28", "batch_size=32"]
COMMON += ["epochs=3", "optimizer.warmup_epochs=3", "measure_latency=false", "tensorboard.histograms=false"]
COMMON += ["evaluation_batch_size=90"]  # the last batch of each split is filled up
COMMON += ["model@teacher.model=densenet", "teacher.model.blocks=[1,1]", "teacher.model.growth_rate=4"]
COMMON += ["model@student.model=mlp", "student.model.hidden_units=[16]", "student.model.hidden_dropout=0.5"]
TEACHER = [*COMMON, "stage=teacher", "optimizer=adam", "optimizer.learning_rate=0.1"]
STUDENT = [*COMMON, "optimizer=sgd", "optimizer.learning_rate=1", "temperature=2", "alpha=0.2"]
STAGES = ("teacher", "student", "distill")
DIGITS = [str(number) for number in range(10)]


def only(outputs: Path, stage: str) -> Path:
    (found,) = outputs.glob(f"{stage}/*/run.json")
    return found.parent


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """The outputs of a teacher, and of a pipeline with it."""
    outputs = tmp_path_factory.mktemp("best_and_last")
    assert main([*TEACHER, f"outputs={outputs}"]) == 0
    command = [*STUDENT, f"outputs={outputs}", f"teacher.run={only(outputs, 'teacher')}"]
    assert main(command) == 0
    return outputs


@pytest.fixture(scope="module")
def trained(outputs) -> dict[str, Path]:
    return {stage: only(outputs, stage) for stage in (*STAGES, "pipeline")}


@pytest.fixture(scope="module")
def said(trained) -> dict:
    """Logits by stage, weights and split, of a plain forward pass; and the splits."""
    splits = {name: reference.split(name, **SIZES) for name in ("train", "validation", "test")}
    found = {
        (stage, which, name): reference.logits(trained[stage], which, splits[name][0])
        for stage in STAGES
        for which in ("best", "last")
        for name in ("validation", "test")
    }
    found["teacher", "best", "train"] = reference.logits(trained["teacher"], "best", splits["train"][0])
    return found | splits


def measured(said, stage: str, which: str, split: str) -> dict:
    """What run.json should say: a distilled student is held against its teacher's best weights."""
    teacher = said["teacher", "best", split] if stage == "distill" else None
    return reference.measures(said[stage, which, split], said[split][1], teacher)


def assert_measured(found, expected) -> None:
    """As float32 logits have it; an image on a border between two classes may fall on either side."""
    assert found["count"] == expected["count"]
    for name, value in expected.items():
        if name in ("accuracy", "teacher_agreement"):
            assert found[name] == pytest.approx(value, abs=1.5 / expected["count"]), name
        elif name == "errors":
            assert found[name] == pytest.approx(value, abs=1.5), name
        else:
            assert found[name] == pytest.approx(value, rel=1e-4), name


def lines(run_dir: Path, split: str) -> list[dict]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


@pytest.mark.parametrize("stage", STAGES)
def test_the_best_epoch_is_that_of_the_lowest_validation_cross_entropy(stage, trained):
    """And it is the first one in all of them, far from the last, without which the tests below would show nothing."""
    losses = [line["cross_entropy"] for line in lines(trained[stage], "validation")]
    assert losses[0] == min(losses) < 0.9 * losses[2]
    found = reference.record(trained[stage])["results"]["validation"]
    assert found["best"]["epoch"] == 1
    assert found["last"]["epoch"] == 3
    for which in ("best", "last"):
        line = lines(trained[stage], "validation")[found[which]["epoch"] - 1]
        assert found[which] == {key: line[key] for key in found[which]}


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_recorded_of_weights_is_what_they_give(stage, which, trained, said):
    found = reference.record(trained[stage])["results"]
    other = "last" if which == "best" else "best"
    for split in ("validation", "test"):
        assert_measured(found[split][which], measured(said, stage, which, split))
        with pytest.raises(AssertionError):  # the test would notice
            assert_measured(found[split][which], measured(said, stage, other, split))
    predictions = np.load(trained[stage] / "predictions/test.npz")
    z = predictions["logits" if which == "best" else "last_logits"]
    expected = said[stage, which, "test"]
    np.testing.assert_allclose(z, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert (predictions["labels"] == said["test"][1]).all()
    # of the very logits that were written down, to the last digits
    teacher = np.load(trained["teacher"] / "predictions/test.npz")["logits"] if stage == "distill" else None
    exact = reference.measures(z.astype(np.float64), said["test"][1], teacher)
    for name in ("accuracy", "errors", "count", "cross_entropy"):
        assert found["test"][which][name] == pytest.approx(exact[name], rel=1e-12)


@pytest.mark.parametrize("stage", STAGES)
def test_evaluate_finds_both(stage, trained, said, tmp_path):
    assert main(["stage=evaluate", f"run={trained[stage]}", f"outputs={tmp_path}"]) == 0
    found = reference.record(only(tmp_path, "evaluate"))["results"]
    for which in ("best", "last"):
        expected = measured(said, stage, which, "test")
        assert_measured({**expected, **found[which]}, expected)


def test_tables_hold_the_best_weights(outputs, trained, said):
    rows = kdrun.frame(outputs).set_index("stage")
    recorded = {row["stage"]: row for row in reference.record(trained["pipeline"])["results"]["runs"]}
    groups = json.loads((trained["pipeline"] / "comparison.json").read_text())["groups"].values()
    grouped = {group["stage"]: group for group in groups}
    for stage in STAGES:
        test, validation = (measured(said, stage, "best", split) for split in ("test", "validation"))
        p, labels = reference.softmax(said[stage, "best", "test"]), said["test"][1]
        brier = np.mean(np.sum((p - np.eye(10)[labels]) ** 2, axis=1))
        for row in (rows.loc[stage], grouped[stage]):
            named = {"accuracy": row["test_accuracy"], **{key: row[key] for key in test if key != "accuracy"}}
            assert_measured(named, test)
            assert row["validation_accuracy"] == pytest.approx(validation["accuracy"], abs=0.0051)
            assert row["brier"] == pytest.approx(brier, rel=1e-4)
            assert row["calibration_error"] == pytest.approx(_calibration_error(p, labels), abs=0.006)
        assert rows.loc[stage, "validation_cross_entropy"] == pytest.approx(validation["cross_entropy"], rel=1e-4)
        assert_measured(recorded[stage]["test"], test)
        assert_measured(recorded[stage]["test_last"], measured(said, stage, "last", "test"))
        agreement = reference.measures(said[stage, "best", "test"], labels, said["teacher", "best", "test"])
        assert recorded[stage]["teacher_agreement"] == pytest.approx(agreement["teacher_agreement"], abs=0.0066)


def _calibration_error(p: np.ndarray, labels: np.ndarray) -> float:
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    total = 0.0
    for low in np.arange(15) / 15:
        here = (confidence > low) & (confidence <= low + 1 / 15)
        total += abs(confidence[here].sum() - right[here].sum())
    return total / len(labels)


def test_what_is_printed_says_which(trained):
    log = (trained["pipeline"] / "kdrun.log").read_text()
    for stage, name in zip(STAGES, ("teacher", "student alone", "distilled student"), strict=True):
        test = reference.record(trained[stage])["results"]["test"]
        cells = [cell.strip() for cell in re.search(rf"│ {name} .*", log)[0].strip("│").split("│")]
        best, last = test["best"], test["last"]
        assert cells[2:5] == [f"{best['accuracy']:.2%}", str(best["errors"]), f"{best['cross_entropy']:.4f}"]
        assert cells[6] == f"{last['accuracy']:.2%}"
        own = (trained[stage] / "kdrun.log").read_text()
        assert f"test accuracy {best['accuracy']:.4f} (best by validation), {last['accuracy']:.4f} (last)" in own
        assert [line.endswith("best") for line in own.splitlines() if " epoch " in line] == [True, False, False]


def test_a_sweeps_table_shows_the_best_weights(trained, caplog):
    for run_dir in (
        trained[stage] for stage in STAGES
    ):  # one by one: a pipeline's parts may have begun in the same second
        found = runs.read(run_dir)
        caplog.clear()
        with caplog.at_level(logging.INFO, "kdrun"):
            assert jobs.show({run_dir: found}, {run_dir.name}, 1)
        (cells,) = re.finditer(rf"{run_dir.name}\s*│ completed │(.*)│(.*)│", caplog.text)
        best = [f"{found['results'][split]['best']['accuracy']:.2%}" for split in ("validation", "test")]
        assert [cell.strip() for cell in cells[0].split("│")[2:4]] == best


def test_curves_and_pictures_are_of_the_best_weights(trained, said, tmp_path):
    """TensorBoard's test scalars and confusion matrix, and the comparison's figures."""
    best = {stage: said[stage, "best", "test"] for stage in STAGES}
    labels = said["test"][1]
    for stage in STAGES:
        shown = EventAccumulator(str(trained[stage] / "tensorboard/test")).Reload()
        for name, value in reference.record(trained[stage])["results"]["test"]["best"].items():
            if name == "class_accuracy":  # no number, but in the pictures
                continue
            (event,) = shown.Tensors(f"test/{name}")
            assert tf.make_ndarray(event.tensor_proto) == pytest.approx(value, rel=1e-6)
        (tmp_path / stage / "predictions").mkdir(parents=True)
        np.savez(tmp_path / stage / "predictions/test.npz", labels=labels, logits=best[stage])
        images = (said["test"][0] * 255).round().astype(np.uint8)
        drawn = figures.of_predictions(datasets.Split(images, labels), tmp_path / stage, DIGITS)["confusion_matrix"]
        (event,) = shown.Images("confusion_matrix")
        assert np.array_equal(tf.io.decode_png(event.encoded_image_string).numpy(), drawn)
    found = {stage: [str(trained[stage])] for stage in STAGES}
    lines = plots.reliability(found).axes[0].lines
    curves = {line.get_label().partition(", ECE")[0]: line.get_ydata() for line in lines}
    for stage, name in zip(STAGES, ("teacher", "student alone", "distilled student"), strict=True):
        p = reference.softmax(best[stage])
        confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
        which = np.ceil(confidence * 15).astype(int)
        numbers, filled = np.unique(which, return_counts=True)
        expected = [right[which == number].mean() for number in numbers[filled >= min(10, filled.max())]]
        np.testing.assert_allclose(curves[name], expected, atol=0.02)
    counts = {stage: np.zeros((10, 10)) for stage in ("distill", "student")}
    for stage, table in counts.items():
        np.add.at(table, (labels, best[stage].argmax(axis=1)), 1)
    difference = (counts["distill"] - counts["student"]) * (1 - np.eye(10))
    (shown,) = plots.confusion_difference(found["distill"], found["student"], DIGITS).axes[0].images
    assert np.abs(shown.get_array() - difference).sum() <= 2


# Who teaches


def test_a_teacher_teaches_with_its_best_weights_in_inference_mode(outputs, trained, said):
    """What is kept of it, and whose weights the student's record names."""
    (entry,) = (path.parent for path in outputs.glob(".cache/teachers/*/train.npy"))
    for split in ("train", "validation", "test"):
        kept = np.load(entry / f"{split}.npy").reshape(-1, 10)
        expected = said["teacher", "best", split]
        np.testing.assert_allclose(kept, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    (teacher,) = reference.record(trained["distill"])["teachers"]
    files = reference.record(trained["teacher"])["files"]
    assert teacher["weights_sha256"] == files["checkpoints/best.weights.h5"] != files["checkpoints/last.weights.h5"]


def test_biases_are_adjusted_from_the_best_weights_on(trained, said, tmp_path):
    assert main(["stage=adjust_bias", f"run={trained['student']}", "classes=[3]", f"outputs={tmp_path}"]) == 0
    adjusted = only(tmp_path, "adjust_bias")
    results = reference.record(adjusted)["results"]
    for split in ("validation", "test"):
        assert_measured(results[split]["before"], measured(said, "student", "best", split))
        shifted = said["student", "best", split] + results["shift"] * (np.arange(10) == 3)
        for which in ("best", "last"):  # both of its files hold the one network that there is
            assert_measured(results[split][which], reference.measures(shifted, said[split][1]))
            z = reference.logits(adjusted, which, said[split][0])
            np.testing.assert_allclose(z, shifted, rtol=1e-3, atol=1e-4 * np.abs(shifted).max())
    np.testing.assert_allclose(np.load(adjusted / "predictions/test.npz")["logits"], shifted, rtol=1e-3, atol=1e-3)


def test_generations_are_judged_and_taught_by_the_best_weights(outputs, said):
    assert main([*STUDENT, "stage=generations", "generations=1", f"outputs={outputs}"]) == 0
    results = reference.record(only(outputs, "generations"))["results"]
    first, second = (Path(row["run"]) for row in results["generations"])
    (teacher,) = reference.record(second)["teachers"]
    assert teacher["weights_sha256"] == reference.record(first)["files"]["checkpoints/best.weights.h5"]
    images, labels = said["test"]
    found = [reference.logits(run, "best", images) for run in (first, second)]
    for row, z in zip(results["generations"], found, strict=True):
        assert_measured(row["test"], reference.measures(z, labels))
    mean = np.log(np.mean([reference.softmax(z) for z in found], axis=0))
    assert_measured(results["ensemble"]["test"], reference.measures(mean, labels))
