"""Objectives on logits: student logits z and teacher logits v, both [batch, classes]."""

import tensorflow as tf

from kdrun.registry import register


@register("objective", "kd")
def kd(z: tf.Tensor, v: tf.Tensor, temperature: tf.Tensor, *, scale_by_temperature_squared: bool) -> tf.Tensor:
    """T^2 KL(softmax(v/T) || softmax(z/T)): summed over classes, mean over the batch; float32 scalar.

    Computed in float64, since at a high temperature the divergence is a small difference of large terms, which T^2
    would blow up to nothing but rounding.

    Soft targets (Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2). Gradients of soft targets shrink with
    1/T^2; the factor keeps their share beside the labels' loss when T changes. From log-softmax, never from clipped
    probabilities.
    """
    temperature = tf.cast(temperature, tf.float64)
    z, v = tf.cast(z, tf.float64) / temperature, tf.cast(v, tf.float64) / temperature
    log_p, log_q = tf.nn.log_softmax(v), tf.nn.log_softmax(z)
    # exp(log_p) is exactly 0 where log_p is very negative, and 0 * finite is 0: extreme logits stay right
    divergence = tf.reduce_mean(tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1))
    return tf.cast(divergence * temperature**2 if scale_by_temperature_squared else divergence, tf.float32)


def cross_entropy(z: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean cross-entropy of integer labels [batch] under softmax(z); float32 scalar."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(z, tf.float32)))
