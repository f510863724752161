"""ShuffleNetV2 (arXiv 1807.11164)."""

from typing import Annotated, Any

from kdrun.config.rules import number, one_of
from kdrun.errors import InputError
from kdrun.models.blocks import classified, convolution, depthwise, features, normalised, stages
from kdrun.registry import register

_STEM = 24  # channels
_BLOCKS = (4, 8, 4)  # of the stages
# width -> channels of the stages, and of the last convolution
_WIDTHS = {
    0.5: ((48, 96, 192), 1024),
    1.0: ((116, 232, 464), 1024),
    1.5: ((176, 352, 704), 1024),
    2.0: ((244, 488, 976), 2048),
}


def _width(key: str, given: Any) -> float:
    """One of the paper's."""
    if (width := number(0)(key, given)) not in _WIDTHS:
        allowed = ", ".join(f"{each:g}" for each in _WIDTHS)
        raise InputError(f"{key} must be one of {allowed}, got {given}. For example {key}=1.")
    return width


@register("model", "shufflenet_v2", features=features(3), maps=stages(3))
def shufflenet_v2(
    inputs, num_classes: int, *, width: Annotated[float, _width], output_stride: Annotated[int, one_of(8, 32)]
):
    """Logits [batch, num_classes] of images [batch, height, width, channels].

    The last maps are `output_stride` times smaller than the image: 32 is the paper's, whose stem is a convolution and a
    max-pooling that halve the maps; 8 is the CIFAR benchmark's (RepDistiller, arXiv 1910.10699), whose stem is a 1x1
    convolution.
    """
    from tf_keras import layers

    if output_stride == 32:
        x = normalised(convolution(inputs, _STEM, 3, "stem", strides=2), "stem")
        x = layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)
    else:
        x = normalised(convolution(inputs, _STEM, 1, "stem"), "stem")
    widths, last = _WIDTHS[width]
    for stage, (channels, blocks) in enumerate(zip(widths, _BLOCKS, strict=True), start=1):
        for block in range(1, blocks + 1):
            name = f"stage{stage}_{block}"
            x = _block(x, channels // 2, block == 1, name, f"stage{stage}" if block == blocks else f"{name}_shuffle")
    return classified(normalised(convolution(x, last, 1, "last"), "last"), num_classes)


def _block(x, half: int, halves: bool, name: str, output: str):
    """Half of the channels as they are, half convolved; or, where the maps are halved, both convolved of all of x.
    `output` is the name of what comes out, [batch, height, width, 2 half]."""
    import tensorflow as tf

    strides = 2 if halves else 1
    if halves:
        kept = normalised(depthwise(x, 3, f"{name}_kept_depthwise", strides=2), f"{name}_kept_depthwise", relu=False)
        kept = normalised(convolution(kept, half, 1, f"{name}_kept"), f"{name}_kept")
    else:
        kept, x = tf.split(x, 2, axis=-1)
    new = normalised(convolution(x, half, 1, f"{name}_conv1"), f"{name}_conv1")
    new = normalised(depthwise(new, 3, f"{name}_depthwise", strides=strides), f"{name}_depthwise", relu=False)
    new = normalised(convolution(new, half, 1, f"{name}_conv2"), f"{name}_conv2")
    return _shuffled(kept, new, output)


def _shuffled(kept, new, output: str):
    """The channels of both by turns: with two groups that is what shuffling their concatenation comes to."""
    import tensorflow as tf
    from tf_keras import layers

    return layers.Reshape([*new.shape[1:3], 2 * new.shape[-1]], name=output)(tf.stack([kept, new], axis=-1))
