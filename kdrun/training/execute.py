"""Training steps compiled, several a call: the only place that knows devices."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from kdrun.data import batches
from kdrun.data.datasets import Split
from kdrun.evaluation.inference import Infer
from kdrun.runtime import signals
from kdrun.training import schedules
from kdrun.training.network import Network
from kdrun.training.settings import Settings
from kdrun.training.step import Inputs, TrainingSet, metric_names, training_step
from kdrun.training.supervision import forward

_SECONDS_PER_CALL = 0.25  # how much work one call of the compiled steps is given: short enough to stop between calls


@dataclass(frozen=True)
class Program:
    """A network with what is compiled of it: `run_steps` as compiled_steps makes it, and its inference."""

    network: Network
    run_steps: Callable[..., tf.Tensor]
    infer: Infer
    latency: dict[str, float] = field(default_factory=dict)  # measured once: a later job's weights take as long


def compiled_steps(network: Network, split: Split, settings: Settings) -> Callable[..., tf.Tensor]:
    """A compiled function that takes some steps: (indices, views, values, shares, draws, cached) -> metrics.

    Its arguments are those of step.Inputs with a first axis of steps, inputs so that changing them traces nothing
    anew. The metrics are float32 [steps, len(step.metric_names)]. Of `settings`, batch size, preprocessing and whether
    images are mixed are used.
    """
    supervision = network.supervision
    training_set = TrainingSet(tf.constant(split.images), tf.constant(split.labels))
    student = forward(network.model, supervision.layers)
    metrics = len(metric_names(supervision.objectives))
    batch = tf.TensorSpec([None, settings.batch_size], tf.int32)
    values = tf.TensorSpec([None, 3 + len(supervision.objectives)], tf.float32)
    share, draw = tf.TensorSpec([None], tf.float32), tf.TensorSpec([None, 2], tf.int32)
    cached = {
        name: tf.TensorSpec([None, settings.batch_size, *array.shape[2:]], tf.float32)
        for name, array in supervision.cached.items()
    }

    @tf.function(input_signature=[batch, batch, values, share, draw, cached])
    def run_steps(indices, views, values, shares, draws, cached):
        rows = tf.TensorArray(tf.float32, tf.shape(indices)[0], element_shape=[metrics])
        for k in tf.range(tf.shape(indices)[0]):
            of_step = {name: array[k] for name, array in cached.items()}
            inputs = Inputs(indices[k], views[k], values[k], shares[k], draws[k], of_step)
            rows = rows.write(k, training_step(network, student, training_set, settings, inputs))
        return rows.stack()

    return run_steps


def take_steps(program: Program, settings: Settings, step: int, end: int, labels: np.ndarray) -> Iterator[np.ndarray]:
    """Take the steps from `step` (0-based) to below `end`, in calls of about _SECONDS_PER_CALL; yields the metrics.

    They are float32 [steps of the call, len(step.metric_names)]. Raises Stopped between calls when a signal asks it to.
    """
    size, cached = len(labels), program.network.supervision.cached
    per_epoch = batches.steps_per_epoch(size, settings.batch_size)
    views, count = batches.view_count(settings.jitter, settings.flip), 1
    asked_for = batches.shuffled(settings.seed, labels, settings.shuffle)  # whose teacher outputs each image gets
    while step < end:
        signals.check()
        started = time.perf_counter()
        indices, chosen = batches.stream(settings.seed, step, count, settings.batch_size, size, views)
        values = step_values(settings, step, count, per_epoch)
        shares = batches.shares(settings.seed, step, count, settings.mixup)
        draws = np.stack([np.full(count, settings.seed), np.arange(step, step + count)], axis=1).astype(np.int32)
        of_steps = {name: array[chosen, asked_for[indices]] for name, array in cached.items()}
        yield program.run_steps(indices, chosen, values, shares, draws, of_steps).numpy()
        step += count
        affordable = int(_SECONDS_PER_CALL * count / (time.perf_counter() - started))
        count = min(max(1, affordable), 2 * count, max(1, end - step))


def step_values(settings: Settings, step: int, count: int, per_epoch: int) -> np.ndarray:
    """Learning rate, temperature, alpha and the objectives' weights of some steps, float32 [count, 3 + objectives]."""
    total = per_epoch * settings.epochs
    columns = [schedules.learning_rates(settings.optimizer, step, count, per_epoch, total)]
    for start, end, warmup_epochs in (settings.temperature, settings.alpha, *settings.weights):
        warmup = warmup_epochs * per_epoch
        columns.append(schedules.annealed(start, end, settings.annealing, warmup, step, count, total))
    return np.stack(columns, axis=1)
