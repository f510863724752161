"""Augmentation inside the compiled step: what each view makes of its image. Without state.

An image's view is a function of (seed, index, view) alone; no step and no batch is part of it.
"""

import math

import numpy as np
import tensorflow as tf

from kdrun.data.augmentation import Augmentation

_TRIES = 10  # of a crop, before the middle of the image is taken
_RATIO = 4 / 3  # of a crop's sides, at most
_GREY = (0.299, 0.587, 0.114)  # how bright red, green and blue are: ITU-R BT.601
# which of an image's random numbers are whose: one operation more changes nothing of the others
_AREAS, _RATIOS, _TOP, _LEFT = slice(0, _TRIES), slice(_TRIES, 2 * _TRIES), 20, 21
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _CUTOUT, _SHIFT, _NUMBERS = 22, 23, 24, 25, slice(26, 28), 28, 32


def augment(images: tf.Tensor, indices: tf.Tensor, views: tf.Tensor, how: Augmentation) -> tf.Tensor:
    """The given view of each image, uint8 [batch, height, width, channels], of uint8 images of the same shape.

    `indices` and `views` are int32 [batch]: which of the training images each is, and which of its views; see
    data.augmentation.
    """
    if not how.is_drawn:
        return shifted(images, views, how.jitter, how.flip)
    numbers = random_numbers(how.seed, indices, views, _NUMBERS)
    if how.resized_crop < 1:
        images = resized_crop(images, numbers, how.resized_crop)
    if how.shifted > 1:
        images = shifted(images, tf.cast(numbers[:, _SHIFT] * how.shifted, tf.int32), how.jitter, how.flip)
    images = coloured(images, numbers, how)
    if images.dtype != tf.uint8:
        images = tf.cast(tf.round(images), tf.uint8)
    return cut_out(images, numbers[:, _CUTOUT], how.cutout) if how.cutout else images


def shifted(images: tf.Tensor, views: tf.Tensor, jitter: int, flip: bool) -> tf.Tensor:
    """Images shifted and mirrored as their views, int32 [batch], say; of the same shape and dtype.

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


def random_numbers(seed: int, indices: tf.Tensor, views: tf.Tensor, count: int) -> tf.Tensor:
    """For each image and view, int32 [batch], `count` random numbers, a multiple of four: float32 [batch, count],
    uniform in [0, 1).

    They are those of Philox4x32-10 (Salmon et al., 2011) with the key (seed, 0) and the counters (block, index, view,
    0), as TensorFlow's own stateless operations have them, which however take one key for a whole batch.
    """

    def word(value: int | tf.Tensor) -> tf.Tensor:
        return tf.cast(value, tf.uint64)

    def mixed(high_of: tf.Tensor, other: tf.Tensor, key: int) -> tf.Tensor:
        return xor(xor(tf.bitwise.right_shift(high_of, word(32)), other), word(key % 2**32))

    xor, both = tf.bitwise.bitwise_xor, tf.bitwise.bitwise_and
    a, b = word(tf.range(count // 4))[tf.newaxis], word(indices)[:, tf.newaxis]
    c, d = word(views)[:, tf.newaxis], word(0)
    for number in range(10):
        one, two = word(0xD2511F53) * a, word(0xCD9E8D57) * c
        a, c = mixed(two, b, seed + number * 0x9E3779B9), mixed(one, d, number * 0xBB67AE85)
        b, d = both(two, word(2**32 - 1)), both(one, word(2**32 - 1))
    words = tf.reshape(tf.stack([a, b, c, d], axis=-1), [-1, count])
    return tf.cast(both(words, word(2**23 - 1)), tf.float32) * 2.0**-23


def resized_crop(images: tf.Tensor, numbers: tf.Tensor, smallest: float) -> tf.Tensor:
    """A part of each image, resized bilinearly to the size of the whole: float32, of the images' shape.

    As RandomResizedCrop of torchvision (arXiv 1409.4842): its area is uniform between `smallest` and all of the
    image's, the logarithm of its ratio of width to height between those of 3/4 and 4/3; sides are whole pixels, and
    it lies anywhere in the image. Where ten such do not fit, it is the largest one in the middle that has such a ratio.
    """
    top, left, rows, columns = boxes(numbers, images.shape[1], images.shape[2], smallest)
    return _stretched(_stretched(images, top, rows, axis=1), left, columns, axis=2)


def boxes(numbers: tf.Tensor, height: int, width: int, smallest: float) -> tuple[tf.Tensor, ...]:
    """Crops: their top, left, height and width, each float32 [batch], whole numbers of pixels."""
    areas = height * width * (smallest + (1.0 - smallest) * numbers[:, _AREAS])
    ratios = tf.exp((2.0 * numbers[:, _RATIOS] - 1.0) * math.log(_RATIO))
    columns, rows = tf.round(tf.sqrt(areas * ratios)), tf.round(tf.sqrt(areas / ratios))
    fits = (columns >= 1) & (columns <= width) & (rows >= 1) & (rows <= height)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1, output_type=tf.int32)
    rows, columns = (tf.gather(sides, first, axis=1, batch_dims=1) for sides in (rows, columns))
    top = tf.floor(numbers[:, _TOP] * (height - rows + 1.0))
    left = tf.floor(numbers[:, _LEFT] * (width - columns + 1.0))
    most_rows, most_columns = min(height, round(width * _RATIO)), min(width, round(height * _RATIO))
    middle = ((height - most_rows) // 2, (width - most_columns) // 2, most_rows, most_columns)
    one_fits, drawn = tf.reduce_any(fits, axis=1), (top, left, rows, columns)
    return tuple(tf.where(one_fits, each, float(other)) for each, other in zip(drawn, middle, strict=True))


def _stretched(images: tf.Tensor, start: tf.Tensor, length: tf.Tensor, axis: int) -> tf.Tensor:
    """`length` pixels of each image along an axis, from `start` on, stretched to all of it: float32."""
    size = images.shape[axis]
    start, length = start[:, tf.newaxis], length[:, tf.newaxis]
    middles = tf.constant((np.arange(size) + 0.5) / size, tf.float32)
    place = start + tf.clip_by_value(middles * length - 0.5, 0.0, length - 1.0)
    before = tf.floor(place)
    after = tf.minimum(before + 1.0, start + length - 1.0)
    share = tf.reshape(place - before, [-1, *(size if each == axis else 1 for each in (1, 2, 3))])
    near, far = (
        tf.cast(tf.gather(images, tf.cast(each, tf.int32), axis=axis, batch_dims=1), tf.float32)
        for each in (before, after)
    )
    return near * (1.0 - share) + far * share


def coloured(images: tf.Tensor, numbers: tf.Tensor, how: Augmentation) -> tf.Tensor:
    """Images with brightness, contrast, saturation and hue changed, in this order: float32 from 0 to 255; as they were
    where none of these is on.

    As ColorJitter of torchvision, whose order is random: with the grey g of an image x, factors b, c, s uniform in
    [max(0, 1 - strength), 1 + strength], and h in [-strength, strength]: b x; c x + (1 - c) mean(g); s x + (1 - s) g;
    the hue of HSV turned by h of a circle. Each is clipped to [0, 255].
    """
    if not any((how.brightness, how.contrast, how.saturation, how.hue)):
        return images

    def factor(place: int, strength: float) -> tf.Tensor:
        low = max(0.0, 1.0 - strength)
        return _of_images(low + (1.0 + strength - low) * numbers[:, place])

    x = tf.cast(images, tf.float32)
    if how.brightness:
        x = tf.clip_by_value(factor(_BRIGHTNESS, how.brightness) * x, 0.0, 255.0)
    if how.contrast:
        x = _blended(x, _mean_grey(x), factor(_CONTRAST, how.contrast))
    if how.saturation:
        x = _blended(x, _grey(x), factor(_SATURATION, how.saturation))
    if how.hue:
        turn = _of_images(how.hue * (2.0 * numbers[:, _HUE] - 1.0))
        hue, *others = tf.split(tf.image.rgb_to_hsv(x), 3, axis=3)
        x = tf.image.hsv_to_rgb(tf.concat([(hue + turn) % 1.0, *others], axis=3))
    return tf.clip_by_value(x, 0.0, 255.0)


def cut_out(images: tf.Tensor, numbers: tf.Tensor, size: float) -> tf.Tensor:
    """Images with a square of zeros, whose middle is any pixel: some of it may lie outside (arXiv 1708.04552).

    `size` is its side in pixels, or below 1 a part of the image's shorter side; `numbers` are two for each image.
    """
    height, width = images.shape[1:3]
    side = cutout_side(size, height, width)

    def inside(length: int, drawn: tf.Tensor) -> tf.Tensor:
        first = tf.cast(drawn * length, tf.int32)[:, tf.newaxis] - side // 2
        return tf.cast((tf.range(length) >= first) & (tf.range(length) < first + side), images.dtype)

    rows, columns = inside(height, numbers[:, 0]), inside(width, numbers[:, 1])
    return images * (1 - rows[:, :, tf.newaxis, tf.newaxis] * columns[:, tf.newaxis, :, tf.newaxis])


def cutout_side(size: float, height: int, width: int) -> int:
    """The side, in pixels, of the square that `cutout` cuts out."""
    return round(size) if size >= 1 else max(1, round(size * min(height, width)))


def _of_images(values: tf.Tensor) -> tf.Tensor:
    """One for each image, [batch], beside images."""
    return values[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _grey(x: tf.Tensor) -> tf.Tensor:
    return x if x.shape[3] == 1 else tf.add_n([w * c for w, c in zip(_GREY, tf.split(x, 3, axis=3), strict=True)])


def _mean_grey(x: tf.Tensor) -> tf.Tensor:
    """Of each image, its grey in whole numbers: the order of a float sum would be another one in another batch."""
    total = tf.reduce_sum(tf.cast(tf.round(_grey(x)), tf.int64), axis=[1, 2, 3], keepdims=True)
    return tf.cast(total, tf.float32) * (1.0 / (x.shape[1] * x.shape[2]))


def _blended(x: tf.Tensor, other: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(share * x + (1.0 - share) * other, 0.0, 255.0)
