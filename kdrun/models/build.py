"""Models: a name and its keys become a network from images to logits."""

import math
from collections.abc import Mapping

from kdrun.registry import get


def smallest_image_size(model: Mapping) -> int:
    """Pixels a side that the configured model needs at least."""
    try:
        smallest = get("smallest_image_size", model["name"])
    except KeyError:  # a model that takes any size registers none
        return 1
    return smallest(model)


def features(model: Mapping) -> dict[str, str]:
    """The configured model's features, in order: a name that objectives use, and the layer whose output it is."""
    try:
        found = get("features", model["name"])(model)
    except KeyError:  # a model that registers none
        found = {}
    return {**found, **({"projection": "projection"} if "projection_units" in model else {})}


def maps(model: Mapping) -> set[str] | None:
    """Which of the configured model's features are maps; the others are vectors. None where it does not say."""
    try:
        return set(get("maps", model["name"])(model))
    except KeyError:
        return None


def build(model: Mapping, image_shape: tuple[int, int, int], num_classes: int, seed: int, policy: str):
    """A tf_keras.Model from float32 images [batch, *image_shape] to float32 logits [batch, num_classes].

    The same seed gives the same initial weights, whatever was built before in this process. `policy` is a tf_keras
    dtype policy's name; logits are float32 in every policy. With `projection_units` among the model's keys, its own
    classifier gives way to a learned projection of the embedding to so many units, and a frozen classifier, whose
    weights are for a teacher to give (arXiv 2203.14001).
    """
    import tf_keras

    keys = {key: value for key, value in model.items() if key not in ("name", "projection_units")}
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(seed)
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        inputs = tf_keras.Input(image_shape, dtype="float32", name="image")
        x = get("model", model["name"])(inputs, num_classes, **keys)
        if "projection_units" in model:
            embedding = tf_keras.Model(inputs, x).get_layer(features(model)["embedding"]).output
            projection = tf_keras.layers.Dense(model["projection_units"], name="projection")(embedding)
            x = tf_keras.layers.Dense(num_classes, name="classifier", trainable=False)(projection)
        outputs = tf_keras.layers.Activation("linear", dtype="float32", name="logits")(x)
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    network = tf_keras.Model(inputs, outputs, name=model["name"])
    # tf_keras leaves the generators of its dropout layers out of checkpoints; as an attribute they are in
    network.generators = [x._random_generator._generator for x in network.layers if hasattr(x, "_random_generator")]
    return network


def up_to(network, layer: str):
    """The same network from images to a layer's output, float32."""
    import tensorflow as tf
    import tf_keras

    return tf_keras.Model(network.input, tf.cast(network.get_layer(layer).output, tf.float32))


def classifier(network):
    """A network's last dense layer; its weights are the kernel [units, classes] and the bias [classes]."""
    return [layer for layer in network.layers if hasattr(layer, "kernel")][-1]


def with_features(network, layers: Mapping[str, str]):
    """The same network with more outputs: from images to its logits and a dictionary of the named layers' outputs."""
    import tf_keras

    return tf_keras.Model(
        network.input, (network.output, {name: network.get_layer(x).output for name, x in layers.items()})
    )


def multiply_adds(network) -> int:
    """Multiplications with an addition that convolutions and dense layers take for one image."""
    total = 0
    for layer in network.layers:
        if hasattr(layer, "kernel"):
            # a kernel's values are all used once for each place of the output
            total += layer.kernel.shape.num_elements() * math.prod(layer.output.shape[1:-1])
    return total
