"""Runs that stop at a step chosen beforehand, after their best epoch, and go on: with the bits of an undisturbed one.

An objective sends the signal from inside the compiled step, so that nothing depends on the clock. The rate rises until
it harms: the best weights are those of the first epoch, which only a training state knows when the run goes on.
"""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
from held import arrays, bits
from processes import Kdrun

from kdrun.cli.main import main
from kdrun.registry import register
from kdrun.runs import record as runs
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.objectives.logits import kd  # noqa: E402
from kdrun.training import network  # noqa: E402

STEPS, EPOCHS = 8, 4  # an epoch, and a run
SIGNAL: dict[int, int] = {}  # the signal to send at a step, counted from 0


@register("objective", "interrupting")
def interrupting(batch):
    """kd; at some steps it sends this process a signal."""

    def send(step: np.ndarray) -> None:
        if number := SIGNAL.pop(int(step), 0):
            os.kill(os.getpid(), number)

    if not tf.executing_eagerly():
        tf.numpy_function(send, [batch.random_seed[1]], [], stateful=True)
    return kd(batch, scale_by_temperature_squared=True, standardise_logits=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the objective's config is, and images in a file of the user's own."""
    folder = tmp_path_factory.mktemp("going_on")
    (folder / "conf/objective").mkdir(parents=True)
    (folder / "conf/objective/interrupting.yaml").write_text(
        "# @package _global_\nobjective:\n  interrupting: {weight: 1.0, weight_end: null, warmup_epochs: 0.0}\n"
    )
    arrays = {}
    for split, count in (("train", 100 + 32 * STEPS), ("test", 60)):
        images, arrays[f"y_{split}"] = reference.split("test" if split == "test" else "train", 0, count, count)
        arrays[f"x_{split}"] = (images * 255).round().astype(np.uint8)
    np.savez(folder / "own.npz", **arrays)
    return folder


def command(folder: Path) -> list[str]:
    """A student with dropout and its peer, which learn from each other."""
    given = ["--config-dir", str(folder / "conf"), "stage=mutual", "objective=interrupting", "temperature=2"]
    given += ["data=npz", f"data.path={folder / 'own.npz'}", "data.image_size=28", "data.validation_size=100"]
    given += ["data.split=first"]
    given += ["model@teacher.model=mlp", "model@student.model=mlp", "student.model.hidden_units=[12]"]
    given += ["student.model.hidden_dropout=0.5", "batch_size=32", f"epochs={EPOCHS}", "optimizer=sgd", "alpha=0.1"]
    given += ["optimizer.learning_rate=3", f"optimizer.warmup_epochs={EPOCHS}"]
    return [*given, "measure_latency=false", "tensorboard.histograms=false"]


def stopped(outputs: Path, folder: Path, **signals) -> Path:
    """The run directory of the command, which got signals at those steps."""
    network.release()
    SIGNAL.clear()
    SIGNAL.update(signals.get("at", {}))
    code = main([*command(folder), f"outputs={outputs}"])
    assert not SIGNAL
    assert code == (128 + signal.SIGTERM if signal.SIGTERM in signals.get("at", {}).values() else 0)
    (run_json,) = outputs.glob("distill/*/run.json")
    return run_json.parent


def going_on(run_dir: Path, folder: Path) -> list[str]:
    return ["--config-dir", str(folder / "conf"), f"resume={run_dir}", f"outputs={run_dir.parents[1]}"]


def resumed(run_dir: Path, folder: Path) -> int:
    network.release()
    SIGNAL.clear()
    return main(going_on(run_dir, folder))


@pytest.fixture(scope="module")
def undisturbed(folder) -> Path:
    return stopped(folder / "undisturbed", folder)


def step_of(run_dir: Path) -> int:
    """How many steps its newest training state has seen."""
    return max(int(path.name.split("-")[1]) for path in (run_dir / "checkpoints").glob("state-*"))


def assert_same(run_dir: Path, other: Path) -> None:
    assert bits(run_dir) == bits(other)
    assert arrays(run_dir / "checkpoints/peer1.weights.h5") == arrays(other / "checkpoints/peer1.weights.h5")
    found, expected = (
        {name: reference.record(run)["results"][name] for name in ("validation", "test", "peers", "steps")}
        for run in (run_dir, other)
    )
    assert found == expected


def test_the_best_weights_are_far_from_the_last(undisturbed):
    """Without which nothing below would be shown."""
    validation = reference.record(undisturbed)["results"]["validation"]
    assert validation["best"]["epoch"] == 1
    assert validation["best"]["cross_entropy"] < 0.95 * validation["last"]["cross_entropy"]
    test = reference.record(undisturbed)["results"]["test"]
    assert test["best"]["cross_entropy"] < test["last"]["cross_entropy"]
    z = reference.logits(undisturbed, "best", reference.split("test", 0, test=60)[0])
    np.testing.assert_allclose(np.load(undisturbed / "predictions/test.npz")["logits"], z, rtol=1e-3, atol=1e-3)


STOPS = {
    "in the middle of the first epoch": 3,
    "in the middle of an epoch after the best one": 2 * STEPS + 3,
    "after the last step": EPOCHS * STEPS - 1,
}


@pytest.fixture(scope="module")
def at_a_stop(folder) -> Callable[[int], Path]:
    """A run that was stopped at a step; made once for each."""

    def make(step: int) -> Path:
        outputs = folder / f"stopped{step}"
        if not outputs.exists():
            stopped(outputs, folder, at={step: signal.SIGTERM})
        return next(outputs.glob("distill/*"))

    return make


@pytest.fixture
def copied(at_a_stop, tmp_path) -> Callable[[int], Path]:
    """A copy of it."""

    def copy(step: int) -> Path:
        run_dir = at_a_stop(step)
        shutil.copytree(run_dir.parents[1], tmp_path / "outputs")
        return tmp_path / "outputs/distill" / run_dir.name

    return copy


@pytest.mark.parametrize("step", STOPS.values(), ids=STOPS)
def test_a_run_that_stopped_goes_on_with_the_same_bits(step, copied, undisturbed, folder):
    run_dir = copied(step)
    assert runs.read(run_dir)["status"] == "interrupted"
    at = step_of(run_dir)
    assert step < at <= EPOCHS * STEPS
    if step < EPOCHS * STEPS - 1:
        assert at % STEPS != 0  # in the middle of an epoch, for certain
    else:
        assert (run_dir / f"checkpoints/state-{at}-unvalidated").is_dir()
    lines = (run_dir / "metrics.jsonl").read_text() if step > STEPS else ""
    assert lines.count("\n") == 2 * (step // STEPS)
    # what the folder holds beside the state counts for nothing
    for name in ("best", "last"):
        (run_dir / f"checkpoints/{name}.weights.h5").unlink(missing_ok=True)
    assert resumed(run_dir, folder) == 0
    assert_same(run_dir, undisturbed)


def test_a_state_saved_in_the_middle_of_an_epoch_changes_nothing(undisturbed, folder, tmp_path):
    run_dir = stopped(tmp_path, folder, at={2: signal.SIGUSR1, 2 * STEPS + 2: signal.SIGUSR1})
    assert (run_dir / "kdrun.log").read_text().count("saved a training state at step") == 2
    assert_same(run_dir, undisturbed)


def test_a_data_file_that_changed_meanwhile_is_refused(copied, folder):
    """By a pixel, or a label; and nothing is written. In a process of its own: one reads a file but once."""
    run_dir, own = copied(STOPS["in the middle of an epoch after the best one"]), folder / "own.npz"
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    good = own.read_bytes()
    with np.load(own) as saved:
        held = dict(saved)
    try:
        for name, place in (("x_train", (300, 14, 14, 0)), ("y_test", (7,))):
            changed = held[name].copy()
            changed[place] = (int(changed[place]) + 1) % 10
            np.savez(own, **{**held, name: changed})
            process = Kdrun([*going_on(run_dir, folder), f"plugins=[{__file__}]"], run_dir.parents[1])
            assert process.wait() == 2
            (line,) = (line for line in process.said().splitlines() if line.startswith("kdrun: "))
            assert "dataset" in line and "changed" in line
            assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    finally:
        own.write_bytes(good)
