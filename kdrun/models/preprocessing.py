"""Preprocessing inside the compiled step: augmentation of the raw pixels, then resizing and scaling."""

import math

import tensorflow as tf

_INTERPOLATION = "bilinear"
_MOST_BYTES = 1 << 27  # of one batch of images as float32; ordinary batches are far smaller


def augment(images: tf.Tensor, views: tf.Tensor, jitter: int, flip: bool) -> tf.Tensor:
    """The given view of each image, uint8 [batch, height, width, channels]; views int32 [batch] (see data.batches).

    A view counts shifts row by row from (-jitter, -jitter); mirrored views come after all shifts. Shifted-in pixels
    are zero.
    """
    if jitter:
        side = 2 * jitter + 1
        shift = views % side**2
        height, width = images.shape[1:3]
        images = tf.pad(images, [[0, 0], [jitter, jitter], [jitter, jitter], [0, 0]])
        rows = (shift // side)[:, tf.newaxis] + tf.range(height)
        columns = (shift % side)[:, tf.newaxis] + tf.range(width)
        images = tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    if flip:
        mirrored = views >= (2 * jitter + 1) ** 2
        images = tf.where(mirrored[:, tf.newaxis, tf.newaxis, tf.newaxis], tf.reverse(images, [2]), images)
    return images


def prepare(images: tf.Tensor, image_size: int) -> tf.Tensor:
    """float32 images in [0, 1], resized bilinearly to image_size pixels a side, from uint8 images."""
    images = tf.image.convert_image_dtype(images, tf.float32)
    if tuple(images.shape[1:3]) != (image_size, image_size):
        images = tf.image.resize(images, [image_size, image_size], method=_INTERPOLATION)
    return images


def images_at_once(batch_size: int, image_shape: tuple[int, int, int]) -> int:
    """`batch_size`, or as many images of that shape as _MOST_BYTES hold as float32: of shapes alone, so that every
    machine takes the same number and gives the same bits."""
    return max(1, min(batch_size, _MOST_BYTES // (4 * math.prod(image_shape))))


def gathered(
    images: tf.Tensor, indices: tf.Tensor, views: tf.Tensor, image_size: int, jitter: int, flip: bool
) -> tf.Tensor:
    """A batch as a network sees it, float32 [batch, image_size, image_size, channels]: of images uint8 [n, height,
    width, channels] those at `indices`, int32 [batch], in their views. Big ones are taken one by one, since a whole
    batch of them would take gigabytes before it is resized."""

    def some(indices, views):
        return prepare(augment(tf.gather(images, indices), views, jitter, flip), image_size)

    if images_at_once(indices.shape[0], images.shape[1:]) == indices.shape[0]:
        return some(indices, views)
    one = lambda given: some(given[0][tf.newaxis], given[1][tf.newaxis])[0]  # noqa: E731
    return tf.map_fn(one, (indices, views), parallel_iterations=1, fn_output_signature=tf.float32)


def described(image_size: int) -> dict:
    """What `prepare` does, as plain values: logits that are kept depend on it."""
    return {"image_size": image_size, "interpolation": _INTERPOLATION, "scaling": "[0, 1]"}
