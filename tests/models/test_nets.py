"""The nets of the CIFAR benchmark: their sizes, their structure, their features, their gradients."""

import re

import numpy as np
import pytest

from kdrun.errors import InputError
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.models.build import build, features, maps, smallest_image_size  # noqa: E402
from kdrun.models.surgery import classifier, with_features  # noqa: E402


def resnet(depth, *widths):
    return {"name": "resnet", "depth": depth, "widths": list(widths)}


NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
# trainable parameters with 10 and with 100 classes, counted from the benchmark's public code
COUNTS = [
    (resnet(8, *NARROW), 78_042, 83_892),
    (resnet(14, *NARROW), 175_258, 181_108),
    (resnet(20, *NARROW), 272_474, 278_324),
    (resnet(32, *NARROW), 466_906, 472_756),
    (resnet(44, *NARROW), 661_338, 667_188),
    (resnet(56, *NARROW), 855_770, 861_620),
    (resnet(110, *NARROW), 1_730_714, 1_736_564),
    (resnet(8, *WIDE), 1_210_410, 1_233_540),
    (resnet(32, *WIDE), 7_410_730, 7_433_860),
    (resnet(18, 64, 64, 128, 256, 512), 11_173_962, 11_220_132),  # ResNet18 with a stem for small images
]
DEEP = 16  # layers from which building takes seconds
# small ones, each with another way through its code than the others
SMALL = [resnet(8, 4, 4, 6, 8), resnet(10, 6, 4)]


def name_of(model):
    return re.sub(r"[^\w.]+", "_", "_".join(map(str, model.values()))).strip("_")


EVERY = pytest.mark.parametrize("model", SMALL, ids=name_of)


@pytest.mark.parametrize(
    ("model", "ten", "hundred"),
    [
        pytest.param(*each, id=name_of(each[0]), marks=pytest.mark.slow if each[0].get("depth", 0) > DEEP else ())
        for each in COUNTS
    ],
)
def test_trainable_parameters_are_those_of_the_benchmarks_nets(model, ten, hundred):
    found = [build(model, (32, 32, 3), classes, 0, "float32").trainable_weights for classes in (10, 100)]
    assert [sum(weight.shape.num_elements() for weight in weights) for weights in found] == [ten, hundred]


@EVERY
@pytest.mark.parametrize("size", [33, None], ids=["33", "smallest"])
def test_features_are_maps_or_vectors_as_they_are_said_to_be(model, size):
    """In order of depth, the embedding last, which is what the classifier reads."""
    size = size or smallest_image_size(model)
    network = build(model, (size, size, 3), 7, 0, "float32")
    logits, found = with_features(network, features(model))(np.zeros([2, size, size, 3], np.float32))
    assert logits.shape == (2, 7)
    assert [*found] == [*features(model)] and [*found][-1] == "embedding"
    assert {name for name, each in found.items() if each.shape.rank == 4} == maps(model)
    assert {name for name, each in found.items() if each.shape.rank == 2} == {"embedding"}
    heights = [each.shape[1] for each in found.values() if each.shape.rank == 4]
    assert heights == sorted(heights, reverse=True)
    layers = [network.layers.index(network.get_layer(layer)) for layer in features(model).values()]
    assert layers == sorted(layers)
    kernel, bias = classifier(network).get_weights()
    np.testing.assert_allclose(logits, found["embedding"] @ kernel + bias, atol=1e-6)


@EVERY
def test_a_step_of_training_moves_every_weight_downhill(model):
    """A small step along the gradient changes the loss by what the gradient says, and none of the weights has none."""
    random = np.random.default_rng(0)
    images = random.random([16, 16, 16, 3], dtype=np.float32)
    network, labels = build(model, images.shape[1:], 5, 3, "float32"), np.arange(16) % 5

    @tf.function
    def loss():
        logits = network(images, training=True)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    with tf.GradientTape() as tape:
        before = loss()
    gradients = tape.gradient(before, network.trainable_weights)
    for weight, gradient in zip(network.trainable_weights, gradients, strict=True):
        assert np.isfinite(gradient).all() and np.any(gradient != 0), weight.name
    steepness = sum(np.sum(gradient.numpy().astype(np.float64) ** 2) for gradient in gradients)
    changes = []
    for sign in (-1, 1):
        rate = sign * 2e-3 / np.sqrt(steepness)
        for weight, gradient in zip(network.trainable_weights, gradients, strict=True):
            weight.assign_add(rate * gradient)
        changes.append(loss().numpy())
        for weight, gradient in zip(network.trainable_weights, gradients, strict=True):
            weight.assign_sub(rate * gradient)
    assert (changes[1] - changes[0]) / 4e-3 == pytest.approx(np.sqrt(steepness), rel=0.05)


@EVERY
def test_half_precision_answers_as_float32_does(model):
    images = np.random.default_rng(0).random([4, 32, 32, 3], dtype=np.float32)
    full, half = (build(model, (32, 32, 3), 10, 0, policy) for policy in ("float32", "mixed_bfloat16"))
    assert half.get_layer("embedding").compute_dtype == "bfloat16" and half.output.dtype == tf.float32
    assert all(
        one.numpy().tobytes() == other.numpy().tobytes() for one, other in zip(full.weights, half.weights, strict=True)
    )
    expected = full(images).numpy()
    found = half(images).numpy()
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
    assert np.any(found != expected)


@EVERY
def test_initial_weights_are_hes(model):
    """So that values neither vanish nor grow: of each convolution normal, with variance 2 / (size^2 filters)."""
    network = build(model, (32, 32, 3), 10, 1, "float32")
    found = []
    for layer in network.layers:
        for weight in layer.trainable_weights if layer.name != "classifier" else ():
            if weight.shape.rank == 4:
                height, width, channels, filters = weight.shape
                out = channels * filters if "depthwise" in weight.name else filters
                found.append(weight.numpy().ravel() * np.sqrt(height * width * out / 2))
    values = np.concatenate(found)
    assert np.mean(values) == pytest.approx(0, abs=4 / np.sqrt(len(values)))
    assert np.var(values) == pytest.approx(1, abs=4 * np.sqrt(2 / len(values)))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (resnet(10, *NARROW), ["depth=10", "6 n + 2", "Give 8"]),
        (resnet(5, *NARROW), ["depth=5", "Give 8"]),
        (resnet(20, 16), ["widths=[16]", "[16,16,32,64]"]),
    ],
    ids=lambda each: name_of(each) if isinstance(each, dict) else "",
)
def test_keys_that_do_not_fit_each_other_are_refused_before_anything_is_made(model, says):
    with pytest.raises(InputError) as refused:
        smallest_image_size(model)
    assert all(each in str(refused.value) for each in says) and "\n" not in str(refused.value)
