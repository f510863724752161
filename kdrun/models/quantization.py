"""Fake quantisation: a network computed in training as LiteRT's int8 kernels will compute it once it is exported.

Numbers are rounded to the 8-bit grids of LiteRT's scheme, in float32, and gradients pass through the rounding (Jacob et
al., arXiv 1712.05877, section 3): weights by a symmetric grid for each output channel, what flows between layers by a
grid that holds zero and the range that it has had so far, biases not at all. Where batch normalisation or ReLU is
folded into the convolution before it, nothing is rounded in between: a grid for each channel is scaled with it.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import tensorflow as tf
from tf_keras import layers
from tf_keras.activations import linear

from kdrun.models.layers import Moments, Pointwise

_MOMENTUM = 0.99  # of the ranges, as arXiv 1712.05877 has it: smoothed over some hundreds of steps

# their kernel's last axis is the output's channels; that of depthwise ones is one of the last two
_ROUNDED = (
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense, Pointwise),
    *(layers.DepthwiseConv2D, layers.SeparableConv1D, layers.SeparableConv2D),
)
_NOT_ROUNDED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")
# their weights become part of a convolution, or of a multiplication and an addition
_NORMALISING = (layers.BatchNormalization, layers.LayerNormalization, layers.Normalization)
# what comes out has the values of what goes in, or some of them, and so the same grid
_MOVING = {"InputLayer", "Flatten", "Reshape", "Permute", "RepeatVector", "ZeroPadding2D", "Cropping2D"}
_MOVING |= {"MaxPooling1D", "MaxPooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "SlicingOpLambda"}
_MOVING |= {
    "Concatenate",
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "AlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
}
_AVERAGING = (layers.AveragePooling1D, layers.AveragePooling2D)  # rounded to the grid of what goes in
_MOVING_FUNCTIONS = {
    "concat",
    "split",
    "stack",
    "unstack",
    "reshape",
    "transpose",
    "expand_dims",
    "squeeze",
    "identity",
}


class FakeQuantized:
    """A network of float32 layers, called with its values rounded: images to logits, and the outputs of `layers`, by
    name.

    Its weights are the network's own. `ranges`, float32 [places, 2], are the least and the greatest value that each
    place has had, smoothed over training steps; zeros where there was no step yet. `left` says of how many layers the
    weights are not rounded, by their kind: those that are not known here.
    """

    def __init__(self, network, layers: Mapping[str, str]):
        self._network = network
        self._features = {name: id(network.get_layer(layer).output) for name, layer in layers.items()}
        keys = dict.fromkeys([id(network.input), *_rounded(network)])
        self._places = {key: place for place, key in enumerate(keys)}
        self._together = _together(self._places, _alike(network))
        self.ranges = tf.Variable(tf.zeros([len(keys), 2]), trainable=False, name="ranges")
        self.left = Counter(type(layer).__name__ for layer in _left(network))

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images: tf.Tensor, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Logits and features of images [batch, height, width, channels]; while training, ranges move on."""
        ranges = tf.unstack(self.ranges)

        def kept(key: int, value: tf.Tensor) -> tf.Tensor:
            place = self._places.get(key)
            if place is None:
                return value
            if training:
                ranges[place] = moved(ranges[place], value)
            return rounded(value, _around([ranges[each] for each in self._together[place]]))

        found = _run(self._network, [images], training, kept)
        if training:
            self.ranges.assign(tf.stack(ranges))
        return found[id(self._network.output)], {name: found[tensor] for name, tensor in self._features.items()}


def rounded(values: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """Values of any shape, rounded to 256 steps from the lower to the upper limit, float32 [2], of which one is zero.

    The gradient is that of the values where they are within the limits, and zero outside of them.
    """
    low, high = tf.unstack(limits)

    # TensorFlow's own gradient is not to be had on a GPU whose operations are deterministic
    @tf.custom_gradient
    def of(values):
        inside = (values >= low) & (values <= high)
        found = tf.quantization.fake_quant_with_min_max_vars(values, low, high, num_bits=8)
        return found, lambda upstream: tf.where(inside, upstream, 0.0)

    return of(values)


@tf.custom_gradient
def rounded_by_channel(kernel: tf.Tensor):
    """A kernel [..., channels], rounded to whole numbers from -127 to 127 times a scale for each channel, by which its
    largest weight is the last of them. The gradient is that of the kernel."""
    rows = tf.reshape(kernel, [-1, kernel.shape[-1]])
    largest = tf.reduce_max(tf.abs(rows), axis=0)
    found = tf.quantization.fake_quant_with_min_max_vars_per_channel(rows, -largest, largest, narrow_range=True)
    return tf.reshape(found, kernel.shape), lambda upstream: upstream


def moved(limits: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """The limits, float32 [2], after a step with these values: those of the first step, and then a moving average. Zero
    is always between them."""
    values = tf.stop_gradient(values)
    now = tf.stack([tf.minimum(tf.reduce_min(values), 0.0), tf.maximum(tf.reduce_max(values), 0.0)])
    return tf.where(tf.reduce_all(limits == 0.0), now, limits + (1.0 - _MOMENTUM) * (now - limits))


def _around(limits: Sequence[tf.Tensor]) -> tf.Tensor:
    """The limits, float32 [2], of all of these together."""
    low, high = tf.unstack(tf.stack(limits), axis=1)
    return tf.stack([tf.reduce_min(low), tf.reduce_max(high)])


def _run(
    network, given: Sequence[tf.Tensor], training: bool, kept: Callable[[int, tf.Tensor], tf.Tensor]
) -> dict[int, tf.Tensor]:
    """Compute a network of these inputs: what all tensors of its graph are, by their ids. `kept` is given each one's id
    and value, and says with which value to go on; it is asked for products within a layer likewise."""
    found = {id(tensor): kept(id(tensor), value) for tensor, value in zip(network.inputs, given, strict=True)}
    for node in _nodes(network):
        layer = node.layer
        args, kwargs = tf.nest.map_structure(partial(_known, found), (node.call_args, node.call_kwargs))
        if _is_network(layer):
            inside = _run(layer, tf.nest.flatten(args), training, kept)
            outputs = [inside[id(tensor)] for tensor in layer.outputs]
        else:
            if _takes_training(layer) and kwargs.get("training") is None:
                kwargs = {**kwargs, "training": training}
            with _weights_rounded(layer):
                outputs = tf.nest.flatten(layer(*args, **kwargs))
            if isinstance(layer, layers.BatchNormalization):
                outputs = [_with_product(layer, outputs[0], partial(kept, id(node)))]
        tensors = tf.nest.flatten(node.outputs)
        found |= {id(tensor): kept(id(tensor), value) for tensor, value in zip(tensors, outputs, strict=True)}
    return found


def _known(found: Mapping[int, tf.Tensor], given):
    """What a layer is called with: a tensor of the graph has its value, all else is as it is."""
    return found.get(id(given), given)


def _with_product(layer, normalised: tf.Tensor, kept: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Batch normalisation that is folded into nothing: a product and a sum, of which the product is kept, too."""
    scale = tf.math.rsqrt(layer.moving_variance + layer.epsilon) * (1.0 if layer.gamma is None else layer.gamma)
    offset = tf.stop_gradient((0.0 if layer.beta is None else layer.beta) - layer.moving_mean * scale)
    product = normalised - offset
    found = kept(product)
    return normalised if found is product else found + offset


@contextmanager
def _weights_rounded(layer) -> Iterator[None]:
    """While inside, a layer's kernels are their rounded values; its variables stay as they are."""
    own = vars(layer)  # not setattr, by which a layer would no longer count the variable as its own
    kept = {name: own[name] for name in _kernels(layer)}
    for name, kernel in kept.items():
        own[name] = _rounded_kernel(name, kernel)
    try:
        yield
    finally:
        own.update(kept)


def _rounded_kernel(name: str, kernel: tf.Variable) -> tf.Tensor:
    value = tf.convert_to_tensor(kernel)
    if name != "depthwise_kernel":
        return rounded_by_channel(value)
    *size, channels, multiplier = value.shape
    return tf.reshape(rounded_by_channel(tf.reshape(value, [*size, channels * multiplier])), value.shape)


def _rounded(network) -> Iterator[int]:
    """What LiteRT keeps of a network's computation as 8-bit numbers, beside its input: ids of tensors of its graph, and
    of the nodes of batch normalisations whose product is kept."""
    users = _users(network)
    makers: dict[int, Any] = {}
    for node in _nodes(network):
        layer, tensors = node.layer, tf.nest.flatten(node.outputs)
        makers |= {id(tensor): layer for tensor in tensors}
        if _is_network(layer):
            yield from _rounded(layer)
            continue
        if isinstance(layer, layers.BatchNormalization):
            given = id(node.keras_inputs[0])
            if given not in makers or not _is_folded(makers[given], users[given]):
                yield id(node)
        if not _moves(layer) and not isinstance(layer, Moments):
            keys = (id(tensor) for tensor in tensors if tensor.dtype == tf.float32)
            yield from (key for key in keys if not _is_folded(layer, users.get(key, [])))


def _users(network) -> dict[int, list]:
    """The layers that use each tensor of a network's graph, by its id."""
    found: dict[int, list] = {}
    for node in _nodes(network):
        for tensor in node.keras_inputs:
            found.setdefault(id(tensor), []).append(node.layer)
    return found


def _alike(network) -> Iterator[tuple[int, int]]:
    """Pairs of tensors, by their ids, that LiteRT keeps on one grid."""
    for node in _nodes(network):
        layer, tensors = node.layer, tf.nest.flatten(node.outputs)
        if _is_network(layer):
            yield from _alike(layer)
            for ours, theirs in ((node.keras_inputs, layer.inputs), (tensors, layer.outputs)):
                yield from zip(map(id, ours), map(id, theirs), strict=True)
        elif _moves(layer) or isinstance(layer, _AVERAGING):
            yield from ((id(one), id(other)) for one in node.keras_inputs for other in tensors)


def _together(places: Mapping[int, int], alike: Iterable[tuple[int, int]]) -> list[list[int]]:
    """For each place, all that share its grid: those between which there is a chain of such pairs."""
    groups = {key: {key} for key in places}
    for one, other in alike:
        joined = groups.get(one, {one}) | groups.get(other, {other})
        groups |= dict.fromkeys(joined, joined)
    return [sorted(places[each] for each in groups[key] if each in places) for key in places]


def _is_folded(layer, users: Sequence) -> bool:
    """Whether what comes out of a layer is seen by nobody but the batch normalisation or the ReLU that is folded into
    it."""
    if len(users) != 1:
        return False
    (user,) = users
    normalised = (
        isinstance(user, layers.BatchNormalization) and bool(_kernels(layer)) and _activation(layer) == "linear"
    )
    return normalised or _is_relu(user)


def _is_relu(layer) -> bool:
    if isinstance(layer, layers.ReLU):
        return layer.max_value in (None, 6) and not layer.negative_slope and not layer.threshold
    return isinstance(layer, layers.Activation) and _activation(layer) in ("relu", "relu6")


def _moves(layer) -> bool:
    """Whether what comes out of a layer has the values of what goes in."""
    kind = type(layer).__name__
    if kind == "TFOpLambda":
        return layer.symbol.rpartition(".")[2] in _MOVING_FUNCTIONS
    is_identity = isinstance(layer, layers.Activation) and _activation(layer) == "linear"
    return kind in _MOVING or is_identity


def _activation(layer) -> str:
    """The name of a layer's activation; one that has no name is no known one."""
    return getattr(getattr(layer, "activation", linear), "__name__", "")


def _kernels(layer) -> list[str]:
    """The names of the weights that are rounded."""
    if not isinstance(layer, _ROUNDED) or isinstance(layer, _NOT_ROUNDED):
        return []
    return [name for name in _KERNELS if isinstance(vars(layer).get(name), tf.Variable)]


def _left(network) -> Iterator:
    """The layers whose weights are not rounded, though they might have to be."""
    for layer in network.layers:
        if _is_network(layer):
            yield from _left(layer)
        elif layer.weights and not _kernels(layer) and not isinstance(layer, _NORMALISING):
            yield layer


def _is_network(layer) -> bool:
    """Whether a layer is a network of layers by itself, whose graph is known."""
    return getattr(layer, "_is_graph_network", False)


def _nodes(network) -> Iterator:
    """Each call of a layer in a network's graph, in an order in which they can be done; without its inputs."""
    by_depth = network._nodes_by_depth  # noqa: SLF001 - a layer's own list has its calls in other networks, too
    for depth in sorted(by_depth, reverse=True):
        yield from (node for node in by_depth[depth] if not node.is_input)


def _takes_training(layer) -> bool:
    return "training" in inspect.signature(layer.call).parameters
