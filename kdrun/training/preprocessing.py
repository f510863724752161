"""What happens to images inside the compiled step: augmentation on the raw pixels, then resizing and scaling."""

import tensorflow as tf

_INTERPOLATION = "bilinear"


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


def described(image_size: int) -> dict:
    """What `prepare` does, as plain values: logits that are kept depend on it."""
    return {"image_size": image_size, "interpolation": _INTERPOLATION, "scaling": "[0, 1]"}
