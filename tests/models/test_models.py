"""Networks: their sizes, their structure, their seeds, their precision."""

import numpy as np
import pytest

from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402

from kdrun.models.build import build, smallest_image_size  # noqa: E402
from kdrun.models.layers import leaky_relu  # noqa: E402

DENSENET = {"name": "densenet", "growth_rate": 3, "blocks": [2, 1, 1, 2]}
CONVNET = {"name": "convnet", "filters": [4, 6, 5]}
MLP = {"name": "mlp", "hidden_units": [16, 12], "input_dropout": 0.0, "hidden_dropout": 0.0}
DROPOUT = MLP | {"input_dropout": 0.2, "hidden_dropout": 0.5}
EVERY = pytest.mark.parametrize("model", [DENSENET, CONVNET, MLP, DROPOUT], ids=lambda m: m["name"])


def _build(model, shape=(32, 32, 1), num_classes=10, seed=0, policy="float32"):
    return build(model, shape, num_classes, seed, policy)


def _images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def _bytes(network):
    return [weight.tobytes() for weight in network.get_weights()]


def _randomised(network):
    """Weights of which none is zero or one, biases and moving averages included; variances positive."""
    rng = np.random.default_rng(11)
    return [
        (0.5 + rng.random(w.shape) if w.ndim == 1 else 0.3 * rng.normal(size=w.shape)) for w in network.get_weights()
    ]


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        ({"name": "densenet", "growth_rate": 32, "blocks": [6, 12, 24, 16]}, (32, 32, 1), 7_047_370),
        ({"name": "densenet", "growth_rate": 12, "blocks": [6, 12, 24, 16]}, (32, 32, 1), 1_034_770),
        ({"name": "convnet", "filters": [256, 512]}, (28, 28, 1), 1_433_610),
        ({"name": "convnet", "filters": [16, 32]}, (28, 28, 1), 20_490),
        (MLP | {"hidden_units": [800, 800]}, (28, 28, 1), 785 * 800 + 801 * 800 + 801 * 10),
        (DROPOUT | {"hidden_units": [30]}, (28, 28, 3), (3 * 784 + 1) * 30 + 31 * 10),
        (MLP | {"hidden_units": []}, (28, 28, 1), 785 * 10),
    ],
)
def test_parameter_counts(model, shape, count):
    assert _build(model, shape).count_params() == count


@EVERY
def test_images_become_logits(model):
    network = _build(model, (32, 30, 3), num_classes=7)
    assert network.input_shape == (None, 32, 30, 3)
    assert network.output_shape == (None, 7)
    logits = network(_images(5, 32, 30, 3))
    assert logits.dtype == tf.float32
    assert np.isfinite(logits).all()
    # logits, not probabilities
    assert not np.allclose(tf.reduce_sum(logits, axis=1), 1)


@pytest.mark.parametrize("blocks", [[1], [1, 1], [1, 1, 1], [1, 1, 1, 1], [2, 1, 3, 1]])
def test_smallest_image_size_is_the_smallest_that_works(blocks):
    model = {"name": "densenet", "growth_rate": 1, "blocks": blocks}
    size = smallest_image_size(model)
    assert np.isfinite(_build(model, (size, size, 1))(_images(2, size, size, 1))).all()
    if len(blocks) > 1:
        with pytest.raises(ValueError, match="Negative dimension"):
            _build(model, (size - 1, size - 1, 1))
    else:
        assert size == 1


@pytest.mark.parametrize("model", [CONVNET, MLP], ids=lambda m: m["name"])
def test_other_networks_work_from_one_pixel_on(model):
    assert smallest_image_size(model) == 1
    assert _build(model, (1, 1, 1))(_images(2, 1, 1, 1)).shape == (2, 10)


@EVERY
def test_a_seed_gives_the_same_weights_whatever_was_built_before(model):
    first = _bytes(_build(model, seed=5))
    tf_keras.Sequential([tf_keras.layers.Dense(3)])(tf.random.normal([2, 4]))
    np.random.seed(1)
    _build(CONVNET, seed=9)
    _build(model, seed=6)
    assert _bytes(_build(model, seed=5)) == first
    assert _bytes(_build(model, seed=5, policy="mixed_bfloat16")) == first


@EVERY
def test_another_seed_gives_other_weights(model):
    first, other = _build(model, seed=5), _build(model, seed=6)
    for one, another in zip(first.trainable_weights, other.trainable_weights, strict=True):
        if "kernel" in one.name:
            assert np.mean(one.numpy() == another.numpy()) < 0.01


@EVERY
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_computes_short_and_answers_in_float32(model, policy):
    before = tf_keras.mixed_precision.global_policy().name
    network = _build(model, policy=policy)
    assert tf_keras.mixed_precision.global_policy().name == before
    assert network.output.dtype == tf.float32
    assert all(weight.dtype == tf.float32 for weight in network.trainable_weights)
    assert network.get_layer("classifier").compute_dtype == policy.removeprefix("mixed_")
    if policy == "mixed_bfloat16":
        logits = network(_images(3, 32, 32, 1))
        assert logits.dtype == tf.float32
        full = _build(model)(_images(3, 32, 32, 1))
        np.testing.assert_allclose(logits, full, atol=0.05 * np.abs(full).max())
        assert np.any(logits.numpy() != full.numpy())


def test_a_failing_build_puts_the_precision_back():
    before = tf_keras.mixed_precision.global_policy().name
    with pytest.raises(ValueError, match="Negative dimension"):
        _build(DENSENET, (8, 8, 1), policy="mixed_bfloat16")
    assert tf_keras.mixed_precision.global_policy().name == before


def _notebook(growth_rate, blocks, image_shape, num_classes):
    """The source notebook's create_NN, its `is not 3` with the number of blocks at hand."""
    layers = tf_keras.layers

    def bn_relu_conv2d(x, filters, kernel_size):
        x = layers.BatchNormalization()(x)
        x = layers.Activation(tf.nn.relu6)(x)
        return layers.Conv2D(filters, kernel_size, padding="same")(x)

    def transition_block(x):
        x = layers.BatchNormalization()(x)
        x = layers.Conv2D(x.shape[-1] // 2, 1, padding="same")(x)
        return layers.AveragePooling2D((2, 2), strides=2)(x)

    def dense_block(x, num_conv):
        for _ in range(num_conv):
            residual = x
            x = bn_relu_conv2d(x, 4 * growth_rate, 1)
            x = bn_relu_conv2d(x, growth_rate, 3)
            x = layers.Concatenate(axis=-1)([x, residual])
        return x

    x = model_input = layers.Input(shape=image_shape)
    x = layers.Conv2D(2 * growth_rate, 7, strides=2, padding="same")(x)
    x = layers.MaxPooling2D((3, 3), strides=2, padding="same")(x)
    for i, num_conv in enumerate(blocks):
        x = dense_block(x, num_conv)
        if i != len(blocks) - 1:
            x = transition_block(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(num_classes)(x)
    x = layers.Activation("linear", dtype=tf.float32)(x)
    return tf_keras.Model(model_input, x)


@pytest.mark.parametrize("shape", [(32, 32, 1), (37, 33, 3)])
@pytest.mark.parametrize("training", [False, True])
def test_densenet_is_the_notebooks_network(shape, training):
    growth_rate, blocks = 3, [2, 1, 3, 2]
    network = _build({"name": "densenet", "growth_rate": growth_rate, "blocks": blocks}, shape)
    notebook = _notebook(growth_rate, blocks, shape, 10)
    assert network.count_params() == notebook.count_params()
    weights = _randomised(notebook)
    for one in (network, notebook):
        one.set_weights(weights)
    images = 4 * _images(6, *shape)  # large enough for ReLU6 to cut
    logits, expected = network(images, training=training).numpy(), notebook(images, training=training).numpy()
    assert np.ptp(expected, axis=0).min() > 1e-3 * np.abs(expected).max()  # the images make a difference
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    for one, another, before in zip(network.get_weights(), notebook.get_weights(), weights, strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-5, atol=1e-6)  # moving averages too
        if not training:
            np.testing.assert_array_equal(one, before.astype(np.float32))
    if training:
        assert any(np.any(w != b.astype(np.float32)) for w, b in zip(network.get_weights(), weights, strict=True))


def test_convnet_is_the_keras_examples_network():
    network = _build({"name": "convnet", "filters": [4, 6]}, (28, 27, 3))
    layers = tf_keras.layers
    example = tf_keras.Sequential(
        [
            tf_keras.Input((28, 27, 3)),
            layers.Conv2D(4, (3, 3), strides=(2, 2), padding="same"),
            layers.LeakyReLU(alpha=0.2),
            layers.MaxPooling2D(pool_size=(2, 2), strides=(1, 1), padding="same"),
            layers.Conv2D(6, (3, 3), strides=(2, 2), padding="same"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    example.set_weights([w - 0.9 if w.ndim == 1 else w for w in _randomised(example)])
    network.set_weights(example.get_weights())
    images = _images(4, 28, 27, 3)
    expected = example(images).numpy()
    np.testing.assert_allclose(network(images), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float16])
def test_leaky_relu_and_its_gradient_against_numpy(dtype):
    x, upstream = (tf.cast(np.random.default_rng(n).normal(size=(3, 5, 7)), dtype) for n in (0, 1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = leaky_relu(x, 0.2)
    assert found.dtype == dtype
    slope = np.where(tf.cast(x, tf.float64) > 0, 1.0, 0.2)
    for value, into in ((found, x), (tape.gradient(found, x, upstream), upstream)):
        np.testing.assert_allclose(
            tf.cast(value, tf.float64), slope * tf.cast(into, tf.float64), rtol=1e-6 if dtype == tf.float32 else 2.0**-7
        )


@pytest.mark.parametrize("model", [MLP, DROPOUT], ids=["plain", "dropout"])
def test_mlp_in_inference_against_numpy(model):
    network = _build(model, (5, 4, 3))
    network.set_weights(_randomised(network))
    x = images = _images(6, 5, 4, 3) - 0.5
    w1, b1, w2, b2, w3, b3 = (w.astype(np.float64) for w in network.get_weights()[:6])
    x = np.maximum(x.reshape(6, -1) @ w1 + b1, 0)
    x = np.maximum(x @ w2 + b2, 0)
    np.testing.assert_allclose(network(images, training=False), x @ w3 + b3, rtol=1e-5, atol=1e-5)


def _draws(network, count=3):
    images = _images(8, 32, 32, 1)
    return [network(images, training=True).numpy().tobytes() for _ in range(count)]


def test_dropout_is_reproducible_from_the_seed():
    first = _draws(_build(DROPOUT, seed=5))
    _draws(_build(DROPOUT, seed=6))
    tf.random.normal([3])
    assert _draws(_build(DROPOUT, seed=5)) == first
    assert len(set(first)) == 3  # every step drops others
    other = _build(DROPOUT, seed=6)
    other.set_weights(_build(DROPOUT, seed=5).get_weights())
    assert not set(_draws(other)) & set(first)


def test_without_dropout_training_is_inference():
    network = _build(MLP)
    assert len(set(_draws(network))) == 1


def test_dropout_drops_as_many_and_scales_what_stays():
    network = _build(DROPOUT | {"hidden_units": [50]}, (20, 20, 1))
    for name, rate in (("pixels_dropout", 0.2), ("hidden1_dropout", 0.5)):
        layer = network.get_layer(name)
        dropped = layer(np.ones((100, 100), np.float32), training=True).numpy()
        assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / (1 - rate))}
        assert np.mean(dropped == 0) == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / 10_000))
    # the two layers do not drop the same places
    masks = [
        network.get_layer(n)(np.ones((99, 99), np.float32), training=True).numpy() > 0
        for n in ("pixels_dropout", "hidden1_dropout")
    ]
    assert abs(np.corrcoef(masks[0].ravel(), masks[1].ravel())[0, 1]) < 5 / 99


def test_a_checkpoint_of_the_model_goes_on_with_the_same_dropout(tmp_path):
    network = _build(DROPOUT, seed=5)
    _draws(network, 2)
    saved = tf.train.Checkpoint(model=network).write(str(tmp_path / "state"))
    following = _draws(network, 3)
    resumed = _build(DROPOUT, seed=8)
    tf.train.Checkpoint(model=resumed).read(saved).assert_consumed()
    assert _draws(resumed, 3) == following
