"""The training loop: steps, validation after every epoch, best and last weights.

Ours because `fit` can neither resume in mid-epoch, nor stop at a signal between steps, nor say why a loss diverged.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kdrun.data import batches
from kdrun.data.datasets import Dataset, Split
from kdrun.errors import Diverged, Stopped
from kdrun.evaluation import metrics
from kdrun.evaluation.inference import logits
from kdrun.models.build import with_features
from kdrun.models.preprocessing import gathered
from kdrun.models.weights import load_weights, save_weights
from kdrun.objectives.batch import Batch
from kdrun.objectives.logits import cross_entropy
from kdrun.runs import predictions
from kdrun.runs.run_json import MEASURED
from kdrun.runtime import signals as stopping
from kdrun.storage import files
from kdrun.storage.forms import count, number, problem
from kdrun.tracking.tracker import Trackers
from kdrun.training import schedules, state
from kdrun.training.network import Network

log = logging.getLogger(__name__)

_SECONDS_PER_CALL = 0.25  # how much work one call of the compiled steps is given: short enough to stop between calls
STEP_METRICS = ("loss", "cross_entropy", "accuracy", "distillation_loss")  # and then each objective's own


class Annealed(NamedTuple):
    """A value that may change over training: see schedules.annealed."""

    start: float
    end: float | None = None
    warmup_epochs: float = 0.0


class Settings(NamedTuple):
    """How a network is trained; see conf/config.yaml and conf/data for each. `weights` are the objectives'."""

    seed: int
    epochs: int
    batch_size: int
    image_size: int
    jitter: int
    flip: bool
    optimizer: Mapping
    temperature: Annealed
    alpha: Annealed
    weights: Sequence[Annealed] = ()
    annealing: str = "linear"
    patience: int | None = None
    held_out: bool = True  # whether validation images are not trained on
    shuffle: str = "none"
    mixup: float = 0.0


# the form of what a state holds of where training is
PROGRESS = {
    "step": count,
    "epochs": count,
    "sums": [number],
    **dict.fromkeys(("best", "last"), (None, {**MEASURED, "epoch": count})),
}


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
    network: Network,
    dataset: Dataset,
    settings: Settings,
    run_dir: Path,
    monitor: Trackers,
    save_every: float,
) -> dict:
    """Train `network` on labels, and on what it is taught if there is something; returns what run.json calls results.

    Goes on from the training state in `run_dir`, if there is one, as if it had never stopped. States are saved after
    every epoch, every `save_every` seconds and when a signal asks for it. Writes checkpoints/best.weights.h5 (lowest
    validation cross-entropy) and last.weights.h5, and predictions/test.npz with both's logits on the test set, which
    is looked at once, here at the end. Raises Diverged when the loss is not finite, Stopped when a signal asks for it.
    """
    teaching = network.teaching
    names = [*STEP_METRICS, *teaching.objectives] if teaching else STEP_METRICS[:3]
    per_epoch = batches.steps_per_epoch(len(dataset.train.labels), settings.batch_size)
    folder = run_dir / "checkpoints"
    weights = {name: folder / f"{name}.weights.h5" for name in ("best", "last")}
    planned = per_epoch, settings.epochs, len(names)
    progress, best_weights = _restored(network, folder, weights, planned, monitor)
    last_saved = time.monotonic()

    def save() -> None:
        nonlocal last_saved
        validated = progress.step < per_epoch * (progress.epochs + 1)
        values = {"progress": vars(progress), **monitor.state()}
        state.save(folder, progress.step, validated, network, weights["best"] if progress.best else None, values)
        last_saved = time.monotonic()

    try:
        while progress.epochs < settings.epochs and not _out_of_patience(progress, settings):
            epoch = progress.epochs + 1
            monitor.pause_ended()
            for rows in _steps(network, settings, progress.step, epoch * per_epoch, dataset.train.labels):
                _check_finite(names, rows, progress.step, epoch, weights["best"])
                progress.add(rows)
                monitor.steps(dict(zip(names, rows[-1].tolist(), strict=True)), len(rows))
                if stopping.save_asked() or time.monotonic() - last_saved > save_every:
                    save()
                    log.info("saved a training state at step %d", progress.step)
                    monitor.pause_ended()
            measured = {name: value / per_epoch for name, value in zip(names, progress.sums, strict=True)}
            validation_logits = logits(network.infer, dataset.validation.images)
            validation = metrics.evaluate(
                validation_logits, dataset.validation.labels, teaching and teaching.validation
            )
            cross_entropy_ = validation["cross_entropy"]
            said = [f"validation {name.replace('_', '-')}" for name in validation]
            _check_finite(said, [list(validation.values())], progress.step - 1, epoch, weights["best"])
            save_weights(network.model, weights["last"])
            progress.last = {"epoch": epoch, **validation}
            better = progress.best is None or cross_entropy_ < progress.best["cross_entropy"]
            if better or not settings.held_out:
                progress.best = progress.last
                best_weights = network.weights()
                files.write_with(weights["best"], partial(shutil.copyfile, weights["last"]))
            progress.epochs, progress.sums = epoch, [0.0] * len(names)
            rate, *others = _values(settings, progress.step - 1, 1, per_epoch)[0].tolist()
            values = {"learning_rate": rate}
            if teaching:
                named = ("temperature", "alpha", *(f"weight/{name}" for name in teaching.objectives))
                values |= dict(zip(named, others, strict=True))
            monitor.epoch(epoch, {**measured, **values}, validation, progress.best["epoch"], network.model)
            save()
    except Stopped:
        save()
        raise
    same = progress.best["epoch"] == progress.last["epoch"]
    return {
        "steps": progress.step,
        **monitor.speed(),
        "validation": {"best": progress.best, "last": progress.last},
        "test": _test(network, None if same else best_weights, dataset, run_dir),
    }


def _restored(
    network: Network, folder: Path, weights: Mapping[str, Path], planned: tuple[int, int, int], monitor: Trackers
) -> tuple[Progress, list[np.ndarray] | None]:
    """Where training goes on, and the best weights so far; files, too, are put back to what they were then.

    `planned` are steps an epoch, epochs, and how many metrics a step has.
    """
    per_epoch, _, sums = planned
    progress, best_weights = Progress(sums), None
    found = state.newest(folder, partial(_wrong, planned, monitor))
    if found:
        progress.restore(found.values["progress"])
    monitor.start(found and found.values, progress.step, progress.epochs)
    if found:
        if found.best:
            load_weights(network.model, found.best)
            best_weights = network.weights()
            files.write_with(weights["best"], partial(shutil.copyfile, found.best))
        state.read(found, network)
        if progress.epochs and progress.step == progress.epochs * per_epoch:
            save_weights(network.model, weights["last"])
        log.info("going on after step %d, with %d epochs done", progress.step, progress.epochs)
    return progress, best_weights


def _wrong(planned: tuple[int, int, int], monitor: Trackers, values: Mapping, has_best: bool) -> str | None:
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
    return monitor.wrong(values, step, done)


def compiled_steps(network: Network, split: Split, settings: Settings):
    """A compiled function that takes some steps: (indices, views, values, shares, draws, answers) -> metrics.

    indices and views are int32 [steps, batch]. `values`, float32 [steps, 3 + objectives], holds learning rate,
    temperature, alpha and the objectives' weights of each step: inputs, so that changing them traces nothing anew.
    `shares`, float32 [steps], say how much of an image is its own where images are mixed, `draws`, int32 [steps, 2],
    are seeds for random operations, and `answers` the teachers' kept ones, float32 [steps, batch, ...] by name. What
    comes back are the step metrics, in STEP_METRICS' order, and each objective's own. Of `settings`, batch size,
    preprocessing and whether images are mixed are used.
    """
    model, teaching, optimizer = network.model, network.teaching, network.optimizer
    images_in_memory, labels_in_memory = tf.constant(split.images), tf.constant(split.labels)
    seen_as = settings.image_size, settings.jitter, settings.flip
    objectives = teaching.objectives if teaching else {}
    forward = with_features(model, teaching.layers) if teaching and teaching.layers else None
    batch = tf.TensorSpec([None, settings.batch_size], tf.int32)
    values = tf.TensorSpec([None, 3 + len(objectives)], tf.float32)
    answer = {
        name: tf.TensorSpec([None, settings.batch_size, *array.shape[2:]], tf.float32)
        for name, array in (teaching.kept if teaching else {}).items()
    }

    def losses(logits, labels, features, answers, temperature, alpha, weights, **known) -> list[tf.Tensor]:
        """What training is to make smaller, and what that consists of: cross-entropy, distillation loss, objectives."""
        label_loss = cross_entropy(logits, labels)
        if not teaching:
            return [label_loss, label_loss]
        teacher_logits, teacher_features = teaching.told(answers, temperature)
        learned, size = network.learned, teaching.training_size
        seen = Batch(
            logits, teacher_logits, labels, temperature, features, teacher_features, learned, training_size=size
        )
        terms = [objective(seen._replace(**known)) for objective in objectives.values()]
        distillation_loss = tf.add_n([weight * term for weight, term in zip(weights, terms, strict=True)])
        return [(1.0 - alpha) * label_loss + alpha * distillation_loss, label_loss, distillation_loss, *terms]

    share, draw = tf.TensorSpec([None], tf.float32), tf.TensorSpec([None, 2], tf.int32)

    @tf.function(input_signature=[batch, batch, values, share, draw, answer])
    def run_steps(indices, views, values, shares, draws, answers):
        count = len(STEP_METRICS) + len(objectives) if teaching else 3
        rows = tf.TensorArray(tf.float32, tf.shape(indices)[0], element_shape=[count])
        for k in tf.range(tf.shape(indices)[0]):
            learning_rate, temperature, alpha, *weights = tf.unstack(values[k])
            labels = tf.gather(labels_in_memory, indices[k])
            images = gathered(images_in_memory, indices[k], views[k], *seen_as)
            if settings.mixup:  # with those of the batch in the opposite order, which is as random as any
                images = shares[k] * images + (1.0 - shares[k]) * tf.reverse(images, [0])
            given = {name: answer[k] for name, answer in answers.items()}
            if teaching and teaching.ask:
                given = teaching.ask(images)
            with tf.GradientTape() as tape:
                logits, features = forward(images, training=True) if forward else (model(images, training=True), {})
                together = [logits, *(peer(images, training=True) for peer in network.peers)]
                heard = [_others(together, place) for place in range(len(together))] if network.peers else [given]
                known = {"indices": indices[k], "random_seed": draws[k], "training_labels": labels_in_memory}
                parts = [
                    losses(each, labels, features, answers_, temperature, alpha, weights, **known)
                    for each, answers_ in zip(together, heard, strict=True)
                ]
                scaled_loss = optimizer.scaled(tf.add_n([loss for loss, *_ in parts]))
            optimizer.minimize(tape, scaled_loss, learning_rate)
            correct = tf.argmax(logits, axis=1, output_type=tf.int32) == labels
            loss, label_loss, *terms = parts[0]  # what is shown is the student's
            accuracy = tf.reduce_mean(tf.cast(correct, tf.float32))
            rows = rows.write(k, tf.stack([loss, label_loss, accuracy, *terms]))
        return rows.stack()

    return run_steps


def _others(together: Sequence[tf.Tensor], place: int) -> dict[str, tf.Tensor]:
    """For networks that learn from each other: the logits of all but one, as its teachers' answers."""
    others = [each for number, each in enumerate(together) if number != place]
    return {f"logits/{number}": tf.stop_gradient(each) for number, each in enumerate(others)}


def _steps(network: Network, settings: Settings, step: int, end: int, labels: np.ndarray) -> Iterator[np.ndarray]:
    """Take the steps from `step` (0-based) to below `end`, in calls of about _SECONDS_PER_CALL; yields the metrics."""
    size, kept = len(labels), network.teaching.kept if network.teaching else {}
    per_epoch = batches.steps_per_epoch(size, settings.batch_size)
    views, count = batches.view_count(settings.jitter, settings.flip), 1
    asked_for = batches.shuffled(settings.seed, labels, settings.shuffle)  # whose answer each image gets
    while step < end:
        stopping.check()
        started = time.perf_counter()
        indices, chosen = batches.stream(settings.seed, step, count, settings.batch_size, size, views)
        values = _values(settings, step, count, per_epoch)
        shares = batches.shares(settings.seed, step, count, settings.mixup)
        draws = np.stack([np.full(count, settings.seed), np.arange(step, step + count)], axis=1).astype(np.int32)
        answers = {name: answer[chosen, asked_for[indices]] for name, answer in kept.items()}
        yield network.run_steps(indices, chosen, values, shares, draws, answers).numpy()
        step += count
        affordable = int(_SECONDS_PER_CALL * count / (time.perf_counter() - started))
        count = min(max(1, affordable), 2 * count, max(1, end - step))


def _values(settings: Settings, step: int, count: int, per_epoch: int) -> np.ndarray:
    """Learning rate, temperature, alpha and the objectives' weights of some steps, float32 [count, 3 + objectives]."""
    total = per_epoch * settings.epochs
    columns = [schedules.learning_rates(settings.optimizer, step, count, per_epoch, total)]
    for start, end, warmup_epochs in (settings.temperature, settings.alpha, *settings.weights):
        warmup = warmup_epochs * per_epoch
        columns.append(schedules.annealed(start, end, settings.annealing, warmup, step, count, total))
    return np.stack(columns, axis=1)


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


def _check_finite(names: Sequence[str], rows: Sequence[Sequence[float]], step: int, epoch: int, best: Path) -> None:
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


def _test(network: Network, best_weights, dataset: Dataset, run_dir: Path) -> dict:
    """Test metrics of the weights as they are, the last, and of the best: the same weights where that is None."""
    test = {"last": logits(network.infer, dataset.test.images)}
    test["best"] = test["last"]
    if best_weights is not None:
        network.set_weights(best_weights)
        test["best"] = logits(network.infer, dataset.test.images)
    for name, found in test.items():
        metrics.check_finite(found, f"on the test split, with the {name} weights")
    predictions.write(run_dir / "predictions" / "test.npz", dataset.test.labels, test["best"], test["last"])
    return {
        name: metrics.evaluate(test[name], dataset.test.labels, network.teaching and network.teaching.test)
        for name in ("best", "last")
    }
