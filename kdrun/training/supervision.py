"""Supervision of a network beside the labels: objectives, and where the teacher outputs come from."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from kdrun import registry
from kdrun.data.preparation import Preparation
from kdrun.models.surgery import with_features
from kdrun.objectives.batch import Batch
from kdrun.objectives.learned import Learned
from kdrun.training.replicas import Part

Images = Mapping[Preparation, tf.Tensor]  # float32 [batch, height, width, channels], for each way of preparing them
Encoded = Mapping[str, tf.Tensor]  # each teacher's logits, and the first one's features, by name: see `encode`


class TeacherOutputs(NamedTuple):
    """Logits [batch, classes] of all teachers combined, and features [batch, ...] by name.

    Without a teacher the logits are None: an objective that needs them fails, and learns nothing from zeros.
    """

    logits: tf.Tensor | None = None
    features: Mapping[str, tf.Tensor] = {}


Decode = Callable[[Encoded, tf.Tensor], TeacherOutputs]  # of encoded outputs and the temperature
Forward = Callable[..., tuple[tf.Tensor, Mapping[str, tf.Tensor]]]  # (images, training) -> logits, features by name


class StepBatch(NamedTuple):
    """What teacher outputs may depend on beside the images of a step.

    temperature: float32 scalar. cached: encoded outputs for the batch's images, float32 [batch, ...] by name, empty
    where none are cached. peers: the logits [batch, classes] of the networks that train beside the one that is taught.
    """

    temperature: tf.Tensor
    cached: Encoded
    peers: Sequence[tf.Tensor]


class TeacherSource(Protocol):
    """Where a batch's teacher outputs come from."""

    def outputs(self, batch: StepBatch, images: Images, part: Part) -> TeacherOutputs:
        """The outputs on a step's whole batch, of which `images` are a part; part of the compiled step."""

    def zeros(self, batch_size: int, num_classes: int) -> TeacherOutputs:
        """Outputs of the same shapes, all zero."""


@dataclass(frozen=True)
class NoTeacher:
    """Nobody teaches: training on labels alone, or under objectives without a teacher."""

    @tf.autograph.experimental.do_not_convert
    def outputs(self, batch: StepBatch, images: Images, part: Part) -> TeacherOutputs:
        return TeacherOutputs()

    def zeros(self, batch_size: int, num_classes: int) -> TeacherOutputs:
        return TeacherOutputs()


@dataclass(frozen=True)
class CachedTeacher:
    """Outputs on every view of the training images, asked before: encoded, float32 [views, n, ...] by name."""

    cached: Mapping[str, np.ndarray]
    decode: Decode

    @tf.autograph.experimental.do_not_convert
    def outputs(self, batch: StepBatch, images: Images, part: Part) -> TeacherOutputs:
        return self.decode(batch.cached, batch.temperature)

    def zeros(self, batch_size: int, num_classes: int) -> TeacherOutputs:
        return _decoded_zeros(self.decode, batch_size, {name: a.shape[2:] for name, a in self.cached.items()})


@dataclass(frozen=True)
class LiveTeachers:
    """Frozen networks asked in the step: `forward` makes encoded outputs, of `shapes` for one image, of images in all
    `preparations`."""

    forward: Callable[[Images], Encoded]
    preparations: Sequence[Preparation]
    shapes: Mapping[str, Sequence[int]]
    decode: Decode

    def outputs(self, batch: StepBatch, images: Images, part: Part) -> TeacherOutputs:
        encoded = {name: part.whole(each) for name, each in self.forward(images).items()}
        return self.decode(encoded, batch.temperature)

    def zeros(self, batch_size: int, num_classes: int) -> TeacherOutputs:
        return _decoded_zeros(self.decode, batch_size, self.shapes)


@dataclass(frozen=True)
class Peers:
    """`count` networks that train beside the student; each learns from all others."""

    count: int
    decode: Decode

    def outputs(self, batch: StepBatch, images: Images, part: Part) -> TeacherOutputs:
        return self.decode(encode([tf.stop_gradient(logits) for logits in batch.peers], {}), batch.temperature)

    def zeros(self, batch_size: int, num_classes: int) -> TeacherOutputs:
        return TeacherOutputs(tf.zeros([batch_size, num_classes]))


@dataclass(frozen=True)
class Supervision:
    """What a network learns from beside the labels; as it is by default, from nothing.

    `objectives` are functions of a Batch, by name, and `layers` the student's layers, by name, whose features they
    get. `training_size` is the number of training images. `teacher_logits` are the teacher's on the splits validation
    and test, float32 [n, classes]; empty without a teacher.
    """

    objectives: Mapping[str, Callable[[Batch], tf.Tensor]] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    source: TeacherSource = NoTeacher()
    training_size: int = 0
    teacher_logits: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def cached(self) -> Mapping[str, np.ndarray]:
        """Encoded outputs for the host to hand to the steps, float32 [views, n, ...] by name; empty without any."""
        return self.source.cached if isinstance(self.source, CachedTeacher) else {}

    @property
    def preparations(self) -> Sequence[Preparation]:
        """How teachers that run beside the student are shown its images; empty without any."""
        return self.source.preparations if isinstance(self.source, LiveTeachers) else ()

    @property
    def peers(self) -> int:
        """How many networks train beside the student."""
        return self.source.count if isinstance(self.source, Peers) else 0


LABELS_ALONE = Supervision()


def live_teachers(
    networks: Sequence, preparations: Sequence[Preparation], layers: Mapping[str, str], decode: Decode
) -> LiveTeachers:
    """Teachers from frozen networks, each with how it is shown images; `layers` of the first one, by name, give the
    features."""
    first, *others = networks
    its_own, *of_others = preparations
    forward_first = forward(first, layers)

    def ask(images: Images) -> Encoded:
        logits, features = forward_first(images[its_own], training=False)
        asked = zip(others, of_others, strict=True)
        encoded = encode([logits, *(other(images[each], training=False) for other, each in asked)], features)
        return {name: tf.stop_gradient(each) for name, each in encoded.items()}

    features = {name: first.get_layer(layer).output.shape[1:] for name, layer in layers.items()}
    shapes = encode([network.output.shape[1:] for network in networks], features)
    return LiveTeachers(ask, preparations, shapes, decode)


def forward(network, layers: Mapping[str, str]) -> Forward:
    """A function from images to a network's logits and the outputs of `layers`, by name."""
    if layers:
        return with_features(network, layers)
    return lambda images, training: (network(images, training=training), {})


def encode(logits: Sequence, features: Mapping) -> dict:
    """Several teachers' logits and the first one's features in one mapping, by names that tell them apart."""
    return {**{f"logits/{number}": each for number, each in enumerate(logits)}, **features}


def decoder(
    combine: Callable[[Sequence[tf.Tensor], tf.Tensor], tf.Tensor], count: int, features: Sequence[str]
) -> Decode:
    """The inverse of `encode`, with the logits of `count` teachers made one by `combine(logits, temperature)`."""

    def decode(encoded: Encoded, temperature: tf.Tensor) -> TeacherOutputs:
        logits = combine([encoded[f"logits/{number}"] for number in range(count)], temperature)
        return TeacherOutputs(logits, {name: encoded[name] for name in features})

    return decode


def call_on_zeros(supervision: Supervision, model, learned: Learned) -> None:
    """Call every objective on a batch of zeros: they make their weights, which they cannot in a compiled function.

    Raises InputError where an objective cannot be computed on these layers, or one of the user's own has an error.
    """
    size, classes = 4, model.output.shape[-1]
    teacher = supervision.source.zeros(size, classes)
    shapes = {name: model.get_layer(layer).output.shape[1:] for name, layer in supervision.layers.items()}
    batch = Batch(
        tf.zeros([size, classes]),
        teacher.logits,
        tf.zeros([size], tf.int32),
        features={name: tf.zeros([size, *shape]) for name, shape in shapes.items()},
        teacher_features=teacher.features,
        learned=learned,
        indices=tf.range(size) % max(supervision.training_size, 1),
        training_size=supervision.training_size,
        training_labels=tf.zeros([supervision.training_size], tf.int32),
        random_seed=tf.zeros([2], tf.int32),
    )
    for name, objective in supervision.objectives.items():
        known = registry.has("objective", name)
        with registry.get("objective", name).explained() if known else nullcontext():
            objective(batch)


def _decoded_zeros(decode: Decode, batch_size: int, shapes: Mapping[str, Sequence[int]]) -> TeacherOutputs:
    return decode({name: tf.zeros([batch_size, *shape]) for name, shape in shapes.items()}, tf.constant(1.0))
