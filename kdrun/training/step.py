"""One training step and its losses, as plain functions of tensors; execute.py compiles them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import tensorflow as tf

from kdrun.data.preparation import Preparation
from kdrun.models.mixing import mixed, own_share
from kdrun.models.preprocessing import gathered
from kdrun.objectives.batch import Batch
from kdrun.objectives.logits import cross_entropy
from kdrun.training.network import Network
from kdrun.training.replicas import ALONE, Part, Replicas
from kdrun.training.settings import Settings
from kdrun.training.supervision import StepBatch, TeacherOutputs

STEP_METRICS = ("loss", "cross_entropy", "accuracy", "distillation_loss")  # and then each objective's own


class TrainingSet(NamedTuple):
    """All training images, uint8 [n, height, width, channels], and their labels, int32 [n], in the device's memory;
    None where a step's images are among its inputs. `labelled` is the part of them that have a label; the others' is
    below zero."""

    images: tf.Tensor | None
    labels: tf.Tensor
    labelled: float = 1.0


class Inputs(NamedTuple):
    """What changes from step to step, for one step.

    indices, views: int32 [batch], which images and how each is augmented. values: float32 [3 + objectives], the
    learning rate, temperature, alpha and the objectives' weights. mix: float32 [5], how images are mixed, where they
    are: see data.mixing. draw: int32 [2], a seed for random operations. cached: as in
    supervision.StepBatch. images: uint8 [batch, height, width, channels], those of `indices`, where they are not in the
    device's memory.
    """

    indices: tf.Tensor
    views: tf.Tensor
    values: tf.Tensor
    mix: tf.Tensor
    draw: tf.Tensor
    cached: Mapping[str, tf.Tensor]
    images: tf.Tensor | None = None


def metric_names(objectives: Iterable[str]) -> tuple[str, ...]:
    """Names of a step's metrics, in order: on labels alone, where there are no objectives, there are three."""
    names = tuple(objectives)
    return (*STEP_METRICS, *names) if names else STEP_METRICS[:3]


def training_step(
    networks: Sequence[Network],
    training_sets: Sequence[TrainingSet],
    settings: Settings,
    inputs: Inputs,
    replicas: Replicas = ALONE,
) -> tf.Tensor:
    """Take a step of the student and of those that train beside it; returns the student's metrics.

    The metrics are float32 [len(metric_names)]. Of `settings`, the preprocessing, whether images are mixed and label
    smoothing are used. There are a network and a training set for each of `replicas`; after the step all networks are
    in the same state.
    """

    def of_part(part: Part) -> tuple[tf.Tensor, tf.Tensor]:
        here = part.number - replicas.first
        return _of_part(networks[here], training_sets[here], settings, inputs, part)

    found = replicas.run(of_part)
    for network, (_, gradient), device in zip(networks, found, replicas.devices, strict=True):
        with tf.device(device):
            network.optimizer.update(gradient, inputs.values[0])
    if networks[0].average:
        networks[0].average.update()
    return found[0][0]


def _of_part(
    network: Network, training_set: TrainingSet, settings: Settings, inputs: Inputs, part: Part
) -> tuple[tf.Tensor, tf.Tensor]:
    """A device's part of a step: the metrics and the gradient as one vector, both of the whole batch.

    Networks see the part's images; of their outputs the whole batch is brought together, so that every loss is that of
    the whole batch, on each device, and its gradient there the part's share.
    """
    supervision = network.supervision
    _, temperature, alpha, *weights = tf.unstack(inputs.values)
    labels = tf.gather(training_set.labels, inputs.indices)
    counts = _counts(labels, training_set.labelled)
    shown = _prepared(training_set.images, settings, inputs, supervision.preparations, part)
    images = shown[settings.preparation]
    share = own_share(inputs.mix, *images.shape[1:3]) if settings.is_mixed else None
    smoothing = settings.label_smoothing
    label_loss = partial(cross_entropy, labels=labels, counts=counts, own_share=share, smoothing=smoothing)
    before = [tf.identity(each) for each in network.moving] if part.count > 1 else []
    with tf.GradientTape() as tape:
        own_logits, features = network.forward(images, training=True)
        logits = part.whole(own_logits)
        together = [logits, *(part.whole(peer(images, training=True)) for peer in network.peers)]
        known = Batch(
            logits,
            labels=labels,
            temperature=temperature,
            features={name: part.whole(each) for name, each in features.items()},
            learned=network.learned,
            indices=inputs.indices,
            training_size=supervision.training_size,
            training_labels=training_set.labels,
            random_seed=inputs.draw,
        )
        parts = []
        for place, each in enumerate(together):
            with tape.stop_recording():  # nothing of a teacher gets a gradient
                batch = StepBatch(temperature, inputs.cached, [*together[:place], *together[place + 1 :]])
                teacher = supervision.source.outputs(batch, shown, part)
            objectives = supervision.objectives.values()
            parts.append(losses(objectives, known._replace(logits=each), teacher, alpha, weights, label_loss(each)))
        scaled_loss = network.optimizer.scaled(tf.add_n([loss for loss, *_ in parts]))
    gradient = network.gradient(tape, scaled_loss, before, part)
    correct = tf.cast(tf.argmax(logits, axis=1, output_type=tf.int32) == labels, tf.float32)
    loss, of_labels, *terms = parts[0]  # what is shown is the student's
    accuracy = tf.reduce_mean(correct if counts is None else counts * correct)
    return tf.stack([loss, of_labels, accuracy, *terms]), gradient


def losses(
    objectives: Collection[Callable[[Batch], tf.Tensor]],
    batch: Batch,
    teacher: TeacherOutputs,
    alpha: tf.Tensor,
    weights: Sequence[tf.Tensor],
    label_loss: tf.Tensor,
) -> list[tf.Tensor]:
    """The loss, and what it consists of: cross-entropy, distillation loss and each objective; float32 scalars.

    Without objectives the loss is the cross-entropy, `label_loss`. The batch's own teacher side is not looked at.
    """
    if not objectives:
        return [label_loss, label_loss]
    batch = batch._replace(teacher_logits=teacher.logits, teacher_features=teacher.features)
    terms = [objective(batch) for objective in objectives]
    distillation_loss = tf.add_n([weight * term for weight, term in zip(weights, terms, strict=True)])
    return [(1.0 - alpha) * label_loss + alpha * distillation_loss, label_loss, distillation_loss, *terms]


def _counts(labels: tf.Tensor, labelled: float) -> tf.Tensor | None:
    """How much each image counts where labels are looked at: those without one not at all, the others so that over an
    epoch it is the mean over all labelled images that is taken; None where all have one."""
    return None if labelled == 1.0 else tf.cast(labels >= 0, tf.float32) / labelled


# nothing in it depends on a tensor's value, and AutoGraph takes a tenth of a second to find that out
@tf.autograph.experimental.do_not_convert
def _prepared(
    images: tf.Tensor | None, settings: Settings, inputs: Inputs, of_teachers: Iterable[Preparation], part: Part
) -> Mapping[Preparation, tf.Tensor]:
    """The part's images, float32 [images, size, size, channels], as the student and each live teacher see them."""
    ways = list(dict.fromkeys([settings.preparation, *of_teachers]))
    first = Part() if settings.is_mixed else part  # who is mixed with whom is the whole batch's
    indices, views = first.of(inputs.indices), first.of(inputs.views)
    raw = first.of(inputs.images) if images is None else images
    places = None if images is None else indices
    shown = gathered(raw, places, indices, views, settings.augmentation, ways)
    if settings.is_mixed:
        shown = [part.of(mixed(each, inputs.mix, bool(settings.mixup), bool(settings.cutmix))) for each in shown]
    return dict(zip(ways, shown, strict=True))
