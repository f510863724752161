"""VGG's networks for small images (after arXiv 1409.1556), with batch normalisation."""

from typing import Annotated

from kdrun.config.rules import one_of
from kdrun.models.blocks import classified, convolution, normalised, stages
from kdrun.registry import Keys, register

_WIDTHS = (64, 128, 256, 512, 512)  # of the stages
_LAYERS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_LARGE = 64  # pixels a side from which the fourth stage is pooled, too


def _features(keys: Keys) -> dict[str, str]:
    """Each stage's output before its pooling, and the pooled embedding."""
    last = zip(stages(5), _LAYERS[keys["depth"]], strict=True)
    return {**{stage: f"{stage}_{count}_relu" for stage, count in last}, "embedding": "embedding"}


@register("model", "vgg", features=_features, maps=stages(5), smallest_image_size=8)
def vgg(inputs, num_classes: int, *, depth: Annotated[int, one_of(*_LAYERS)]):
    """Logits [batch, num_classes] of images [batch, height, width, channels].

    Five stages of 3x3 convolutions with bias, batch normalisation and ReLU; max-pooling after the first three, and
    after the fourth where images have 64 pixels a side or more; one dense layer. As in the code that the CIFAR
    benchmark of distillation is from (RepDistiller, arXiv 1910.10699).
    """
    from tf_keras import layers

    x, large = inputs, min(inputs.shape[1:3]) >= _LARGE
    for stage, (width, count) in enumerate(zip(_WIDTHS, _LAYERS[depth], strict=True), start=1):
        for number in range(1, count + 1):
            name = f"stage{stage}_{number}"
            x = normalised(convolution(x, width, 3, name, bias=True), name)
        if stage < 4 or (stage == 4 and large):
            x = layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    return classified(x, num_classes)
