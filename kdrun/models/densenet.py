"""The source notebook's DenseNet-121-like network (after arXiv 1608.06993)."""

from functools import partial

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

    from kdrun.models.layers import Pointwise

    x = layers.Conv2D(2 * growth_rate, 7, strides=2, padding="same", name="entry")(inputs)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name="entry_pool")(x)
    for block, pairs in enumerate(blocks, start=1):
        for pair in range(1, pairs + 1):
            new = x
            for kernel, filters in ((1, 4 * growth_rate), (3, growth_rate)):
                name = f"block{block}_{pair}_{kernel}x{kernel}"
                new = layers.BatchNormalization(name=f"{name}_norm")(new)
                new = layers.ReLU(max_value=6, name=f"{name}_relu6")(new)
                convolution = Pointwise if kernel == 1 else partial(layers.Conv2D, kernel_size=kernel, padding="same")
                new = convolution(filters, name=name)(new)
            x = layers.Concatenate(name=f"block{block}" if pair == pairs else f"block{block}_{pair}")([new, x])
        if block < len(blocks):
            x = layers.BatchNormalization(name=f"transition{block}_norm")(x)
            x = Pointwise(x.shape[-1] // 2, name=f"transition{block}")(x)
            x = layers.AveragePooling2D(2, name=f"transition{block}_pool")(x)
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    return layers.Dense(num_classes, name="classifier")(x)
