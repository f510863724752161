"""Objectives on relations between the images of a batch, as features have them.

Maps are flattened; student and teacher features may be of different sizes, for it is the batch's matrix of relations
that is compared. `layers` as in features.py; contributions of several layers are added up.
"""

from __future__ import annotations

import math
from typing import Annotated

from kdrun.config.rules import Amount, Layers, Positive, integer
from kdrun.objectives.batch import Batch, pairs
from kdrun.registry import register
from kdrun.runtime.lazy import tf


@register("objective", "similarity")
def similarity(batch: Batch, *, layers: Layers) -> tf.Tensor:
    """||G_t - G_s||^2 / batch^2, G = F F' with rows of length 1; float32 scalar.

    Similarity-preserving distillation (arXiv 1907.09682, section 3.1).
    """

    def alike(rows):
        return tf.math.l2_normalize(tf.matmul(rows, rows, transpose_b=True), axis=1, epsilon=1e-30)

    return sum(tf.reduce_mean((alike(t) - alike(s)) ** 2) for s, t in _rows(batch, layers))


@register("objective", "relational")
def relational(batch: Batch, *, layers: Layers, distance_weight: Amount, angle_weight: Amount) -> tf.Tensor:
    """distance_weight * Huber of distances over their mean + angle_weight * Huber of angles' cosines; float32 scalar.

    Relational distillation (RKD, arXiv 1904.05068, section 3.2): means over all pairs, and over all triples, so that
    memory grows with the third power of the batch size.
    """
    total = 0.0
    for student, teacher in _rows(batch, layers):
        (distances_s, cosines_s), (distances_t, cosines_t) = _geometry(student), _geometry(teacher)
        total += distance_weight * _huber(distances_s - distances_t) + angle_weight * _huber(cosines_s - cosines_t)
    return total


@register("objective", "correlation")
def correlation(batch: Batch, *, layers: Layers, gamma: Positive, order: Annotated[int, integer(1, 10)]) -> tf.Tensor:
    """Mean of (K_s - K_t)^2, K the Gaussian kernel of features of length 1, a series to `order`; float32 scalar.

    Correlation congruence (ICCV 2019, "Correlation Congruence for Knowledge Distillation", section 3.4).
    """

    def kernel(rows):
        rows = tf.math.l2_normalize(rows, axis=1)
        cosines = tf.matmul(rows, rows, transpose_b=True)
        powers = (math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(1, order + 1))
        return sum(powers, start=math.exp(-2 * gamma) * tf.ones_like(cosines))

    return sum(tf.reduce_mean((kernel(s) - kernel(t)) ** 2) for s, t in _rows(batch, layers))


def _rows(batch: Batch, layers: Layers):
    """Student's and teacher's features as one row an image."""
    for pair in pairs(batch, layers, resized=False):
        yield tuple(tf.reshape(features, [-1, math.prod(features.shape[1:])]) for features in pair[1:])


def _geometry(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Distances between rows [batch, batch] over the mean of those of two images, and the cosines of angles [batch,
    batch, batch]: of the corner at i between j and k. All from inner products, in float64, which leaves room for the
    differences of large ones."""
    rows = tf.cast(rows, tf.float64)
    rows -= tf.reduce_mean(rows, axis=0)
    products = tf.matmul(rows, rows, transpose_b=True)
    own = tf.linalg.diag_part(products)
    squares = own[:, tf.newaxis] + own[tf.newaxis, :] - 2 * products
    apart = squares > 1e-14 * (own[:, tf.newaxis] + own[tf.newaxis, :])
    # equal rows have no distance, where a root has no gradient
    distances = tf.where(apart, tf.sqrt(tf.where(apart, squares, 1.0)), 0.0)
    size = tf.cast(tf.shape(rows)[0], tf.float64)
    mean = tf.math.divide_no_nan(tf.reduce_sum(distances), size * (size - 1.0))  # a single image has no other
    inverse = tf.where(apart, 1.0 / tf.where(apart, distances, 1.0), 0.0)
    # (f_j - f_i)(f_k - f_i) over both lengths
    corners = (
        products[tf.newaxis] - products[:, :, tf.newaxis] - products[:, tf.newaxis] + own[:, tf.newaxis, tf.newaxis]
    )
    return tf.math.divide_no_nan(distances, mean), corners * inverse[:, :, tf.newaxis] * inverse[:, tf.newaxis]


def _huber(difference: tf.Tensor) -> tf.Tensor:
    """Mean of x^2 / 2 for |x| <= 1, |x| - 1/2 beyond."""
    size = tf.abs(difference)
    return tf.cast(tf.reduce_mean(tf.where(size <= 1, size**2 / 2, size - 0.5)), tf.float32)
