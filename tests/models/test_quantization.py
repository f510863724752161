"""Networks with their values rounded as for int8: against NumPy in float64, against LiteRT's own int8 network, on every
net."""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402

from kdrun.models.build import build  # noqa: E402
from kdrun.models.quantization import FakeQuantized, moved, rounded, rounded_by_channel  # noqa: E402

MLP = {"name": "mlp", "hidden_units": [6], "input_dropout": 0.0, "hidden_dropout": 0.0, "max_norm": None}
RESNET = {"name": "resnet", "depth": 8, "widths": [4, 4, 8, 8]}
MOBILE = {"name": "mobilenet_v2", "width": 0.25, "expansion": 2, "output_stride": 16}
NETS = [
    (MLP | {"input_dropout": 0.2, "hidden_dropout": 0.5}, 3),
    ({"name": "convnet", "filters": [4, 8]}, 5),
    (RESNET, 15),
    (MOBILE, 66),
    ({"name": "densenet", "growth_rate": 4, "blocks": [2, 2]}, 24),
    ({"name": "wide_resnet", "depth": 10, "width": 1}, 23),
    ({"name": "vgg", "depth": 8}, 8),
    pytest.param({"name": "shufflenet_v2", "width": 0.5, "output_stride": 8}, 59, marks=pytest.mark.slow),
]


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def by_range(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """x on a grid of 256 steps, of which one is zero, in float64."""
    step = (np.float64(high) - low) / 255
    zero = np.round(-low / step)
    return (np.clip(np.round(x / step) + zero, 0, 255) - zero) * step


def by_channel(w: np.ndarray) -> np.ndarray:
    """A matrix [rows, channels] on its channels' symmetric grids, in float64."""
    step = np.abs(np.float64(w)).max(axis=0) / 127
    return np.round(w / step) * step


@pytest.mark.parametrize("limits", [(-1.3, 2.1), (0.0, 6.0), (-0.7, 0.0), (-1e-3, 1e3)])
def test_values_are_rounded_to_256_steps_of_their_range(limits):
    x = np.random.default_rng(1).normal(0, limits[1] - limits[0], 500).astype(np.float32)
    x[:3] = 0.0, *limits
    with tf.GradientTape() as tape:
        given = tf.constant(x)
        tape.watch(given)
        found = rounded(given, tf.constant(limits))
    np.testing.assert_allclose(found, by_range(x, *limits), rtol=1e-5, atol=1e-6 * (limits[1] - limits[0]))
    assert found[0] == 0.0 and len(np.unique(found)) > 100
    gradient = tape.gradient(found, given).numpy()
    low, high = np.float32(limits)
    np.testing.assert_array_equal(gradient, (x >= low) & (x <= high))
    np.testing.assert_allclose(rounded(found, tf.constant(limits)), found, rtol=1e-6)  # those on the grid stay


def test_weights_are_rounded_by_the_largest_of_their_channel():
    w = np.random.default_rng(2).normal(size=(30, 5)).astype(np.float32) * np.float32([1e-3, 1, 50, 1, 0])
    with tf.GradientTape() as tape:
        given = tf.constant(w)
        tape.watch(given)
        found = rounded_by_channel(given)
    expected = np.concatenate([by_channel(w[:, :4]), np.zeros((30, 1))], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(tape.gradient(found, given), np.ones_like(w))


def test_a_range_is_the_first_steps_and_then_a_moving_average_and_holds_zero():
    limits, low, high = tf.zeros([2]), None, None
    for step, (least, greatest) in enumerate([(0.5, 2.0), (-1.0, 4.0), (-3.0, 1.0)]):
        limits = moved(limits, tf.constant([least, greatest, 0.7]))
        now = min(least, 0.0), max(greatest, 0.0)
        low, high = now if step == 0 else (0.99 * low + 0.01 * now[0], 0.99 * high + 0.01 * now[1])
        np.testing.assert_allclose(limits, [low, high], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(moved(tf.zeros([2]), tf.constant([-2.0, -1.0])), [-2.0, 0.0])


def test_a_network_and_its_gradients_are_those_of_numpy():
    """In float64, step by step: two layers, the ranges of three batches, gradients straight through the rounding."""
    network = build(MLP, (3, 3, 1), 4, 0, "float32")
    kernel1, bias1, kernel2, bias2 = (v.numpy().astype(np.float64) for v in network.trainable_variables)
    forward, ranges = FakeQuantized(network, {"hidden": "hidden1"}), np.zeros((3, 2))

    def kept(place: int, x: np.ndarray, step: int) -> np.ndarray:
        now = np.array([min(x.min(), 0), max(x.max(), 0)])
        ranges[place] = now if step == 0 else 0.99 * ranges[place] + 0.01 * now
        return by_range(x, *ranges[place])

    for step in range(3):
        x = images(7, 3, 3, 1, seed=step) * (step + 1) - 0.3
        with tf.GradientTape() as tape:
            logits, features = forward(tf.constant(x), training=True)
            loss = tf.reduce_sum(logits**2)
        pixels = kept(0, x.reshape(7, 9).astype(np.float64), step)
        raw = np.maximum(pixels @ by_channel(kernel1) + bias1, 0)
        hidden = kept(1, raw, step)
        outputs = hidden @ by_channel(kernel2) + bias2
        expected = kept(2, outputs, step)
        np.testing.assert_allclose(features["hidden"], hidden, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(forward.ranges, ranges, rtol=1e-4, atol=1e-6)
        of_outputs = 2 * expected * ((outputs >= ranges[2, 0]) & (outputs <= ranges[2, 1]))
        of_hidden = of_outputs @ by_channel(kernel2).T * ((raw > 0) & (raw <= ranges[1, 1]))
        gradients = tape.gradient(loss, network.trainable_variables)
        expected_gradients = pixels.T @ of_hidden, of_hidden.sum(0), hidden.T @ of_outputs, of_outputs.sum(0)
        for found, each in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(found, each, rtol=1e-3, atol=1e-4)
    assert (of_outputs == 0).any()  # a value out of its range was there
    before = forward.ranges.numpy()
    forward(tf.constant(x * 9), training=False)
    np.testing.assert_array_equal(forward.ranges, before)


def branched():
    """A net with what LiteRT folds and what it does not, what has a grid of its own and what has not."""
    keras = tf_keras.layers
    image = tf_keras.Input((12, 12, 3))
    x = keras.ReLU()(keras.BatchNormalization()(keras.Conv2D(6, 3, use_bias=False)(image)))
    new = keras.ReLU(6)(keras.BatchNormalization()(keras.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x)))
    x = keras.Concatenate()([keras.Conv2D(8, 1)(new), keras.MaxPooling2D(3, 1, "same")(x)])
    x = keras.AveragePooling2D(2)(x)
    x = keras.Activation("relu")(keras.BatchNormalization()(x))
    x = keras.LeakyReLU(0.3)(keras.Conv2D(5, 3)(x))
    return tf_keras.Model(image, keras.Dense(4)(keras.Dropout(0.1)(keras.GlobalAveragePooling2D()(x))))


def litert(network, x: np.ndarray) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Logits of LiteRT's int8 network, calibrated by these images; operations that make int8 numbers of others,
    and their ranges."""
    call = tf.function(lambda image: network(image, training=False))
    concrete = call.get_concrete_function(tf.TensorSpec([1, *x.shape[1:]], tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([each[np.newaxis]] for each in x)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    plain = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(model_content=converter.convert(), experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    given, logits = interpreter.get_input_details()[0]["index"], []
    for each in x:
        interpreter.set_tensor(given, each[np.newaxis])
        interpreter.invoke()
        logits.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    tensors = {each["index"]: each for each in interpreter.get_tensor_details()}
    made = [(op["op_name"], tensors[index]) for op in interpreter._get_ops_details() for index in op["outputs"]]
    ranges = []
    for name, tensor in made:
        step, zero = tensor["quantization"]
        if tensor["dtype"] == np.int8 and name not in ("MAX_POOL_2D", "CONCATENATION", "RESHAPE"):
            ranges.append((name, (-128 - zero) * step, (127 - zero) * step))
    return np.stack(logits), ranges


NEAR = {"mlp": 0.01, "resnet": 0.7, "branched": 0.8}  # of the distance to the float network's logits


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@pytest.mark.parametrize("name", ["mlp", "branched", pytest.param("resnet", marks=pytest.mark.slow)])
def test_it_computes_what_litert_computes(name):
    """As many numbers are rounded, to the same ranges; with LiteRT's own ranges the logits are nearer to its than the
    float ones are, of a small net the same."""
    made_by = {"mlp": MLP, "resnet": RESNET}
    network = branched() if name == "branched" else build(made_by[name], (12, 12, 3), 10, 3, "float32")
    x = images(32, 12, 12, 3)
    for layer in network.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.0
            layer.beta.assign(images(*layer.beta.shape, seed=4) - 0.5)
    network(x, training=True)
    network.trainable = False  # a training step then sees batch norm as an exported network has it
    forward = FakeQuantized(network, {})
    for layer in network.layers:
        if isinstance(layer, tf_keras.layers.Dropout):
            layer.rate = 0.0
    forward(tf.constant(x), training=True)
    theirs, made = litert(network, x)
    ours = np.array([_joined(forward, place) for place in range(forward.ranges.shape[0])])
    assert len(ours) == len(made)
    ranges = np.array([limits for _, *limits in made])
    distances = np.abs(ours[:, np.newaxis] - ranges).sum(axis=2) / (ours[:, 1] - ours[:, 0])[:, np.newaxis]
    places, others = linear_sum_assignment(distances)
    # the converter takes the sum for a part of what is summed, where it is computed in place
    sums = sum(name in ("ADD", "MUL") for name, *_ in made)
    assert (distances[places, others] < 0.05).sum() >= len(ours) - sums
    forward.ranges.assign(ranges[others])
    rounded_logits = forward(tf.constant(x), training=False)[0].numpy()
    plain = network(x, training=False).numpy()
    assert np.abs(rounded_logits - theirs).mean() < NEAR[name] * np.abs(plain - theirs).mean()


def _joined(forward: FakeQuantized, place: int) -> list[float]:
    """The limits of a place, with those that share its grid."""
    together = forward.ranges.numpy()[forward._together[place]]
    return [together[:, 0].min(), together[:, 1].max()]


@pytest.mark.parametrize(("model", "places"), NETS, ids=lambda x: x["name"] if isinstance(x, Mapping) else "")
def test_every_net_is_rounded_and_learns(model, places):
    network = build(model, (16, 16, 3), 10, 0, "float32")
    before = network.get_weights()
    forward = FakeQuantized(network, {})
    with tf.GradientTape() as tape:
        logits, _ = forward(tf.constant(images(8, 16, 16, 3)), training=True)
        loss = tf.reduce_mean(logits**2)
    gradients = tape.gradient(loss, network.trainable_variables)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)
    assert forward.ranges.shape == (places, 2) and not forward.left
    assert (forward.ranges.numpy()[:, 1] > forward.ranges.numpy()[:, 0]).all()
    trained = {id(variable) for variable in network.trainable_variables}
    kernels = [v for layer in network.layers for name, v in vars(layer).items() if name.endswith("kernel")]
    assert kernels and {id(kernel) for kernel in kernels} <= trained  # the layers have their own again
    moving = ["moving" in v.name for v in network.variables]
    for is_moving, old, new in zip(moving, before, network.get_weights(), strict=True):
        assert is_moving != np.array_equal(old, new)


def test_a_network_in_a_network_is_rounded_and_what_is_not_known_is_said():
    keras = tf_keras.layers
    inner = tf_keras.Sequential([keras.Conv2D(4, 3, activation="relu"), keras.PReLU(), keras.Conv2D(4, 3)])
    image = tf_keras.Input((12, 12, 3))
    x = keras.SeparableConv2D(6, 3, depth_multiplier=2)(inner(image))
    network = tf_keras.Model(image, keras.Dense(5)(keras.GlobalAveragePooling2D()(x)))
    forward = FakeQuantized(network, {})
    x = images(4, 12, 12, 3)
    difference = np.abs(forward(tf.constant(x), training=True)[0] - network(x)).max()
    assert 0 < difference < 0.05 * np.abs(network(x)).max()
    assert forward.left == {"PReLU": 1}
    assert forward.ranges.shape[0] == 7  # the input, three inside, the separable convolution, the means, the logits


@pytest.mark.parametrize("kind", ["depthwise", "convolution", "grouped", "dense"])
def test_a_kernel_has_a_grid_for_each_channel_of_its_output(kind):
    """Of channels of different sizes, which batch norm makes alike, all are as far from the float ones."""
    keras = tf_keras.layers
    layer = {
        "depthwise": keras.DepthwiseConv2D(3, depth_multiplier=2),
        "convolution": keras.Conv2D(8, 3),
        "grouped": keras.Conv2D(8, 3, groups=2),
        "dense": keras.Dense(8),
    }[kind]
    image = tf_keras.Input((8, 8, 4))
    network = tf_keras.Model(image, keras.BatchNormalization(epsilon=1e-12)(layer(image)))
    kernel = network.trainable_variables[0]
    sizes = np.logspace(0, -4, 8, dtype=np.float32)  # of output channels: of a depthwise one, its last two axes
    kernel.assign(kernel * sizes.reshape(kernel.shape[2:] if kind == "depthwise" else [-1]))
    x = images(16, 8, 8, 4)
    forward = FakeQuantized(network, {})
    found, plain = forward(tf.constant(x), training=True)[0].numpy(), network(x, training=True).numpy()
    differences = np.sqrt(((found - plain) ** 2).mean((0, 1, 2)))
    assert (differences > 1e-4).all() and (differences < 0.05).all()
