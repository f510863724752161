"""Objectives without a teacher: what they bring is not a teacher's knowledge."""

import math

import tensorflow as tf

from kdrun.objectives.batch import Batch
from kdrun.objectives.soft_targets import divergence
from kdrun.registry import register


@register("objective", "label_smoothing")
def label_smoothing(batch: Batch, *, smoothing: float) -> tf.Tensor:
    """Cross-entropy with (1 - smoothing) one_hot(label) + smoothing / classes; float32 scalar.

    Label smoothing (arXiv 1512.00567, section 7).
    """
    log_q = tf.nn.log_softmax(tf.cast(batch.logits, tf.float32))
    of_labels = tf.gather(log_q, batch.labels, batch_dims=1)
    return -tf.reduce_mean((1.0 - smoothing) * of_labels + smoothing * tf.reduce_mean(log_q, axis=-1))


@register("objective", "teacher_free")
def teacher_free(batch: Batch, *, probability: float) -> tf.Tensor:
    """T^2 KL(p || q): a virtual teacher is right with `probability`, all other classes alike; float32 scalar.

    Teacher-free distillation (Tf-KD by regularisation, arXiv 1909.11723, section 4.2), its probabilities softened like
    a real teacher's: p = softmax(log of them / T).
    """
    temperature = tf.cast(batch.temperature, tf.float64)
    z = tf.cast(batch.logits, tf.float64)
    classes = z.shape[-1]
    right, wrong = math.log(probability), math.log((1.0 - probability) / (classes - 1))
    virtual = tf.one_hot(batch.labels, classes, on_value=right, off_value=wrong, dtype=tf.float64)
    log_p = tf.nn.log_softmax(virtual / temperature)
    divergences = divergence(log_p, tf.nn.log_softmax(z / temperature))
    return tf.cast(tf.reduce_mean(temperature**2 * divergences), tf.float32)
