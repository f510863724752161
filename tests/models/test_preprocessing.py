"""Images inside the compiled step, against NumPy."""

import numpy as np
import pytest

from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.models.preprocessing import augment, gathered, images_at_once, prepare  # noqa: E402


def _images(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def _augmented(image, view, jitter, flip):
    """Pad with zeros, cut a window out, mirror: what a view means, pixel by pixel."""
    height, width, _ = image.shape
    side = 2 * jitter + 1
    mirrored, shift = divmod(view, side * side)
    assert mirrored in ((0, 1) if flip else (0,))
    down, right = divmod(shift, side)
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source_row, source_column = row + down - jitter, column + right - jitter
            if 0 <= source_row < height and 0 <= source_column < width:
                result[row, column] = image[source_row, source_column]
    return result[:, ::-1] if mirrored else result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("jitter", "flip"), [(0, False), (0, True), (1, False), (2, False), (1, True), (2, True)])
def test_every_view_is_exactly_the_shifted_and_mirrored_image(channels, jitter, flip):
    views = (2 * jitter + 1) ** 2 * (1 + flip)
    images = _images(views, 5, 6, channels)
    order = np.random.default_rng(0).permutation(views).astype(np.int32)
    expected = np.stack([_augmented(image, int(view), jitter, flip) for image, view in zip(images, order, strict=True)])
    compiled = tf.function(augment, reduce_retracing=True)
    for function in (augment, compiled):
        result = function(tf.constant(images), tf.constant(order), jitter, flip)
        assert result.dtype == tf.uint8
        assert result.shape == images.shape
        assert result.numpy().tobytes() == expected.tobytes()


def test_views_are_all_different():
    image = _images(1, 8, 8, 1)
    views = 2 * 25
    results = augment(np.repeat(image, views, axis=0), np.arange(views, dtype=np.int32), 2, True).numpy()
    assert len({result.tobytes() for result in results}) == views


def test_augment_works_when_only_the_batch_size_is_unknown():
    @tf.function(input_signature=[tf.TensorSpec([None, 5, 6, 3], tf.uint8), tf.TensorSpec([None], tf.int32)])
    def compiled(images, views):
        return augment(images, views, 1, True)

    images = _images(7, 5, 6, 3)
    views = np.array([0, 4, 8, 9, 13, 17, 2], np.int32)
    expected = np.stack([_augmented(image, int(view), 1, True) for image, view in zip(images, views, strict=True)])
    assert compiled(images, views).numpy().tobytes() == expected.tobytes()


def _resized(image, size):
    """Bilinear with half-pixel centres and the border repeated, float64, one output pixel after the other."""
    height, width, _ = image.shape
    image = image.astype(np.float64) / 255
    result = np.empty((size, size, image.shape[2]))

    def around(position, length):
        low = int(np.floor(position))
        return max(low, 0), min(low + 1, length - 1), position - low

    for row in range(size):
        top, bottom, down = around((row + 0.5) * height / size - 0.5, height)
        for column in range(size):
            left, right, across = around((column + 0.5) * width / size - 0.5, width)
            upper = image[top, left] * (1 - across) + image[top, right] * across
            lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
            result[row, column] = upper * (1 - down) + lower * down
    return result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("shape", "size"), [((7, 7), 8), ((7, 7), 13), ((28, 28), 32), ((9, 9), 5), ((6, 9), 9)])
def test_prepare_resizes_bilinearly_and_scales(channels, shape, size):
    images = _images(3, *shape, channels)
    expected = np.stack([_resized(image, size) for image in images])
    result = prepare(tf.constant(images), size)
    assert result.dtype == tf.float32
    assert result.shape == expected.shape
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-6)
    assert result.numpy().min() >= 0
    assert result.numpy().max() <= 1


def test_a_flat_image_stays_flat():
    for value in (0, 1, 128, 255):
        result = prepare(tf.fill([1, 5, 5, 1], tf.constant(value, tf.uint8)), 9).numpy()
        np.testing.assert_allclose(result, np.full((1, 9, 9, 1), value / 255), rtol=2e-7)


def _operations(images, size):
    graph = tf.function(lambda x: prepare(x, size)).get_concrete_function(tf.TensorSpec(images.shape, tf.uint8)).graph
    return {operation.type for operation in graph.get_operations()}


def test_an_image_of_the_right_size_is_only_scaled():
    every_value = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    result = prepare(tf.constant(every_value), 16).numpy()
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, every_value / 255.0, rtol=2e-7)
    assert result.min() == 0
    assert result.max() == 1
    assert not any("Resize" in kind for kind in _operations(every_value, 16))
    assert any("Resize" in kind for kind in _operations(every_value, 17))  # the check sees a resize where there is one


@pytest.mark.parametrize(
    ("batch_size", "shape", "expected"),
    [
        *((500, (side, side, 1), 500) for side in (8, 28, 32, 64, 112, 256)),
        (128, (224, 224, 3), 128),
        (500, (224, 224, 3), 222),
        (500, (1000, 1000, 1), 33),
        (2, (1000, 1000, 1), 2),
        (500, (3000, 3000, 3), 1),
        (500, (9000, 9000, 3), 1),
    ],
)
def test_as_many_images_at_once_as_128_mib_hold(batch_size, shape, expected):
    assert images_at_once(batch_size, shape) == expected


@pytest.mark.parametrize(("side", "channels", "batch"), [(40, 3, 6), (1500, 1, 15)], ids=["small", "big"])
def test_a_gathered_batch_is_each_image_in_its_view_bit_for_bit(side, channels, batch):
    images = np.repeat(_images(8, side // 10, side // 10, channels), 10, axis=1).repeat(10, axis=2)
    indices = np.random.default_rng(1).integers(8, size=batch).astype(np.int32)
    views = np.random.default_rng(2).integers(18, size=batch).astype(np.int32)
    compiled = tf.function(lambda held: gathered(held, tf.constant(indices), tf.constant(views), 16, 1, True))
    found = compiled(tf.constant(images)).numpy()
    assert found.shape == (batch, 16, 16, channels)
    for image, index, view in zip(found, indices, views, strict=True):
        alone = prepare(augment(images[index : index + 1], tf.constant([view]), 1, True), 16)
        assert image.tobytes() == alone.numpy().tobytes()
