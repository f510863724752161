"""The convolutional network of the Keras example "knowledge_distillation"."""

from functools import partial

from kdrun.config.rules import Counts
from kdrun.registry import Keys, register


def _features(keys: Keys) -> dict[str, str]:
    """Each convolution with what follows up to the next, and the last one's output as a vector."""
    last = len(keys["filters"])
    stages = {f"conv{number}": f"conv{number}" + "_pool" * (number < last) for number in range(1, last + 1)}
    return {**stages, "embedding": "embedding"}


def _maps(keys: Keys) -> list[str]:
    """All features but the embedding."""
    return [name for name in _features(keys) if name != "embedding"]


@register("model", "convnet", features=_features, maps=_maps)
def convnet(inputs, num_classes: int, *, filters: Counts):
    """Logits [batch, num_classes] of images [batch, height, width, channels].

    3x3 convolutions of stride 2, LeakyReLU 0.2 and a max-pooling of stride 1 between them.
    """
    from tf_keras import layers

    from kdrun.models.layers import leaky_relu

    x = inputs
    for number, width in enumerate(filters, start=1):
        x = layers.Conv2D(width, 3, strides=2, padding="same", name=f"conv{number}")(x)
        if number < len(filters):
            x = layers.Activation(partial(leaky_relu, slope=0.2), name=f"conv{number}_relu")(x)
            x = layers.MaxPooling2D(2, strides=1, padding="same", name=f"conv{number}_pool")(x)
    x = layers.Flatten(name="embedding")(x)
    return layers.Dense(num_classes, name="classifier")(x)
