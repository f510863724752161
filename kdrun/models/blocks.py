"""What the convolutional nets of the CIFAR benchmark are built of. Imports tf_keras when it is used."""


def stages(count: int) -> list[str]:
    """The names of so many stages: the parts of a net whose maps are of one size."""
    return [f"stage{number}" for number in range(1, count + 1)]


def features(count: int) -> dict[str, str]:
    """The features of a net of so many stages: each one's output, and the pooled embedding."""
    return {name: name for name in (*stages(count), "embedding")}


def convolution(x, filters: int, size: int, name: str, *, strides: int = 1, bias: bool = False):
    """A convolution of maps [batch, height, width, channels], padded: [batch, height / strides, width / strides,
    filters], rounded up.

    Its initial weights are He's for ReLU (arXiv 1502.01852), as in the code of these nets: normal, with variance
    2 / (size^2 filters). Without bias, where batch normalisation follows.
    """
    from tf_keras import layers

    he = _he_normal()
    return layers.Conv2D(filters, size, strides, "same", use_bias=bias, kernel_initializer=he, name=name)(x)


def depthwise(x, size: int, name: str, *, strides: int = 1):
    """A convolution of each channel by itself, as `convolution`'s are; the variance is 2 / size^2.

    That is of the one value that a channel's weights make, where the code of these nets divides by all channels, and
    leaves it to batch normalisation to bring back values that have all but vanished.
    """
    from tf_keras import layers

    he = _he_normal()
    return layers.DepthwiseConv2D(size, strides, "same", use_bias=False, depthwise_initializer=he, name=name)(x)


def normalised(x, name: str, *, relu: bool = True):
    """Batch normalisation, and ReLU: of x's shape."""
    from tf_keras import layers

    x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def classified(x, num_classes: int):
    """Logits [batch, num_classes] of maps: their means over pixels, the layer `embedding`, and one dense layer."""
    from tf_keras import layers

    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    return layers.Dense(num_classes, name="classifier")(x)


def _he_normal():
    from tf_keras import initializers

    return initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
