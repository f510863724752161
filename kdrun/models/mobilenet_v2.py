"""MobileNetV2 (arXiv 1801.04381) as the CIFAR benchmark of distillation has it."""

from typing import Annotated

from kdrun.config.rules import Count, number, one_of
from kdrun.models.blocks import classified, convolution, depthwise, normalised, stages
from kdrun.registry import register

_GROUPS = ((16, 1), (24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1))  # channels at width 1, and blocks
_HALVING = {16: (32, 64, 160), 32: (24, 32, 64, 160)}  # output_stride -> the groups whose first block halves the maps
_LAST = 1280  # channels, at width 1 or less
_FEATURES = {  # the last that is made at each size
    "stage1": "group2_2_sum",
    "stage2": "group3_3_sum",
    "stage3": "group5_3_sum",
    "stage4": "group7_1_project_norm",
    "embedding": "embedding",
}


@register("model", "mobilenet_v2", features=_FEATURES, maps=stages(4))
def mobilenet_v2(
    inputs,
    num_classes: int,
    *,
    width: Annotated[float, number(0.1)],
    expansion: Count,
    output_stride: Annotated[int, one_of(*_HALVING)],
):
    """Logits [batch, num_classes] of images [batch, height, width, channels].

    The last maps are `output_stride` times smaller than the image. As in the benchmark's code (RepDistiller, arXiv
    1910.10699), the first block has its expanding convolution, too, though it expands to as many channels as it gets,
    ReLU is not cut at 6, and channels are `width` times the paper's, rounded down.
    """

    def scaled(channels: int) -> int:
        return int(channels * width)

    x = normalised(convolution(inputs, scaled(32), 3, "stem", strides=2), "stem")
    for group, (channels, blocks) in enumerate(_GROUPS, start=1):
        for block in range(1, blocks + 1):
            expanded = x.shape[-1] * (expansion if group > 1 else 1)
            strides = 2 if block == 1 and channels in _HALVING[output_stride] else 1
            x = _block(x, scaled(channels), expanded, strides, f"group{group}_{block}")
    return classified(normalised(convolution(x, max(_LAST, scaled(_LAST)), 1, "last"), "last"), num_classes)


def _block(x, width: int, expanded: int, strides: int, name: str):
    """An inverted residual: expanded, each channel by itself, projected without ReLU, and added to x where the shapes
    are alike.
    """
    from tf_keras import layers

    new = normalised(convolution(x, expanded, 1, f"{name}_expand"), f"{name}_expand")
    new = normalised(depthwise(new, 3, f"{name}_depthwise", strides=strides), f"{name}_depthwise")
    new = normalised(convolution(new, width, 1, f"{name}_project"), f"{name}_project", relu=False)
    return layers.Add(name=f"{name}_sum")([x, new]) if strides == 1 and x.shape[-1] == width else new
