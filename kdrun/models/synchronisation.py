"""Batch normalisation over the whole batch of a step that several devices share.

A network is built as ever, and its layers then take the classes of here: the same weights, another `call`. The classes
have the names of those, too, since a file of weights knows layers by them.
"""

import tensorflow as tf
import tf_keras

from kdrun.models import layers


def synchronise(network) -> None:
    """Have the network's batch normalisation see the whole batch, as on one device.

    tf_keras' own way is taken for layers without scale or offset, and for those of anything but maps. Its moving
    variance is that of the batch, where one device's is n / (n - 1) times that.
    """
    for layer in network.layers:
        if isinstance(layer, layers.Moments):
            layer.__class__ = Moments
        elif isinstance(layer, layers.BatchNormalization):
            layer.__class__ = BatchNormalization
        elif type(layer) is tf_keras.layers.BatchNormalization and layer.fused and layer.scale and layer.center:
            layer.__class__ = _OfKeras
        elif isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.synchronized, layer.fused = True, False


class Moments(layers.Moments):
    """See layers.Moments: those of all devices' parts."""

    def call(self, features, older=None):
        found = _of_all_devices(layers.Moments.call(self, features))
        return found if older is None else tf.concat([found, older], axis=1)


class BatchNormalization(layers.BatchNormalization):
    """See layers.BatchNormalization, with the moments of all devices' parts."""

    def call(self, features, moments, training=None):
        normalised = layers.BatchNormalization.call(self, features, moments, training)
        if training and self.trainable:  # n / (n - 1) is that of one device's n until here
            count = float(features.shape[:-1].num_elements())
            all_of_them = count * tf.distribute.get_replica_context().num_replicas_in_sync
            change = _unbiasing(all_of_them) - _unbiasing(count)
            self.moving_variance.assign_add((1.0 - self.momentum) * change * moments[1])
        return normalised


class _OfKeras(tf_keras.layers.BatchNormalization):
    """A layer of tf_keras' own, which has not been told the moments."""

    def call(self, inputs, training=None, mask=None):
        known = Moments.call(self, inputs) if training and self.trainable else None
        return BatchNormalization.call(self, inputs, known, training)


_OfKeras.__name__ = "BatchNormalization"


def _of_all_devices(moments: tf.Tensor) -> tf.Tensor:
    """Mean and variance of each channel over all devices' parts, which are equally large, from those of the own one:
    float32 [2, channels]. The variance is the mean one within parts, and that of their means, so that nothing is lost
    by cancelling."""
    context = tf.distribute.get_replica_context()
    parts = context.num_replicas_in_sync
    if parts == 1:
        return moments
    place = tf.one_hot(context.replica_id_in_sync_group, parts)  # a sum of these is all parts, and has a gradient
    everyones = context.all_reduce(tf.distribute.ReduceOp.SUM, place[:, tf.newaxis, tf.newaxis] * moments)
    means, variances = tf.unstack(everyones, axis=1)
    mean = tf.reduce_mean(means, axis=0)
    return tf.stack([mean, tf.reduce_mean(variances + tf.math.squared_difference(means, mean), axis=0)])


def _unbiasing(count: float) -> float:
    return count / max(count - 1.0, 1.0)
