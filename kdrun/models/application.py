"""The nets of tf_keras.applications, for colour images, with their own preprocessing inside."""

from collections import defaultdict
from pathlib import Path
from typing import Annotated

from kdrun.config import rules
from kdrun.models import pretrained
from kdrun.models.blocks import features, stages
from kdrun.registry import Keys, register

# each family with its variants, as they are called there
_FAMILIES = {
    "ConvNeXt": "Tiny Small Base Large XLarge",
    "DenseNet": "121 169 201",
    "EfficientNet": "B0 B1 B2 B3 B4 B5 B6 B7 V2B0 V2B1 V2B2 V2B3 V2S V2M V2L",
    "Inception": "V3 ResNetV2",
    "MobileNet": " V2 V3Small V3Large",
    "NASNet": "Mobile Large",
    "RegNetX": "002 004 006 008 016 032 040 064 080 120 160 320",
    "RegNetY": "002 004 006 008 016 032 040 064 080 120 160 320",
    "ResNet": "50 101 152 50V2 101V2 152V2 RS50 RS101 RS152 RS200 RS270 RS350 RS420",
    "VGG": "16 19",
    "Xception": "",
}
ARCHITECTURES = [family + variant for family, variants in _FAMILIES.items() for variant in variants.split(" ")]
_SMALLEST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}  # pixels a side; of all others 32
_STAGES = 4
_LIKE = 1.5  # maps whose sides differ by less are of one stage: some convolutions take off an edge


def _check(keys: Keys) -> None:
    if keys["weights"] is not None:
        pretrained.check(Path(keys["weights"]))


def _initialise(network, keys: Keys) -> None:
    """All up to the embedding gets its weights from the file."""
    if keys["weights"] is not None:
        last = network.layers.index(network.get_layer("embedding"))
        pretrained.load(network.layers[: last + 1], Path(keys["weights"]))


@register(
    "model",
    "application",
    features=features(_STAGES),
    maps=stages(_STAGES),
    smallest_image_size=lambda keys: _SMALLEST.get(keys["architecture"], 32),
    normalises=True,
    check=_check,
    files=("weights",),
    initialise=_initialise,
)
def application(
    inputs,
    num_classes: int,
    *,
    architecture: Annotated[str, rules.one_of(*ARCHITECTURES)],
    weights: Annotated[str | None, rules.optional(rules.path)] = None,
):
    """Logits [batch, num_classes] of images [batch, height, width, 3] with values from 0 to 1; of grey images
    [batch, height, width, 1], as if they were in colour.

    The architecture without its own classifier: the means over its last maps' pixels, and one dense layer. Its stages
    are the last four sizes of maps, whose last layers get their names. `weights` is read when a run begins to train
    (see pretrained), and not here: a run that is there already has its own.
    """
    from tf_keras import applications, layers

    x = layers.Concatenate(name="colour")([inputs] * 3) if inputs.shape[-1] == 1 else inputs
    make = getattr(applications, architecture)
    module = getattr(applications, make.__module__.rpartition(".")[2])
    x = module.preprocess_input(layers.Rescaling(255.0, name="pixels", dtype="float32")(x))
    network = make(include_top=False, weights=None, input_tensor=x, pooling="avg")
    if all(layer.name != "pixels" for layer in network.layers):
        # ConvNeXt takes the network's input, whatever it is given; it begins with a normalisation for values up to 255
        first = network.layers[1]
        first.mean, first.variance = first.mean / 255.0, first.variance / 255.0**2
    for name, layer in zip(
        [*stages(_STAGES), "embedding"], [*_last_of_stages(network), network.layers[-1]], strict=True
    ):
        layer._name = name  # noqa: SLF001 - a layer that others have made has no other way to another name
    return layers.Dense(num_classes, name="classifier")(network.output)


def _last_of_stages(network) -> list:
    """The last layers of the last four sizes of maps, if there are any, of those through which everything goes."""
    maps = [layer for layer in network.layers if len(layer.output.shape) == 4 and not _is_edge(layer)]
    by_side, through = defaultdict(list), _bottlenecks(network)
    for layer in maps:
        by_side[layer.output.shape[1]].append(layer)
    found: list = []
    for side in sorted(side for side in by_side if side >= maps[-1].output.shape[1]):  # gates have maps of one pixel
        if not found or side >= _LIKE * found[0].output.shape[1]:
            candidates = by_side[side]
            found.insert(0, ([layer for layer in candidates if layer in through] or candidates)[-1])
    return found[-_STAGES:]


def _is_edge(layer) -> bool:
    """Whether a layer does nothing but add an edge, or take one off."""
    return type(layer).__name__ in ("ZeroPadding2D", "Cropping2D")


def _bottlenecks(network) -> list:
    """The layers beside which nothing goes: what is made before each of them is used by it, or before it."""
    places = {layer: place for place, layer in enumerate(network.layers)}
    last_use = [0] * len(places)
    for layer, place in places.items():
        for node in layer.inbound_nodes[0].parent_nodes:
            if node.layer in places:
                last_use[places[node.layer]] = place
    furthest = 0
    found = []
    for layer, place in places.items():
        if furthest <= place:
            found.append(layer)
        furthest = max(furthest, last_use[place])
    return found
