"""The nets of the CIFAR benchmark: their sizes, their structure, their features, their gradients."""

import re
from functools import lru_cache

import numpy as np
import pytest

from kdrun.errors import InputError
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402

from kdrun import registry  # noqa: E402
from kdrun.config import rules  # noqa: E402
from kdrun.models.build import build, check, features, maps, smallest_image_size  # noqa: E402
from kdrun.models.surgery import classifier, multiply_adds, with_features  # noqa: E402


def resnet(depth, *widths):
    return {"name": "resnet", "depth": depth, "widths": list(widths)}


def wide_resnet(depth, width):
    return {"name": "wide_resnet", "depth": depth, "width": width}


def vgg(depth):
    return {"name": "vgg", "depth": depth}


def mobilenet_v2(width, expansion, output_stride=16):
    return {"name": "mobilenet_v2", "width": width, "expansion": expansion, "output_stride": output_stride}


def shufflenet_v2(width, output_stride=8):
    return {"name": "shufflenet_v2", "width": width, "output_stride": output_stride}


def name_of(model):
    return re.sub(r"[^\w.]+", "_", "_".join(map(str, model.values()))).strip("_")


NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
# trainable parameters with 10 and with 100 classes, counted from the benchmark's public code
QUICK = [
    (resnet(8, *NARROW), 78_042, 83_892),
    (resnet(20, *NARROW), 272_474, 278_324),
    (resnet(8, *WIDE), 1_210_410, 1_233_540),
    (wide_resnet(16, 2), 691_674, 703_284),
    (vgg(8), 3_918_858, 3_965_028),
    (mobilenet_v2(0.5, 6), 697_546, 812_836),
    (shufflenet_v2(1.0), 1_263_278, 1_355_528),
]
OTHERS = [
    (resnet(14, *NARROW), 175_258, 181_108),
    (resnet(32, *NARROW), 466_906, 472_756),
    (resnet(44, *NARROW), 661_338, 667_188),
    (resnet(56, *NARROW), 855_770, 861_620),
    (resnet(110, *NARROW), 1_730_714, 1_736_564),
    (resnet(32, *WIDE), 7_410_730, 7_433_860),
    (resnet(18, 64, 64, 128, 256, 512), 11_173_962, 11_220_132),  # ResNet18 with a stem for small images
    (wide_resnet(16, 1), 175_066, 180_916),
    (wide_resnet(40, 1), 563_930, 569_780),
    (wide_resnet(40, 2), 2_243_546, 2_255_156),
    (vgg(13), 9_416_010, 9_462_180),
    # torchvision's, with 1000 classes: 2,278,604 and 7,393,996
    (shufflenet_v2(1.0, 32), 2_278_604 - 990 * 1025, 2_278_604 - 900 * 1025),
    (shufflenet_v2(2.0, 32), 7_393_996 - 990 * 2049, 7_393_996 - 900 * 2049),
]
# small ones, each with another way through its code than the others; the deep ones take seconds to build
SMALL = [resnet(8, 4, 4, 6, 8), resnet(10, 6, 4), wide_resnet(16, 1), vgg(8)]
DEEP = [mobilenet_v2(0.1, 2), shufflenet_v2(0.5), mobilenet_v2(0.25, 1, 32), shufflenet_v2(0.5, 32)]


def each(*quick):
    """All small nets, those that are not quick marked as slow."""
    slow = [pytest.param(model, marks=pytest.mark.slow) for model in DEEP if model not in quick]
    return pytest.mark.parametrize("model", [*quick, *slow], ids=map(name_of, [*quick, *(p.values[0] for p in slow)]))


@pytest.mark.parametrize(
    ("model", "ten", "hundred"),
    [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS)],
    ids=[name_of(each[0]) for each in (*QUICK, *OTHERS)],
)
def test_trainable_parameters_are_those_of_the_benchmarks_nets(model, ten, hundred):
    network = build(model, (32, 32, 3), 100, 0, "float32")
    found = sum(weight.shape.num_elements() for weight in network.trainable_weights)
    units = network.get_layer("embedding").output.shape[1]
    # of the 100 classes' weights 90 are left out: the number of classes is in nothing but the last layer's shape
    assert [tuple(each.shape) for each in classifier(network).trainable_weights] == [(units, 100), (100,)]
    assert (found - 90 * (units + 1), found) == (ten, hundred)


SIZE = 33


@lru_cache
def _made(name):
    """A small network, its initial weights, and images."""
    model = next(each for each in (*SMALL, *DEEP) if name_of(each) == name)
    network = build(model, (SIZE, SIZE, 3), 7, 1, "float32")
    return network, network.get_weights(), np.random.default_rng(0).random([16, SIZE, SIZE, 3], dtype=np.float32)


def made(model):
    network, initial, images = _made(name_of(model))
    network.set_weights(initial)
    return network, images


@each(*SMALL)
def test_features_are_maps_or_vectors_as_they_are_said_to_be(model):
    network, images = made(model)
    _, found = with_features(network, features(model))(images[:2])
    assert [*found] == [*features(model)] and [*found][-1] == "embedding"
    assert {name for name, each in found.items() if each.shape.rank == 4} == maps(model)
    assert {name for name, each in found.items() if each.shape.rank == 2} == {"embedding"}


STAGES = {  # what size of images -> the maps' height in each stage
    name_of(resnet(8, 4, 4, 6, 8)): {33: [33, 17, 9], 1: [1, 1, 1]},
    name_of(resnet(10, 6, 4)): {33: [33], 1: [1]},
    name_of(wide_resnet(16, 1)): {33: [33, 17, 9], 1: [1, 1, 1]},
    name_of(vgg(8)): {33: [33, 16, 8, 4, 4], 64: [64, 32, 16, 8, 4], 8: [8, 4, 2, 1, 1]},
    name_of(mobilenet_v2(0.1, 2)): {33: [17, 9, 5, 3], 1: [1, 1, 1, 1]},
    name_of(mobilenet_v2(0.25, 1, 32)): {224: [56, 28, 14, 7], 1: [1, 1, 1, 1]},
    name_of(shufflenet_v2(0.5)): {33: [17, 9, 5], 1: [1, 1, 1]},
    name_of(shufflenet_v2(0.5, 32)): {224: [28, 14, 7], 1: [1, 1, 1]},
}


@each(*SMALL)
def test_maps_have_the_sizes_that_they_should_from_the_smallest_images_on(model):
    expected = STAGES[name_of(model)]
    assert smallest_image_size(model) == min(expected)
    for size, heights in expected.items():
        network = made(model)[0] if size == SIZE else build(model, (size, size, 1), 7, 0, "float32")
        layers = [layer for name, layer in features(model).items() if name in maps(model)]
        assert [network.get_layer(layer).output.shape[1] for layer in layers] == heights
    if min(expected) > 1:
        with pytest.raises(ValueError, match="Negative dimension"):
            build(model, (min(expected) - 1,) * 2 + (1,), 7, 0, "float32")


class Reference:
    """What a network's layers compute, in float64, by their names and weights alone; maps are [channels last]."""

    def __init__(self, network):
        self.stages = []  # the maps that each ends with
        self.of = {layer.name: [w.astype(np.float64) for w in layer.get_weights()] for layer in network.layers}

    def __contains__(self, name):
        return name in self.of

    def conv(self, name, x, strides=1):
        kernel, *bias = self.of[name]
        return tf.nn.conv2d(x, kernel, strides, "SAME").numpy() + (bias[0] if bias else 0.0)

    def each(self, name, x, strides=1):
        """A convolution of each channel by itself, as one of all channels whose other weights are zero."""
        (kernel,) = self.of[name]
        return tf.nn.conv2d(x, kernel * np.eye(x.shape[-1]), strides, "SAME").numpy()

    def norm(self, name, x):
        gamma, beta, mean, variance = self.of[f"{name}_norm"]
        return gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta

    def relu(self, name, x):
        return np.maximum(self.norm(name, x), 0)

    def logits(self, x):
        kernel, bias = self.of["classifier"]
        return x.mean(axis=(1, 2)) @ kernel + bias


def _resnet(of, x, depth, widths):
    x = of.relu("stem", of.conv("stem", x))
    for stage in range(1, len(widths)):
        for block in range(1, (depth - 2) // (2 * (len(widths) - 1)) + 1):
            name, strides = f"stage{stage}_{block}", 1 + (stage > 1 and block == 1)
            new = of.relu(f"{name}_conv1", of.conv(f"{name}_conv1", x, strides))
            new = of.norm(f"{name}_conv2", of.conv(f"{name}_conv2", new))
            shortcut = f"{name}_shortcut"
            x = np.maximum(new + (of.norm(shortcut, of.conv(shortcut, x, strides)) if shortcut in of else x), 0)
        of.stages.append(x)
    return of.logits(x)


def _wide_resnet(of, x, depth, width):
    x = of.conv("stem", x)
    for stage in (1, 2, 3):
        for block in range(1, (depth - 4) // 6 + 1):
            name, strides = f"stage{stage}_{block}", 1 + (stage > 1 and block == 1)
            before = of.relu(f"{name}_conv1", x)
            new = of.relu(f"{name}_conv2", of.conv(f"{name}_conv1", before, strides))
            shortcut = of.conv(f"{name}_shortcut", before, strides) if f"{name}_shortcut" in of else x
            x = of.conv(f"{name}_conv2", new) + shortcut
        of.stages.append(x)
    return of.logits(of.relu("last", x))


def _vgg(of, x, depth):
    for stage, layers in enumerate({8: (1, 1, 1, 1, 1)}[depth], start=1):
        for number in range(1, layers + 1):
            x = of.relu(f"stage{stage}_{number}", of.conv(f"stage{stage}_{number}", x))
        of.stages.append(x)
        if stage <= 3:
            rows, columns = (side // 2 * 2 for side in x.shape[1:3])
            corners = [x[:, a:rows:2, b:columns:2] for a in (0, 1) for b in (0, 1)]
            x = np.max(corners, axis=0)
    return of.logits(x)


def _mobilenet_v2(of, x, width, expansion, output_stride):
    x = of.relu("stem", of.conv("stem", x, 2))
    groups = [(1, 1), (2, 1 + (output_stride == 32)), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)]
    for group, (blocks, strides) in enumerate(groups, start=1):
        for block in range(1, blocks + 1):
            name = f"group{group}_{block}"
            new = of.relu(f"{name}_expand", of.conv(f"{name}_expand", x))
            each = of.each(f"{name}_depthwise", new, strides if block == 1 else 1)
            new = of.norm(f"{name}_project", of.conv(f"{name}_project", of.relu(f"{name}_depthwise", each)))
            x = x + new if new.shape == x.shape else new
        of.stages += [x] if group in (2, 3, 5, 7) else []
    return of.logits(of.relu("last", of.conv("last", x)))


def _shufflenet_v2(of, x, width, output_stride):
    x = of.relu("stem", of.conv("stem", x, 1 + (output_stride == 32)))
    if output_stride == 32:
        x = tf.nn.max_pool2d(x, 3, 2, "SAME").numpy()
    for stage, blocks in enumerate((4, 8, 4), start=1):
        for block in range(1, blocks + 1):
            name, strides = f"stage{stage}_{block}", 1 + (block == 1)
            half = x.shape[-1] // 2
            kept, new = (x, x) if block == 1 else (x[..., :half], x[..., half:])
            if block == 1:
                kept = of.norm(f"{name}_kept_depthwise", of.each(f"{name}_kept_depthwise", kept, strides))
                kept = of.relu(f"{name}_kept", of.conv(f"{name}_kept", kept))
            new = of.relu(f"{name}_conv1", of.conv(f"{name}_conv1", new))
            new = of.norm(f"{name}_depthwise", of.each(f"{name}_depthwise", new, strides))
            both = np.concatenate([kept, of.relu(f"{name}_conv2", of.conv(f"{name}_conv2", new))], axis=-1)
            # the channels in two rows, read column by column (section 3.1 of arXiv 1707.01083)
            x = both.reshape(*both.shape[:3], 2, -1).swapaxes(3, 4).reshape(both.shape)
        of.stages.append(x)
    return of.logits(of.relu("last", of.conv("last", x)))


@each(*SMALL)
def test_a_network_is_the_papers_in_float64(model):
    network, images = made(model)
    images = 4 * images
    random = np.random.default_rng(5)
    for weight in network.weights:
        if "gamma" in weight.name or "variance" in weight.name:
            weight.assign(0.5 + random.random(weight.shape))
        elif weight.shape.rank == 1:
            weight.assign(0.1 * random.normal(size=weight.shape))
    of, keys = Reference(network), {key: value for key, value in model.items() if key != "name"}
    expected = globals()[f"_{model['name']}"](of, images.astype(np.float64), **keys)
    logits, found = with_features(network, features(model))(images, training=False)
    assert np.ptp(expected, axis=0).min() > 1e-3 * np.abs(expected).max()  # the images make a difference
    embedding = found.pop("embedding")
    for one, another in zip([logits, *found.values()], [expected, *of.stages], strict=True):
        np.testing.assert_allclose(one, another, atol=2e-5 * np.abs(another).max())
    kernel, bias = classifier(network).get_weights()
    np.testing.assert_allclose(embedding @ kernel + bias, expected, atol=2e-5 * np.abs(expected).max())


@each(*SMALL)
def test_every_weight_is_learned_and_a_step_lowers_the_loss(model):
    network, images = made(model)
    labels = np.arange(len(images)) % 7

    @tf.function
    def loss_and_gradients():
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return loss, tape.gradient(loss, network.trainable_weights)

    before, gradients = loss_and_gradients()
    for weight, gradient in zip(network.trainable_weights, gradients, strict=True):
        assert np.isfinite(gradient).all() and np.any(gradient != 0), weight.name
    steepness = sum(np.sum(gradient.numpy() ** 2) for gradient in gradients)
    for weight, gradient in zip(network.trainable_weights, gradients, strict=True):
        weight.assign_sub(1e-3 / np.sqrt(steepness) * gradient)
    assert loss_and_gradients()[0] < before


@each(*SMALL)
def test_initial_weights_are_hes(model):
    """So that values neither vanish nor grow: of each convolution normal, with variance 2 / (size^2 filters)."""
    network, _ = made(model)
    found = []
    for layer in network.layers:
        for weight in layer.trainable_weights if layer.name != "classifier" else ():
            if weight.shape.rank == 4:
                height, width, _, filters = weight.shape
                found.append(weight.numpy().ravel() * np.sqrt(height * width * filters / 2))
    values = np.concatenate(found)
    assert np.mean(values) == pytest.approx(0, abs=4 / np.sqrt(len(values)))
    assert np.var(values) == pytest.approx(1, abs=4 * np.sqrt(2 / len(values)))


@pytest.mark.slow
@each(*SMALL)
def test_half_precision_answers_as_float32_does(model):
    full, images = made(model)
    half = build(model, (SIZE, SIZE, 3), 7, 1, "mixed_bfloat16")
    assert half.get_layer("embedding").compute_dtype == "bfloat16" and half.output.dtype == tf.float32
    assert all(
        one.tobytes() == other.tobytes() for one, other in zip(full.get_weights(), half.get_weights(), strict=True)
    )
    expected, found = full(images).numpy(), half(images).numpy()
    np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())
    assert np.any(found != expected)


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        # convolutions of 16 channels on 32x32 pixels, of 32 on 16x16, of 64 on 8x8, two shortcuts, the classifier
        (
            resnet(8, *NARROW),
            32,
            (27 * 16 + 2 * 144 * 16) * 1024
            + (144 * 32 + 288 * 32) * 256
            + (288 * 64 + 576 * 64) * 64
            + 16 * 32 * 256
            + 32 * 64 * 64
            + 640,
        ),
        pytest.param(resnet(20, *NARROW), 32, 40_813_184, marks=pytest.mark.slow),  # 40.8 million as others count it
        pytest.param(shufflenet_v2(1.0, 32), 224, 146e6, marks=pytest.mark.slow),  # the paper's table 8
    ],
    ids=["resnet8", "resnet20", "shufflenet_v2"],
)
def test_multiply_adds_are_those_of_every_convolution(model, size, expected):
    classes = 1000 if size == 224 else 10
    found = multiply_adds(build(model, (size, size, 3), classes, 0, "float32"))
    assert found == expected if isinstance(expected, int) else found == pytest.approx(expected, rel=0.01)


def test_convolutions_of_single_channels_count():
    layers = tf_keras.layers
    network = tf_keras.Sequential([tf_keras.Input((8, 6, 3)), layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2)])
    network.add(layers.Conv2D(4, 1, groups=2))
    network.add(layers.SeparableConv2D(5, 3, padding="same"))
    network.add(layers.BatchNormalization())
    assert multiply_adds(network) == (9 * 6 + 3 * 4 + 9 * 4 + 4 * 5) * 4 * 3


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (resnet(10, *NARROW), ["depth=10", "6 n + 2", "Give 8"]),
        (resnet(5, *NARROW), ["depth=5", "Give 8"]),
        (resnet(20, 16), ["widths=[16]", "[16,16,32,64]"]),
    ],
    ids=["between", "shallow", "no stage"],
)
def test_keys_that_do_not_fit_each_other_are_refused_before_anything_is_made(model, says):
    with pytest.raises(InputError) as refused:
        check(model)
    assert all(each in str(refused.value) for each in says) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "key", "given", "says"),
    [
        ("wide_resnet", "depth", 20, ["depth must be 6 n + 4", "got 20", "depth=22"]),
        ("wide_resnet", "depth", 4, ["depth must be a whole number of at least 10", "got 4"]),
        ("vgg", "depth", 9, ["depth must be one of 8, 11, 13, 16, 19", "got 9"]),
        ("mobilenet_v2", "width", 0.01, ["width must be a number of at least 0.1", "got 0.01"]),
        ("mobilenet_v2", "output_stride", 8, ["output_stride must be one of 16, 32", "got 8"]),
        ("shufflenet_v2", "width", 0.7, ["width must be one of 0.5, 1, 1.5, 2", "got 0.7"]),
    ],
)
def test_a_keys_own_rule_says_what_is_allowed(name, key, given, says):
    rule = rules.of_annotation(registry.get("model", name).function.__annotations__[key])
    with pytest.raises(InputError) as refused:
        rule(key, given)
    assert all(each in str(refused.value) for each in says)


def test_whole_widths_are_widths():
    rule = rules.of_annotation(registry.get("model", "shufflenet_v2").function.__annotations__["width"])
    assert rule("width", 1) == 1.0 and isinstance(rule("width", 1), float)
