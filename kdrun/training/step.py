"""One training step and its losses, as plain functions of tensors; execute.py compiles them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from kdrun.models.preprocessing import gathered
from kdrun.objectives.batch import Batch
from kdrun.objectives.logits import cross_entropy
from kdrun.training.network import Network, Teaching
from kdrun.training.settings import Settings

STEP_METRICS = ("loss", "cross_entropy", "accuracy", "distillation_loss")  # and then each objective's own

# from images, and whether in training mode, to logits and features by name
Forward = Callable[..., tuple[tf.Tensor, Mapping[str, tf.Tensor]]]


class TrainingSet(NamedTuple):
    """All training images, uint8 [n, height, width, channels], and their labels, int32 [n], in the device's memory."""

    images: tf.Tensor
    labels: tf.Tensor


class Inputs(NamedTuple):
    """What changes from step to step, for one step.

    indices, views: int32 [batch], which images and how each is augmented. values: float32 [3 + objectives], the
    learning rate, temperature, alpha and the objectives' weights. share: float32 scalar, how much of an image is its
    own where images are mixed. draw: int32 [2], a seed for random operations. cached: what teachers are known to say
    of the images, float32 [batch, ...] by name.
    """

    indices: tf.Tensor
    views: tf.Tensor
    values: tf.Tensor
    share: tf.Tensor
    draw: tf.Tensor
    cached: Mapping[str, tf.Tensor]


def metric_names(objectives: Iterable[str]) -> tuple[str, ...]:
    """Names of a step's metrics, in order: on labels alone, where there are no objectives, there are three."""
    names = tuple(objectives)
    return (*STEP_METRICS, *names) if names else STEP_METRICS[:3]


def training_step(
    network: Network, forward: Forward, training_set: TrainingSet, settings: Settings, inputs: Inputs
) -> tf.Tensor:
    """Take a step of the student and of those that train beside it; returns the student's metrics.

    `forward` is the student with its features. The metrics are float32 [len(metric_names)]. Of `settings`, the
    preprocessing and whether images are mixed are used.
    """
    teaching = network.teaching
    learning_rate, temperature, alpha, *weights = tf.unstack(inputs.values)
    labels = tf.gather(training_set.labels, inputs.indices)
    images = _prepared(training_set.images, settings, inputs)
    given = teaching.ask(images) if teaching and teaching.ask else inputs.cached
    with tf.GradientTape() as tape:
        logits, features = forward(images, training=True)
        together = [logits, *(peer(images, training=True) for peer in network.peers)]
        heard = [_others(together, place) for place in range(len(together))] if network.peers else [given]
        known = Batch(
            logits,
            labels=labels,
            temperature=temperature,
            features=features,
            learned=network.learned,
            indices=inputs.indices,
            training_size=teaching.training_size if teaching else 0,
            training_labels=training_set.labels,
            random_seed=inputs.draw,
        )
        parts = [
            losses(teaching, known._replace(logits=each), answers, alpha, weights)
            for each, answers in zip(together, heard, strict=True)
        ]
        scaled_loss = network.optimizer.scaled(tf.add_n([loss for loss, *_ in parts]))
    network.optimizer.minimize(tape, scaled_loss, learning_rate)
    correct = tf.argmax(logits, axis=1, output_type=tf.int32) == labels
    loss, label_loss, *terms = parts[0]  # what is shown is the student's
    accuracy = tf.reduce_mean(tf.cast(correct, tf.float32))
    return tf.stack([loss, label_loss, accuracy, *terms])


def losses(
    teaching: Teaching | None,
    batch: Batch,
    answers: Mapping[str, tf.Tensor],
    alpha: tf.Tensor,
    weights: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """What training is to make smaller, and what that consists of: cross-entropy, distillation loss, objectives."""
    label_loss = cross_entropy(batch.logits, batch.labels)
    if not teaching:
        return [label_loss, label_loss]
    teacher_logits, teacher_features = teaching.told(answers, batch.temperature)
    batch = batch._replace(teacher_logits=teacher_logits, teacher_features=teacher_features)
    terms = [objective(batch) for objective in teaching.objectives.values()]
    distillation_loss = tf.add_n([weight * term for weight, term in zip(weights, terms, strict=True)])
    return [(1.0 - alpha) * label_loss + alpha * distillation_loss, label_loss, distillation_loss, *terms]


def _prepared(images: tf.Tensor, settings: Settings, inputs: Inputs) -> tf.Tensor:
    """The step's images, float32 [batch, size, size, channels], as student and teacher see them."""
    prepared = gathered(images, inputs.indices, inputs.views, settings.image_size, settings.jitter, settings.flip)
    if settings.mixup:  # with those of the batch in the opposite order, which is as random as any
        prepared = inputs.share * prepared + (1.0 - inputs.share) * tf.reverse(prepared, [0])
    return prepared


def _others(together: Sequence[tf.Tensor], place: int) -> dict[str, tf.Tensor]:
    """For networks that learn from each other: the logits of all but one, as its teachers' answers."""
    others = [each for number, each in enumerate(together) if number != place]
    return {f"logits/{number}": tf.stop_gradient(each) for number, each in enumerate(others)}
