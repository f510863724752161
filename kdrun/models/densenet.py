"""The source notebook's DenseNet-121-like network (after arXiv 1608.06993)."""

from kdrun.config.rules import Count, Counts
from kdrun.registry import Keys, register


def _smallest_image_size(keys: Keys) -> int:
    """Pixels a side below which a pooling between blocks has nothing left to pool."""
    entry = 2 ** (len(keys["blocks"]) - 1)  # what the poolings between blocks divide by, rounding down
    return 4 * entry - 3  # the entry flow divides by two twice, rounding up


def _features(keys: Keys) -> dict[str, str]:
    """Each dense block's output, and the pooled embedding."""
    return {name: name for name in (*(f"block{n}" for n in range(1, len(keys["blocks"]) + 1)), "embedding")}


def _maps(keys: Keys) -> list[str]:
    """All features but the embedding."""
    return [name for name in _features(keys) if name != "embedding"]


@register(
    "model", "densenet", features=_features, maps=_maps, smallest_image_size=_smallest_image_size, one_thread_up_to=64
)
def densenet(inputs, num_classes: int, *, growth_rate: Count, blocks: Counts):
    """Logits [batch, num_classes] of images [batch, height, width, channels].

    As the notebook has it: ReLU6, biases in all convolutions, new features concatenated before the old, no
    normalisation after the entry convolution or the last block.
    """
    from tf_keras import layers

    from kdrun.models.layers import BatchNormalization, Moments, Pointwise

    x = layers.Conv2D(2 * growth_rate, 7, strides=2, padding="same", name="entry")(inputs)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="entry_pool")(x)
    for block, pairs in enumerate(blocks, start=1):
        moments = Moments(name=f"block{block}_moments")(x)
        for pair in range(1, pairs + 1):
            name = f"block{block}_{pair}"
            new = BatchNormalization(name=f"{name}_1x1_norm")(x, moments)
            new = layers.ReLU(max_value=6, name=f"{name}_1x1_relu6")(new)
            new = Pointwise(4 * growth_rate, name=f"{name}_1x1")(new)
            new = layers.BatchNormalization(name=f"{name}_3x3_norm")(new)
            new = layers.ReLU(max_value=6, name=f"{name}_3x3_relu6")(new)
            new = layers.Conv2D(growth_rate, 3, padding="same", name=f"{name}_3x3")(new)
            moments = Moments(name=f"{name}_moments")(new, moments)
            x = layers.Concatenate(name=f"block{block}" if pair == pairs else name)([new, x])
        if block < len(blocks):
            x = BatchNormalization(name=f"transition{block}_norm")(x, moments)
            x = Pointwise(x.shape[-1] // 2, name=f"transition{block}")(x)
            x = layers.AveragePooling2D(2, name=f"transition{block}_pool")(x)
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    return layers.Dense(num_classes, name="classifier")(x)
