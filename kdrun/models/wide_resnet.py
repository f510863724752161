"""Wide residual networks (arXiv 1605.07146)."""

from typing import Annotated, Any

from kdrun.config.rules import Count, integer
from kdrun.errors import InputError
from kdrun.models.blocks import classified, convolution, features, normalised, stages
from kdrun.registry import register


def _depth(key: str, given: Any) -> int:
    """6 n + 4."""
    depth = integer(10)(key, given)
    if depth % 6 != 4:
        raise InputError(f"{key} must be 6 n + 4, got {depth}. For example {key}={6 * round((depth - 4) / 6) + 4}.")
    return depth


@register("model", "wide_resnet", features=features(3), maps=stages(3))
def wide_resnet(inputs, num_classes: int, *, depth: Annotated[int, _depth], width: Count):
    """Logits [batch, num_classes] of images [batch, height, width, channels].

    Three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels, normalisation and ReLU before each
    convolution; the second and third stage halve the maps. Where a block changes their shape, a 1x1 convolution of what
    is normalised already is beside it. A stage's output is a sum, before ReLU.
    """
    x = convolution(inputs, 16, 3, "stem")
    blocks = (depth - 4) // 6
    for stage in (1, 2, 3):
        for block in range(1, blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            name = f"stage{stage}_{block}"
            x = _block(x, 8 * width * 2**stage, strides, name, f"stage{stage}" if block == blocks else f"{name}_sum")
    return classified(normalised(x, "last"), num_classes)


def _block(x, width: int, strides: int, name: str, output: str):
    """x and two convolutions of it, added; `output` is the name of what comes out."""
    from tf_keras import layers

    new = normalised(x, f"{name}_conv1")
    if strides > 1 or x.shape[-1] != width:
        x = convolution(new, width, 1, f"{name}_shortcut", strides=strides)
    new = normalised(convolution(new, width, 3, f"{name}_conv1", strides=strides), f"{name}_conv2")
    return layers.Add(name=output)([x, convolution(new, width, 3, f"{name}_conv2")])
