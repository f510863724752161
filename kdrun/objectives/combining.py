"""Several teachers' logits as one teacher's."""

import tensorflow as tf


def combined(teacher_logits: tf.Tensor, temperature: tf.Tensor, weights: tf.Tensor, how: str) -> tf.Tensor:
    """Logits [batch, classes] of teachers [batch, teachers, classes] whose `weights` [teachers] sum to 1; float64.

    `probabilities`: logits u with softmax(u/T) = the weighted mean of softmax(v/T), so that kd is the weighted mean of
    the teachers' kd up to a constant. `logits`: the weighted mean of logits: the
    probabilities' geometric mean.
    """
    v, weights = tf.cast(teacher_logits, tf.float64), tf.cast(weights, tf.float64)[:, tf.newaxis]
    if how == "logits":
        return tf.reduce_sum(weights * v, axis=1)
    temperature = tf.cast(temperature, tf.float64)
    log_p = tf.nn.log_softmax(v / temperature)
    return temperature * tf.reduce_logsumexp(log_p + tf.math.log(weights), axis=1)
