"""What an objective is given: a batch as student and teacher saw it, and the weights that it trains beside the student.

An objective is a function (batch, *, its keys) -> float32 scalar, registered by name.
"""

import logging
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kdrun.errors import InputError

log = logging.getLogger(__name__)


class Learned:
    """Weights that objectives need beside the networks', float32, by name; each is made at its first use.

    They are trained with the student and saved in training states, but are no part of the student. The first call of
    an objective must be outside of a tf.function.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._variables: dict[str, tf.Variable] = {}
        self._limits: dict[str, tuple[float, float]] = {}

    @property
    def variables(self) -> list[tf.Variable]:
        """All of them, in the order in which they were made."""
        return list(self._variables.values())

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """Those that gradients reach."""
        return [variable for variable in self.variables if variable.trainable]

    def initial(self, seed: int) -> list[np.ndarray]:
        """The values of `variables` before the first step of a run with this seed."""
        return [self._initial(name, variable.shape, seed) for name, variable in self._variables.items()]

    def variable(self, name: str, shape, low: float, high: float, trainable: bool = True) -> tf.Variable:
        """A variable that begins with uniform values from low to high; low = high is a constant."""
        if name not in self._variables:
            self._limits[name] = low, high
            value = self._initial(name, shape, self._seed)
            self._variables[name] = tf.Variable(value, trainable=trainable, name=name.replace(":", "_"))
        return self._variables[name]

    def dense(self, name: str, x: tf.Tensor, units: int, bias: bool = True) -> tf.Tensor:
        """A dense layer: [batch, n] to [batch, units]."""
        return self._biased(name, tf.matmul(x, self._kernel(name, [x.shape[-1], units])), bias)

    def convolution(self, name: str, x: tf.Tensor, filters: int, size: int = 1, bias: bool = True) -> tf.Tensor:
        """A convolution: [batch, height, width, channels] to [batch, height, width, filters]."""
        kernel = self._kernel(name, [size, size, x.shape[-1], filters])
        return self._biased(name, tf.nn.conv2d(x, kernel, 1, "SAME"), bias)

    def batch_norm(self, name: str, x: tf.Tensor) -> tf.Tensor:
        """Batch normalisation over all axes but the last, with a scale and an offset for each channel.

        By the batch's own statistics (epsilon 1e-5): an objective is computed in training alone, so that moving ones
        would never be used, and there are none.
        """
        mean, variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))
        scale = self.variable(f"{name}/scale", x.shape[-1:], 1.0, 1.0)
        offset = self.variable(f"{name}/offset", x.shape[-1:], 0.0, 0.0)
        return (x - mean) * tf.math.rsqrt(variance + 1e-5) * scale + offset

    def _kernel(self, name: str, shape: list[int]) -> tf.Variable:
        receptive = math.prod(shape[:-2])
        limit = math.sqrt(6 / (receptive * (shape[-2] + shape[-1])))  # Glorot and Bengio 2010, uniform
        return self.variable(f"{name}/kernel", shape, -limit, limit)

    def _biased(self, name: str, x: tf.Tensor, bias: bool) -> tf.Tensor:
        return x + self.variable(f"{name}/bias", x.shape[-1:], 0.0, 0.0) if bias else x

    def _initial(self, name: str, shape, seed: int) -> np.ndarray:
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return generator.uniform(*self._limits[name], tuple(shape)).astype(np.float32)


class Batch(NamedTuple):
    """What student and teacher made of the same images.

    logits, teacher_logits: [batch, classes], of any float type; labels: int32 [batch]. features, teacher_features: by
    layer, [batch, height, width, channels] or [batch, units]. indices: int32 [batch], the images' places among the
    `training_size` ones, whose labels are training_labels, int32 [training_size]. random_seed: int32 [2], for stateless
    random operations, another one every step. The teacher's side gets no gradient, whatever is given.
    """

    logits: tf.Tensor
    teacher_logits: tf.Tensor | None = None
    labels: tf.Tensor | None = None
    temperature: tf.Tensor | float = 1.0
    features: Mapping[str, tf.Tensor] = {}
    teacher_features: Mapping[str, tf.Tensor] = {}
    learned: Learned | None = None
    indices: tf.Tensor | None = None
    training_size: int = 0
    training_labels: tf.Tensor | None = None
    random_seed: tf.Tensor | None = None


class Pair(NamedTuple):
    """A student's and its teacher's features of one layer, float32, under the layer's name."""

    name: str
    student: tf.Tensor
    teacher: tf.Tensor


def pairs(batch: Batch, layers: Sequence[str], maps: str = "", resized: bool = True) -> Iterator[Pair]:
    """The features that `layers` names: block3, or student_layer:teacher_layer.

    `resized`: where two maps' sizes differ, the larger is brought to the smaller: by average pooling where it is whole
    times as high and as wide, as authors' code does it, else by antialiased bilinear resizing. `maps` is the name of
    an objective that needs maps. Raises InputError for a layer that is not there, or is of another kind than was asked
    for.
    """
    for name in layers:
        ours, _, theirs = name.partition(":")
        student = tf.cast(_named(batch.features, "student", ours), tf.float32)
        teacher = tf.stop_gradient(tf.cast(_named(batch.teacher_features, "teacher", theirs or ours), tf.float32))
        ranks = {student.shape.rank, teacher.shape.rank}
        if maps and ranks != {4}:
            raise InputError(f"{maps} compares maps, and layer {name} is a vector. Name convolutional layers.")
        if resized and len(ranks) > 1:
            raise InputError(f"layer {name} is a map on one side and a vector on the other. Name two of a kind.")
        if resized and ranks == {4}:
            sizes = [tuple(features.shape[1:3]) for features in (student, teacher)]
            height, width = np.minimum(*sizes).tolist()
            if tf.executing_eagerly() and sizes[0] != sizes[1]:  # once: later calls are of compiled functions
                log.info(
                    "layer %s: maps of %s (student) and %s (teacher) are compared at %s", name, *sizes, (height, width)
                )
            student, teacher = (_resized(features, height, width) for features in (student, teacher))
        yield Pair(name, student, teacher)


def _named(features: Mapping[str, tf.Tensor], whose: str, name: str) -> tf.Tensor:
    if name not in features:
        raise InputError(f"the {whose} has no layer {name}. Allowed: {', '.join(features)}.")
    return features[name]


def _resized(maps: tf.Tensor, height: int, width: int) -> tf.Tensor:
    rows, columns = maps.shape[1:3]
    if (rows, columns) == (height, width):
        return maps
    if rows % height == 0 and columns % width == 0:
        cell = [rows // height, columns // width]
        return tf.nn.avg_pool2d(maps, cell, cell, "VALID")
    return tf.image.resize(maps, [height, width], method="bilinear", antialias=True)
