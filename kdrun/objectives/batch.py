"""The argument of objectives: a batch as student and teacher saw it.

An objective is a function (batch, *, its keys) -> float32 scalar, registered by name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdrun.errors import InputError
from kdrun.objectives.learned import Learned
from kdrun.runtime.lazy import tf

log = logging.getLogger(__name__)


_NOT_GIVEN: Any = None  # to an objective that needs none of it, as it says where it is registered


class Batch(NamedTuple):
    """What student and teacher made of the same images.

    logits, teacher_logits: [batch, classes], of any float type; labels: int32 [batch], below zero for images of
    data.transfer, which have none: objectives that are registered with needs_labels never get these. features,
    teacher_features: by layer, [batch, height, width, channels] or [batch, units]. indices: int32 [batch], the images'
    places among the `training_size` ones, whose labels are training_labels, int32 [training_size]. random_seed: int32
    [2], for stateless random operations, another one every step. The teacher's side gets no gradient, whatever is
    given.
    """

    logits: tf.Tensor
    teacher_logits: tf.Tensor = _NOT_GIVEN
    labels: tf.Tensor = _NOT_GIVEN
    temperature: tf.Tensor | float = 1.0
    features: Mapping[str, tf.Tensor] = {}
    teacher_features: Mapping[str, tf.Tensor] = {}
    learned: Learned = _NOT_GIVEN
    indices: tf.Tensor = _NOT_GIVEN
    training_size: int = 0
    training_labels: tf.Tensor = _NOT_GIVEN
    random_seed: tf.Tensor = _NOT_GIVEN


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
