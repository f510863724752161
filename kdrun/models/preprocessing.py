"""Preprocessing inside the compiled step: raw pixels, augmented, then resized, scaled and normalised."""

import math
from collections.abc import Sequence

import tensorflow as tf

from kdrun.data.augmentation import Augmentation
from kdrun.data.preparation import Preparation, recorded
from kdrun.models.augmentation import augment

_INTERPOLATION = "bilinear"
_MOST_BYTES = 1 << 27  # of one batch of images as float32; ordinary batches are far smaller


def prepare(images: tf.Tensor, preparation: Preparation) -> tf.Tensor:
    """float32 images, resized bilinearly to image_size pixels a side, scaled to [0, 1] and normalised, from uint8
    images."""
    size = preparation.image_size
    images = tf.image.convert_image_dtype(images, tf.float32)
    if tuple(images.shape[1:3]) != (size, size):
        images = tf.image.resize(images, [size, size], method=_INTERPOLATION)
    if preparation.mean:
        images = (images - preparation.mean) * [1.0 / std for std in preparation.std]
    return images


def images_at_once(batch_size: int, image_shape: tuple[int, int, int]) -> int:
    """`batch_size`, or as many images of that shape as _MOST_BYTES hold as float32: of shapes alone, so that every
    machine takes the same number and gives the same bits."""
    return max(1, min(batch_size, _MOST_BYTES // (4 * math.prod(image_shape))))


def seen(
    images: tf.Tensor,
    indices: tf.Tensor,
    views: tf.Tensor,
    augmentation: Augmentation,
    preparations: Sequence[Preparation],
) -> list[tf.Tensor]:
    """Images as networks see them, each in its way, float32 [batch, image_size, image_size, channels]: of uint8 [batch,
    height, width, channels] the given views, the same pixels for all.

    `indices` and `views` are int32 [batch], as augmentation.augment takes them.
    """
    augmented = augment(images, indices, views, augmentation)
    return [prepare(augmented, preparation) for preparation in preparations]


def gathered(
    images: tf.Tensor,
    places: tf.Tensor | None,
    indices: tf.Tensor,
    views: tf.Tensor,
    augmentation: Augmentation,
    preparations: Sequence[Preparation],
) -> list[tf.Tensor]:
    """A batch as `seen` by networks: of images uint8 [n, height, width, channels] those at `places`, int32 [batch], in
    their views; None: all of them, as they come. Big ones are taken one by one, since a whole batch of them would take
    gigabytes before it is resized."""

    def some(places, indices, views):
        return seen(tf.gather(images, places), indices, views, augmentation, preparations)

    if places is None:
        places = tf.range(indices.shape[0])
    if images_at_once(indices.shape[0], images.shape[1:]) == indices.shape[0]:
        return some(places, indices, views)
    one = lambda given: [each[0] for each in some(*(part[tf.newaxis] for part in given))]  # noqa: E731
    kinds = [tf.float32] * len(preparations)
    return tf.map_fn(one, (places, indices, views), parallel_iterations=1, fn_output_signature=kinds)


def described(preparation: Preparation) -> dict:
    """What `prepare` does, as plain values: logits that are kept depend on it."""
    resized = {"image_size": preparation.image_size, "interpolation": _INTERPOLATION, "scaling": "[0, 1]"}
    return {**resized, **recorded(preparation)}
