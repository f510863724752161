"""Objectives on logits: student logits z, teacher logits v, both [batch, classes], softened by the temperature T.

p = softmax(v/T), q = softmax(z/T). Every divergence is summed over classes and is a mean over the batch, and comes from
log-softmax, never from clipped probabilities. Computed in float64, since at a high temperature a divergence is a small
difference of large terms, which T^2 would blow up to nothing but rounding.
"""

from __future__ import annotations

from typing import Annotated

from kdrun.config import rules
from kdrun.config.rules import Amount
from kdrun.objectives.batch import Batch
from kdrun.registry import register
from kdrun.runtime.lazy import tf

_EPSILON = 1e-7  # of logit standardisation


@register("objective", "kd")
def kd(batch: Batch, *, scale_by_temperature_squared: bool, standardise_logits: bool) -> tf.Tensor:
    """T^2 KL(p || q); float32 scalar.

    Soft targets (Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2). Gradients of soft targets shrink with
    1/T^2; the factor keeps their share beside the labels' loss when T changes.
    """
    z, v, temperature = _prepared(batch, standardise_logits)
    scale = temperature**2 if scale_by_temperature_squared else 1.0
    return _mean(scale * divergence(tf.nn.log_softmax(v / temperature), tf.nn.log_softmax(z / temperature)))


@register("objective", "logit_mse")
def logit_mse(batch: Batch, *, zero_mean: bool, standardise_logits: bool) -> tf.Tensor:
    """||z - v||^2 / 2; float32 scalar.

    Matching logits (Ba and Caruana 2014, arXiv 1312.6184). With `zero_mean`, which takes each row's mean away first, it
    is kd's limit for T -> infinity, times the number of classes (arXiv 1503.02531, section 2.1).
    """
    z, v, _ = _prepared(batch, standardise_logits)
    difference = z - v
    if zero_mean:
        difference -= tf.reduce_mean(difference, axis=-1, keepdims=True)
    return _mean(tf.reduce_sum(difference**2, axis=-1) / 2)


@register("objective", "dkd", needs_labels=True, min_classes=3)
def dkd(batch: Batch, *, target_weight: Amount, non_target_weight: Amount, standardise_logits: bool) -> tf.Tensor:
    """T^2 [target_weight KL(b_t || b_s) + non_target_weight KL(p^ || q^)]; float32 scalar.

    Decoupled distillation (arXiv 2203.08679): b are the probabilities of (the label, the rest), hats are renormalised
    over the other classes. kd is the same with weights of 1 and 1 - p_y. Needs three classes or more.
    """
    z, v, temperature = _prepared(batch, standardise_logits)
    binary_p, others_p = _decoupled(v / temperature, batch.labels)
    binary_q, others_q = _decoupled(z / temperature, batch.labels)
    target, others = divergence(binary_p, binary_q), divergence(others_p, others_q)
    return _mean(temperature**2 * (target_weight * target + non_target_weight * others))


@register("objective", "dist")
def dist(batch: Batch, *, inter_weight: Amount, intra_weight: Amount, scale_by_temperature_squared: bool) -> tf.Tensor:
    """T^2 [inter_weight (1 - correlation of rows) + intra_weight (1 - correlation of columns)] of p and q; float32
    scalar.

    DIST (arXiv 2205.10536): Pearson's correlations, means over rows (images) and over columns (classes). One without
    variance counts as 0. Its authors' code has the factor T^2, the paper's appendix has not.
    """
    z, v, temperature = _prepared(batch)
    log_q, log_p = tf.nn.log_softmax(z / temperature), tf.nn.log_softmax(v / temperature)
    rows = 1.0 - tf.reduce_mean(_correlations(log_q, log_p))
    columns = 1.0 - tf.reduce_mean(_correlations(tf.transpose(log_q), tf.transpose(log_p)))
    scale = temperature**2 if scale_by_temperature_squared else 1.0
    return tf.cast(scale * (inter_weight * rows + intra_weight * columns), tf.float32)


@register("objective", "nkd", needs_labels=True, min_classes=3)
def nkd(batch: Batch, *, non_target_weight: Amount, standardise_logits: bool) -> tf.Tensor:
    """-p_y log q_y at T = 1, - non_target_weight T^2 sum over other classes of p^ log q^ at T; float32 scalar.

    Normalised distillation (arXiv 2303.13005); hats are renormalised over the classes other than the label's.
    """
    z, v, temperature = _prepared(batch, standardise_logits)
    log_p, log_q = (_of_labels(tf.nn.log_softmax(x), batch.labels) for x in (v, z))
    _, others_p = _decoupled(v / temperature, batch.labels)
    _, others_q = _decoupled(z / temperature, batch.labels)
    entropy = -tf.reduce_sum(tf.exp(others_p) * others_q, axis=-1)
    return _mean(-tf.exp(log_p) * log_q + non_target_weight * temperature**2 * entropy)


@register("objective", "multi_level")
def multi_level(
    batch: Batch,
    *,
    temperatures: Annotated[list[float], rules.temperatures],
    batch_weight: Amount,
    class_weight: Amount,
    standardise_logits: bool,
) -> tf.Tensor:
    """kd + batch_weight ||q q' - p p'||^2 / batch + class_weight ||q' q - p' p||^2 / classes, each summed over T and
    `temperatures`; float32 scalar.

    Multi-level logit distillation (MLKD, CVPR 2023). Left out of its authors' code: the second, strongly augmented view
    of each image, and the masks that halve the terms of the other one.
    """
    z, v, temperature = _prepared(batch, standardise_logits)
    size, classes = tf.unstack(tf.cast(tf.shape(z), z.dtype))
    total = 0.0
    for each in (temperature, *temperatures):
        log_q, log_p = tf.nn.log_softmax(z / each), tf.nn.log_softmax(v / each)
        total += each**2 * tf.reduce_mean(divergence(log_p, log_q))
        q, p = tf.exp(log_q), tf.exp(log_p)
        images = tf.matmul(q, q, transpose_b=True) - tf.matmul(p, p, transpose_b=True)
        relations = tf.matmul(q, q, transpose_a=True) - tf.matmul(p, p, transpose_a=True)
        total += batch_weight * tf.reduce_sum(images**2) / size + class_weight * tf.reduce_sum(relations**2) / classes
    return tf.cast(total, tf.float32)


def cross_entropy(
    z: tf.Tensor,
    labels: tf.Tensor,
    counts: tf.Tensor | None = None,
    own_share: tf.Tensor | None = None,
    smoothing: float = 0.0,
) -> tf.Tensor:
    """Mean cross-entropy of integer labels [batch] under softmax(z); float32 scalar.

    With `counts`, float32 [batch], each label counts so many times in the mean's sum; where that is 0, it may be below
    zero. Of mixed images, whose `own_share` is how much of each is its own, that of two labels: the rest is the label
    of the one opposite in the batch (arXiv 1710.09412). With `smoothing` e it is of (1 - e) label + e / classes (arXiv
    1512.00567, section 7).
    """
    z = tf.cast(z, tf.float32)

    def of(labels: tf.Tensor, counts: tf.Tensor | None) -> tf.Tensor:
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels if counts is None else tf.maximum(labels, 0), z)
        if smoothing:
            each = (1.0 - smoothing) * each - smoothing * tf.reduce_mean(tf.nn.log_softmax(z), axis=-1)
        return each if counts is None else counts * each

    found = of(labels, counts)
    if own_share is not None:
        others = of(tf.reverse(labels, [0]), None if counts is None else tf.reverse(counts, [0]))
        found = own_share * found + (1.0 - own_share) * others
    return tf.reduce_mean(found)


def divergence(log_p: tf.Tensor, log_q: tf.Tensor) -> tf.Tensor:
    """KL(p || q) of each row of log-probabilities [batch, classes]."""
    # exp(log_p) is exactly 0 where log_p is very negative, and 0 * finite is 0: extreme logits stay right
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def _prepared(batch: Batch, standardise_logits: bool = False) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """z, v and T in float64; with `standardise_logits` (arXiv 2403.01427) rows have mean 0 and standard deviation 1.

    The deviation is that of a sample, over the number of classes less one, as in the authors' code.
    """
    z, v = tf.cast(batch.logits, tf.float64), tf.stop_gradient(tf.cast(batch.teacher_logits, tf.float64))
    if standardise_logits:
        z, v = _standardised(z), _standardised(v)
    return z, v, tf.cast(batch.temperature, tf.float64)


def _standardised(x: tf.Tensor) -> tf.Tensor:
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_sum(centred**2, axis=-1, keepdims=True) / tf.cast(tf.shape(x)[-1] - 1, x.dtype)
    # equal logits have no deviation, where a root has no gradient
    deviation = tf.where(variance > 0, tf.sqrt(tf.where(variance > 0, variance, 1.0)), 0.0)
    return centred / (deviation + _EPSILON)


def _decoupled(x: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Log-probabilities of (label, rest) [batch, 2], and of the other classes among themselves [batch, classes - 1]."""
    batch, classes = tf.unstack(tf.shape(x))
    others = tf.boolean_mask(x, tf.one_hot(labels, classes, on_value=False, off_value=True, dtype=tf.bool))
    others = tf.reshape(others, [batch, classes - 1])
    rest = tf.reduce_logsumexp(others, axis=-1)
    binary = tf.nn.log_softmax(tf.stack([_of_labels(x, labels), rest], axis=-1))
    return binary, tf.nn.log_softmax(others)


def _of_labels(x: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return tf.gather(x, labels, batch_dims=1)


def _correlations(log_x: tf.Tensor, log_y: tf.Tensor) -> tf.Tensor:
    """Pearson's correlation of each row of exp(log_x) with the same row of exp(log_y)."""
    return tf.reduce_sum(_directions(log_x) * _directions(log_y), axis=-1)


def _directions(log_x: tf.Tensor) -> tf.Tensor:
    """Rows of exp(log_x) less their means, of length 1; zero where all values are the same but for rounding."""
    # a row's scale does not matter to correlation: its largest value becomes 1, however small it was
    x = tf.exp(log_x - tf.stop_gradient(tf.reduce_max(log_x, axis=-1, keepdims=True)))
    x -= tf.reduce_mean(x, axis=-1, keepdims=True)
    squares = tf.reduce_sum(x**2, axis=-1, keepdims=True)
    varies = squares > 1e-24
    return tf.where(varies, x * tf.math.rsqrt(tf.where(varies, squares, 1.0)), 0.0)


def _mean(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.reduce_mean(values), tf.float32)
