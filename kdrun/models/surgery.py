"""A network that is built, taken apart: up to a layer, with features, its classifier, what it costs."""

import math
from collections.abc import Mapping


def up_to(network, layer: str):
    """The same network from images to a layer's output, float32."""
    import tensorflow as tf
    import tf_keras

    return tf_keras.Model(network.input, tf.cast(network.get_layer(layer).output, tf.float32))


def classifier(network):
    """A network's last dense layer; its weights are the kernel [units, classes] and the bias [classes]."""
    return [layer for layer in network.layers if hasattr(layer, "kernel")][-1]


def freeze(network, layer: str) -> None:
    """Keep all weights that a layer's output depends on, its own included, as they are: they are not trained, do not
    decay, and batch norm goes by its moving statistics."""
    import tf_keras

    for each in tf_keras.Model(network.input, network.get_layer(layer).output).layers:
        each.trainable = False


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
        for weight in layer.weights:
            if "kernel" in weight.name:  # also depthwise_kernel
                # a kernel's values are all used once for each place of the output
                total += weight.shape.num_elements() * math.prod(layer.output.shape[1:-1])
    return total
