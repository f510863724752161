"""Images inside the compiled step, against NumPy."""

import augmented
import numpy as np
import pytest

from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.data.augmentation import Augmentation  # noqa: E402
from kdrun.data.preparation import Preparation  # noqa: E402
from kdrun.models.preprocessing import gathered, images_at_once, prepare, seen  # noqa: E402


def _images(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("shape", "size"), [((7, 7), 8), ((7, 7), 13), ((28, 28), 32), ((9, 9), 5), ((6, 9), 9)])
def test_prepare_resizes_bilinearly_and_scales(channels, shape, size):
    images = _images(3, *shape, channels)
    expected = np.stack([augmented.resized(image / 255, size, size) for image in images])
    result = prepare(tf.constant(images), Preparation(size))
    assert result.dtype == tf.float32
    assert result.shape == expected.shape
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-6)
    assert result.numpy().min() >= 0
    assert result.numpy().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_normalises_after_resizing(channels):
    images, random = _images(3, 7, 9, channels), np.random.default_rng(1)
    mean, std = random.normal(size=channels), random.uniform(0.1, 2, channels)
    how = Preparation(13, tuple(mean), tuple(std))
    expected = np.stack([(augmented.resized(image / 255, 13, 13) - mean) / std for image in images])
    for function in (prepare, tf.function(prepare)):
        np.testing.assert_allclose(function(tf.constant(images), how).numpy(), expected, rtol=0, atol=2e-5)


def test_a_flat_image_stays_flat():
    for value in (0, 1, 128, 255):
        result = prepare(tf.fill([1, 5, 5, 1], tf.constant(value, tf.uint8)), Preparation(9)).numpy()
        np.testing.assert_allclose(result, np.full((1, 9, 9, 1), value / 255), rtol=2e-7)


def _operations(images, size):
    graph = (
        tf.function(lambda x: prepare(x, Preparation(size)))
        .get_concrete_function(tf.TensorSpec(images.shape, tf.uint8))
        .graph
    )
    return {operation.type for operation in graph.get_operations()}


def test_an_image_of_the_right_size_is_only_scaled():
    every_value = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    result = prepare(tf.constant(every_value), Preparation(16)).numpy()
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


@pytest.mark.parametrize("views_are", ["shifts", "drawn"])
@pytest.mark.parametrize(("side", "channels", "batch"), [(40, 3, 6), (1500, 1, 15)], ids=["small", "big"])
def test_a_gathered_batch_is_each_image_in_its_view_bit_for_bit(side, channels, batch, views_are):
    images = np.repeat(_images(8, side // 10, side // 10, channels), 10, axis=1).repeat(10, axis=2)
    indices = np.random.default_rng(1).integers(8, size=batch).astype(np.int32)
    views = np.random.default_rng(2).integers(18, size=batch).astype(np.int32)
    how = Augmentation(1, True) if views_are == "shifts" else Augmentation(1, True, 0.3, 0.4, 0.4, cutout=5.0, seed=3)
    ways = [Preparation(16), Preparation(24)]
    at, seen_in = tf.constant(indices), tf.constant(views)
    compiled = tf.function(lambda held: gathered(held, at, at, seen_in, how, ways))
    for found, way in zip(compiled(tf.constant(images)), ways, strict=True):
        assert found.shape == (batch, way.image_size, way.image_size, channels)
        for image, index, view in zip(found.numpy(), indices, views, strict=True):
            one = (tf.constant(images[index : index + 1]), tf.constant([index]), tf.constant([view]))
            assert image.tobytes() == seen(*one, how, [way])[0].numpy().tobytes()
