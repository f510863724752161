"""Mixing of a batch's images inside the compiled step: see kdrun.data.mixing for the numbers that say how."""

import tensorflow as tf


def mixed(images: tf.Tensor, mix: tf.Tensor, mixup: bool, cutmix: bool) -> tf.Tensor:
    """Images float32 [batch, height, width, channels], each mixed with the one opposite in the batch; so many again.

    `mix` is float32 [5], a row of data.mixing.mixes; `mixup` and `cutmix` say which there may be.
    """
    found, others = images, tf.reverse(images, [0])
    if mixup:
        found = mix[0] * images + (1.0 - mix[0]) * others
    if cutmix:
        inside = _box(mix, *images.shape[1:3])
        found = tf.where(inside[tf.newaxis, :, :, tf.newaxis], others, found)
    return found


def own_share(mix: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """How much of each image of that size, and so of its label, is its own: float32 scalar."""
    return mix[0] * (1.0 - tf.reduce_mean(tf.cast(_box(mix, height, width), tf.float32)))


def _box(mix: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Which pixels are all the other image's, bool [height, width]: in whole pixels."""

    def between(length: int, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
        places = tf.range(length, dtype=tf.float32)
        return (places >= tf.round(low * length)) & (places < tf.round(high * length))

    return between(height, mix[1], mix[2])[:, tf.newaxis] & between(width, mix[3], mix[4])[tf.newaxis]
