"""Batch normalisation by moments that are known: tf_keras' layer, in value, gradient and moving statistics."""

import numpy as np
import pytest

from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402

from kdrun.models.layers import BatchNormalization, Moments  # noqa: E402

FLOAT32, BFLOAT16, FLOAT16 = POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
EXACT = {FLOAT32: 2e-6, BFLOAT16: 2.0**-7, FLOAT16: 2.0**-9}  # by how much of the largest a value may be off
# images of 3x2 pixels in pieces of so many channels; in 16 channels fit 1, 4, 8, or 16 images
PIECES = {"16 images": (4, 3, 6), "4 images": (12,), "8 images": (4, 6), "1 image": (16,)}
CASES = pytest.mark.parametrize(
    ("batch", "pieces", "compiled"),
    [
        (16, PIECES["16 images"], True),
        (13, PIECES["16 images"], False),
        (8, PIECES["4 images"], False),
        (6, PIECES["4 images"], True),
        (8, PIECES["8 images"], False),
        (5, PIECES["1 image"], False),
        (1, PIECES["4 images"], False),
        (None, PIECES["4 images"], True),
    ],
)


def _pieces(batch, channels, policy, seed=0):
    """Features whose means are far from zero and whose channels differ."""
    random = np.random.default_rng(seed)
    dtype = tf_keras.mixed_precision.Policy(policy).compute_dtype
    for count in channels:
        values = random.normal(3 * random.normal(size=count), 0.5 + random.random(count), (batch, 3, 2, count))
        yield tf.cast(values, dtype)


def _layers(channels, policy):
    """Ours and tf_keras', with the same four vectors of weights."""
    random, layers = np.random.default_rng(7), []
    weights = [0.5 + random.random(channels), random.normal(size=channels)]
    weights += [random.normal(size=channels), 0.5 + random.random(channels)]
    for kind in (BatchNormalization, tf_keras.layers.BatchNormalization):
        layers.append(kind(dtype=tf_keras.mixed_precision.Policy(policy)))
        layers[-1].build([None, 3, 2, channels])
        layers[-1].set_weights(weights)
    return layers


def _ours(layer, pieces, training):
    """The pieces concatenated one after the other, as in a dense block."""
    moments = None
    for piece in pieces:
        moments = Moments(dtype=layer.dtype_policy)(piece, moments)
    return layer(tf.concat(pieces[::-1], axis=-1), moments, training=training)


def _theirs(layer, pieces, training):
    return layer(tf.concat(pieces[::-1], axis=-1), training=training)


def _formula(pieces, upstream, weights, training):
    """Values, gradients of the pieces, gamma and beta, and the moving statistics after it; float64."""
    x = np.concatenate([tf.cast(piece, tf.float64) for piece in pieces[::-1]], axis=-1)
    gamma, beta, moving_mean, moving_variance = (each.astype(np.float64) for each in weights)
    count, axes = x[..., 0].size, (0, 1, 2)
    mean, variance = (x.mean(axes), x.var(axes)) if training else (moving_mean, moving_variance)
    deviation = np.sqrt(variance + 1e-3)
    normal = (x - mean) / deviation
    of_x = upstream * gamma / deviation
    if training:
        of_x = gamma / deviation * (upstream - upstream.mean(axes) - normal * (upstream * normal).mean(axes))
        moving_mean = 0.99 * moving_mean + 0.01 * mean
        moving_variance = 0.99 * moving_variance + 0.01 * variance * count / max(count - 1, 1)
    ends = np.cumsum([piece.shape[-1] for piece in pieces[::-1]])[:-1]
    of_pieces = np.split(of_x, ends, axis=-1)[::-1]
    gradients = [*of_pieces, (upstream * normal).sum(axes), upstream.sum(axes)]
    return gamma * normal + beta, gradients, [moving_mean, moving_variance]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
@CASES
def test_it_is_tf_keras_layer_and_the_formula(batch, pieces, compiled, policy, training):
    features = list(_pieces(batch or 8, pieces, policy))
    found = []
    for layer, call in zip(_layers(sum(pieces), policy), (_ours, _theirs), strict=True):
        before = layer.get_weights()

        def step(upstream, *features, layer=layer, call=call):
            with tf.GradientTape() as tape:
                tape.watch(features)
                y = call(layer, list(features), training)
            return y, tape.gradient(y, [*features, layer.gamma, layer.beta], upstream)

        upstream = tf.cast(np.random.default_rng(1).normal(size=(batch or 8, 3, 2, sum(pieces))), features[0].dtype)
        if compiled:
            specs = [tf.TensorSpec([batch, *each.shape[1:]], each.dtype) for each in (upstream, *features)]
            step = tf.function(step, input_signature=specs)
        y, gradients = step(upstream, *features)
        assert y.dtype == features[0].dtype and y.shape == upstream.shape
        found.append([y, *gradients, layer.moving_mean, layer.moving_variance])
    y, gradients, moving = _formula(features, upstream.numpy().astype(np.float64), before, training)
    for ours, theirs, expected in zip(*found, [y, *gradients, *moving], strict=True):
        # beside the largest of all that are compared: what cancels to zero is zero beside what it came from
        scale = max(np.abs(expected).max(), 1.0)
        for value in (ours, theirs):
            np.testing.assert_allclose(tf.cast(value, tf.float64), expected, rtol=0, atol=4 * EXACT[policy] * scale)
    if not training:
        assert all(now.tobytes() == then.tobytes() for now, then in zip(layer.get_weights(), before, strict=True))


def test_what_is_frozen_is_not_moved():
    layer, _ = _layers(12, FLOAT32)
    layer.trainable, (piece,) = False, _pieces(8, (12,), FLOAT32)
    before = layer.get_weights()
    training, inference = (_ours(layer, [piece], training).numpy() for training in (True, False))
    assert training.tobytes() == inference.tobytes()
    assert all(now.tobytes() == then.tobytes() for now, then in zip(layer.get_weights(), before, strict=True))
