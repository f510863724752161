"""Residual networks for small images (arXiv 1512.03385, section 4.2)."""

from typing import Annotated

from kdrun.config.rules import Counts, integer
from kdrun.errors import InputError
from kdrun.models.blocks import classified, convolution, features, normalised, stages
from kdrun.registry import Keys, register


def _blocks(keys: Keys) -> int:
    """How many blocks, of two convolutions each, a stage has. Raises InputError where depth and widths do not fit."""
    depth, widths = keys["depth"], keys["widths"]
    each = 2 * _stages(keys)
    if not each:
        raise InputError(f"widths={widths} must be the stem's and one for each stage. For example [16,16,32,64].")
    if (depth - 2) % each:
        nearest = max(1, round((depth - 2) / each)) * each + 2
        raise InputError(
            f"depth={depth} must be {each} n + 2 with {each // 2} stages of n blocks. Give {nearest}, or other widths."
        )
    return (depth - 2) // each


def _stages(keys: Keys) -> int:
    return len(keys["widths"]) - 1


def _check(keys: Keys) -> None:
    _blocks(keys)


@register(
    "model",
    "resnet",
    features=lambda keys: features(_stages(keys)),
    maps=lambda keys: stages(_stages(keys)),
    check=_check,
)
def resnet(inputs, num_classes: int, *, depth: Annotated[int, integer(4)], widths: Counts):
    """Logits [batch, num_classes] of images [batch, height, width, channels].

    `widths` are the channels of the stem and of each stage; every stage but the first halves the maps. Where a block
    changes their shape, a 1x1 convolution with batch normalisation is beside it, as in the code that the CIFAR
    benchmark of distillation is from (RepDistiller, arXiv 1910.10699).
    """
    x = normalised(convolution(inputs, widths[0], 3, "stem"), "stem")
    blocks = _blocks({"depth": depth, "widths": widths})
    for stage, width in enumerate(widths[1:], start=1):
        for block in range(1, blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            name = f"stage{stage}_{block}"
            x = _block(x, width, strides, name, f"stage{stage}" if block == blocks else f"{name}_relu")
    return classified(x, num_classes)


def _block(x, width: int, strides: int, name: str, output: str):
    """x and two convolutions of it, added, and ReLU; `output` is the name of what comes out."""
    from tf_keras import layers

    new = normalised(convolution(x, width, 3, f"{name}_conv1", strides=strides), f"{name}_conv1")
    new = normalised(convolution(new, width, 3, f"{name}_conv2"), f"{name}_conv2", relu=False)
    if strides > 1 or x.shape[-1] != width:
        x = normalised(convolution(x, width, 1, f"{name}_shortcut", strides=strides), f"{name}_shortcut", relu=False)
    return layers.ReLU(name=output)(layers.Add(name=f"{name}_sum")([x, new]))
