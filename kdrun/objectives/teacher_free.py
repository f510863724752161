"""Objectives without a teacher: what they bring is not a teacher's knowledge."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from kdrun.config.rules import Fraction, Temperature, number
from kdrun.objectives.batch import Batch
from kdrun.objectives.logits import divergence
from kdrun.registry import register
from kdrun.runtime.lazy import tf


@register("objective", "label_smoothing", needs_teacher=False, needs_labels=True)
def label_smoothing(batch: Batch, *, smoothing: Fraction) -> tf.Tensor:
    """Cross-entropy with (1 - smoothing) one_hot(label) + smoothing / classes; float32 scalar.

    Label smoothing (arXiv 1512.00567, section 7).
    """
    log_q = tf.nn.log_softmax(tf.cast(batch.logits, tf.float32))
    of_labels = tf.gather(log_q, batch.labels, batch_dims=1)
    return -tf.reduce_mean((1.0 - smoothing) * of_labels + smoothing * tf.reduce_mean(log_q, axis=-1))


@register("objective", "teacher_free", needs_teacher=False, needs_labels=True)
def teacher_free(
    batch: Batch,
    *,
    probability: Annotated[float, number(0, 1, low_included=False, high_included=False)],
    soften: Literal["probabilities", "logits"],
    student_temperature: Temperature | None,
    scale_by_temperature_squared: bool,
) -> tf.Tensor:
    """KL(p || softmax(z / student_temperature)): a virtual teacher is right with `probability`, all other classes
    alike; float32 scalar.

    Teacher-free distillation (Tf-KD by regularisation, arXiv 1909.11723, section 4.2). Its authors' code has p =
    softmax(d / T) of the virtual teacher's probabilities d, which is nearly uniform, and the student at 1. `soften`:
    logits is softmax(log d / T) instead, as of a real teacher; `student_temperature`: None is T; and
    `scale_by_temperature_squared` is the factor T^2.
    """
    temperature = tf.cast(batch.temperature, tf.float64)
    z = tf.cast(batch.logits, tf.float64)
    classes = z.shape[-1]
    right, wrong = probability, (1.0 - probability) / (classes - 1)
    if soften == "logits":
        right, wrong = math.log(right), math.log(wrong)
    virtual = tf.one_hot(batch.labels, classes, on_value=right, off_value=wrong, dtype=tf.float64)
    log_q = tf.nn.log_softmax(z / (temperature if student_temperature is None else student_temperature))
    scale = temperature**2 if scale_by_temperature_squared else 1.0
    return tf.cast(tf.reduce_mean(scale * divergence(tf.nn.log_softmax(virtual / temperature), log_q)), tf.float32)
