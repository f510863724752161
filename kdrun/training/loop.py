"""The training loop: what happens between calls of the compiled steps. Validation, best and last weights, states.

Ours because `fit` can neither resume in mid-epoch, nor stop at a signal between steps, nor say why a loss diverged.
"""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdrun.data.datasets import Dataset
from kdrun.errors import Diverged, Lost, Stopped
from kdrun.evaluation import by_class, metrics
from kdrun.evaluation.inference import logits
from kdrun.models.weights import load_weights, save_weights
from kdrun.runs import predictions
from kdrun.runs.run_json import MEASURED
from kdrun.runtime import signals
from kdrun.storage import files
from kdrun.storage.forms import count, number, problem
from kdrun.tracking.tracker import Trackers
from kdrun.training import state
from kdrun.training.execute import Program, step_values, take_steps
from kdrun.training.settings import Settings
from kdrun.training.step import metric_names

log = logging.getLogger(__name__)

_KEPT_EVERY = 10.0  # seconds, of a job on several machines

# the form of what a state holds of where training is
PROGRESS = {
    "step": count,
    "epochs": count,
    "sums": [number],
    **dict.fromkeys(("best", "last"), (None, {**MEASURED, "epoch": count})),
}


class Kept(NamedTuple):
    """A state in memory, since it may be too late to save one when another machine is gone: when it was, the values of
    the network's variables, and the step, the epochs done and what a saved state has of them."""

    at: float
    state: list[np.ndarray]
    place: tuple[int, int, dict]


class Progress:
    """Where a training run is, beside what the network's variables hold."""

    def __init__(self, metrics: int):
        self.step = 0  # steps done
        self.epochs = 0  # epochs validated
        self.sums = [0.0] * metrics  # of the step metrics, since the last validation
        self.best: dict | None = None  # the validation metrics, with their epoch, of the best weights so far
        self.last: dict | None = None  # the same of the last epoch

    def restore(self, saved: Mapping) -> None:
        """Be where a state's values, which were checked, say."""
        for name in vars(self):
            setattr(self, name, saved[name])

    def add(self, rows: np.ndarray) -> None:
        """Steps were done. Added one by one: how many come in one call must not show in a sum's last bits."""
        for row in rows.astype(np.float64).tolist():
            self.sums = [total + value for total, value in zip(self.sums, row, strict=True)]
        self.step += len(rows)


def train(
    program: Program,
    dataset: Dataset,
    settings: Settings,
    run_dir: Path,
    trackers: Trackers,
    save_every: float,
) -> dict:
    """Train a network on labels, and on what it is taught if there is something; returns what run.json calls results.

    Goes on from the training state in `run_dir`, if there is one, as if it had never stopped. States are saved after
    every epoch, every `save_every` seconds and when a signal asks for it. Writes checkpoints/best.weights.h5 (lowest
    validation cross-entropy) and last.weights.h5, and predictions/test.npz with both's logits on the test set, which
    is looked at once, here at the end. Raises Diverged when the loss is not finite, Stopped when a signal asks for it.
    """
    network = program.network
    objectives = network.supervision.objectives
    names = metric_names(objectives)
    per_epoch = settings.steps_per_epoch(len(dataset.train.labels))
    folder = run_dir / "checkpoints"
    weights = {name: folder / f"{name}.weights.h5" for name in ("best", "last")}
    planned = per_epoch, settings.epochs, len(names)
    progress, best_weights = _restored(program, folder, weights, planned, trackers)
    program.share()
    last_saved = time.monotonic()
    kept: Kept | None = None

    def save(of_before: Kept | None = None) -> None:
        nonlocal last_saved, kept
        if of_before:
            network.take(of_before.state)
        step, epochs, values = of_before.place if of_before else place()
        validated = step < per_epoch * (epochs + 1)
        state.save(folder, step, validated, network, weights["best"] if progress.best else None, values)
        last_saved, kept = time.monotonic(), None

    def place() -> tuple[int, int, dict]:
        return progress.step, progress.epochs, {"progress": dict(vars(progress)), **trackers.state()}

    try:
        while progress.epochs < settings.epochs and not _out_of_patience(progress, settings):
            epoch = progress.epochs + 1
            trackers.pause_ended()
            for rows in take_steps(program, settings, progress.step, epoch * per_epoch, dataset.train.labels):
                _check_finite(names, rows, progress.step, epoch, weights["best"])
                progress.add(rows)
                trackers.steps(dict(zip(names, rows[-1].tolist(), strict=True)), len(rows))
                if signals.save_asked() or time.monotonic() - last_saved > save_every:
                    save()
                    log.info("saved a training state at step %d", progress.step)
                    trackers.pause_ended()
                elif program.member and time.monotonic() - (kept.at if kept else last_saved) > _KEPT_EVERY:
                    kept = Kept(time.monotonic(), [variable.numpy() for variable in network.state], place())
            measured = {name: value / per_epoch for name, value in zip(names, progress.sums, strict=True)}
            with network.averaged():
                validation = _validate(program, dataset, progress.step, epoch, weights["best"])
                save_weights(network.model, weights["last"])
                last: dict[str, Any] = {"epoch": epoch, **validation}
                progress.last = last
                best = progress.best
                if best is None or validation["cross_entropy"] < best["cross_entropy"] or not settings.held_out:
                    progress.best = best = last
                    best_weights = network.weights()
                    files.write_with(weights["best"], partial(shutil.copyfile, weights["last"]))
                progress.epochs, progress.sums = epoch, [0.0] * len(names)
                values = _last_values(settings, tuple(objectives), progress.step, per_epoch)
                trackers.epoch(epoch, {**measured, **values}, validation, best["epoch"], network.model)
            save()
    except Stopped:
        save()
        raise
    except Lost:  # another machine of a cluster is gone, in the middle of a step
        if kept:
            save(kept)
        raise
    assert progress.best is not None  # an epoch at least is done
    assert progress.last is not None
    same = progress.best["epoch"] == progress.last["epoch"]
    validated = {"best": progress.best, "last": progress.last}
    results = {"steps": progress.step, **trackers.speed(), "validation": validated}
    with network.averaged():
        return {**results, "test": _test(program, None if same else best_weights, dataset, run_dir)}


def _validate(program: Program, dataset: Dataset, step: int, epoch: int, best: Path) -> dict[str, float]:
    """Validation metrics after `step` steps. Raises Diverged where one is not finite; `best` as in _check_finite."""
    supervision = program.network.supervision
    validation_logits = logits(program.infer, dataset.validation.images)
    validation = metrics.evaluate(
        validation_logits, dataset.validation.labels, supervision.teacher_logits.get("validation")
    )
    names = [f"validation {name.replace('_', '-')}" for name in validation]
    _check_finite(names, [list(validation.values())], step - 1, epoch, best)
    return validation


def _last_values(settings: Settings, objectives: Sequence[str], step: int, per_epoch: int) -> dict[str, float]:
    """The values of the last of `step` steps that are worth showing: on labels alone, the learning rate."""
    names = ["learning_rate"]
    if objectives:
        names += ["temperature", "alpha", *(f"weight/{name}" for name in objectives)]
    return dict(zip(names, step_values(settings, step - 1, 1, per_epoch)[0].tolist(), strict=False))


def _restored(
    program: Program, folder: Path, weights: Mapping[str, Path], planned: tuple[int, int, int], trackers: Trackers
) -> tuple[Progress, list[np.ndarray] | None]:
    """Where training goes on, and the best weights so far; files, too, are put back to what they were then.

    `planned` are steps an epoch, epochs, and how many metrics a step has.
    """
    network = program.network
    per_epoch, _, sums = planned
    progress, best_weights = Progress(sums), None
    found = state.newest(folder, partial(_wrong, planned, trackers))
    if found:
        progress.restore(found.values["progress"])
    trackers.start(found and found.values, progress.step, progress.epochs)
    if found:
        if found.best:
            load_weights(network.model, found.best)
            best_weights = network.weights()
            files.write_with(weights["best"], partial(shutil.copyfile, found.best))
        state.read(found, network)
        program.follow()
        if progress.epochs and progress.step == progress.epochs * per_epoch:
            with network.averaged():
                save_weights(network.model, weights["last"])
        log.info("going on after step %d, with %d epochs done", progress.step, progress.epochs)
    return progress, best_weights


def _wrong(planned: tuple[int, int, int], trackers: Trackers, values: Mapping, has_best: bool) -> str | None:
    """What of a state's values cannot be, in one line: they may be somebody else's. `planned` as in _restored."""
    per_epoch, epochs, sums = planned
    if found := problem(values, {"progress": PROGRESS}):
        return found
    progress = values["progress"]
    step, done = progress["step"], progress["epochs"]
    # an epoch's end is saved before its validation, too
    fits = done * per_epoch <= step <= (done + 1) * per_epoch and step <= epochs * per_epoch
    if not fits or len(progress["sums"]) != sums:
        return f"step {step} with {done} epochs done cannot be: there are {epochs} epochs of {per_epoch} steps"
    if not (bool(done) == has_best == (progress["best"] is not None) == (progress["last"] is not None)):
        return f"{done} epochs done do not go with the best weights that it holds"
    return trackers.wrong(values, step, done)


def _out_of_patience(progress: Progress, settings: Settings) -> bool:
    """Whether validation has not been better for so many epochs that training is to end."""
    if not settings.patience or not progress.best:
        return False
    over = progress.epochs - progress.best["epoch"] >= settings.patience
    if over:
        best = progress.best["epoch"]
        log.info(
            "ending early: no lower validation cross-entropy than epoch %d's in %d epochs", best, settings.patience
        )
    return over


def _check_finite(
    names: Sequence[str], rows: np.ndarray | Sequence[Sequence[float]], step: int, epoch: int, best: Path
) -> None:
    """Raises Diverged where a value, of those named in a row for each step after `step`, is not a finite number."""
    finite = np.isfinite(rows)
    if not finite.all():
        first, column = np.argwhere(~finite)[0]
        found, place = f"the {names[column]} is {rows[first][column]}", f"step {step + first + 1} (epoch {epoch})"
        kept = f"The best weights from before are in {best}." if best.exists() else "No epoch was completed before."
        raise Diverged(
            f"Training diverged: {found} at {place}. {kept} "
            "Try a smaller optimizer.learning_rate, optimizer.warmup_epochs=1 or precision=float32."
        )


def _test(program: Program, best_weights, dataset: Dataset, run_dir: Path) -> dict:
    """Test metrics of the weights as they are, the last, and of the best: the same weights where that is None; with the
    best ones' confusion matrix."""
    test = {"last": logits(program.infer, dataset.test.images)}
    test["best"] = test["last"]
    if best_weights is not None:
        program.network.set_weights(best_weights)
        test["best"] = logits(program.infer, dataset.test.images)
    for name, found in test.items():
        metrics.check_finite(found, f"on the test split, with the {name} weights")
    labels = dataset.test.labels
    predictions.write(run_dir / "predictions" / "test.npz", labels, test["best"], test["last"])
    teacher_logits = program.network.supervision.teacher_logits.get("test")
    evaluated = {name: by_class.evaluate(test[name], labels, teacher_logits) for name in ("best", "last")}
    return {**evaluated, **by_class.recorded_confusion(test["best"], labels)}
