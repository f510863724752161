"""A net's name and keys become a network from images to logits."""

from collections.abc import Mapping
from typing import Any

from kdrun import registry


def smallest_image_size(model: Mapping) -> int:
    """Pixels a side that the configured model needs at least."""
    return _fact(model, "smallest_image_size")


def features(model: Mapping) -> dict[str, str]:
    """The configured model's features, in order: a name that objectives use, and the layer whose output it is."""
    return {**_fact(model, "features"), **({"projection": "projection"} if "projection_units" in model else {})}


def maps(model: Mapping) -> set[str] | None:
    """Which of the configured model's features are maps; the others are vectors. None where it does not say."""
    found = _fact(model, "maps")
    return None if found is None else set(found)


def normalises(model: Mapping) -> bool:
    """Whether the configured model brings what is to be done to images."""
    return registry.get("model", model["name"]).normalises


def check(model: Mapping) -> None:
    """Raises InputError where the configured model's keys do not go together, or name what is not there."""
    entry = registry.get("model", model["name"])
    with entry.explained():
        entry.check(_own(model))


def initialise(network, model: Mapping) -> None:
    """Give a network that `build` has made, and that is to be trained, the weights that the model's keys say. Raises
    InputError where they are not to be had."""
    entry = registry.get("model", model["name"])
    with entry.explained():
        entry.initialise(network, _own(model))


def _fact(model: Mapping, name: str) -> Any:
    """A fact of a model: a value, or a function of the model's keys."""
    entry = registry.get("model", model["name"])
    fact = getattr(entry, name)
    with entry.explained():
        return fact(_own(model)) if callable(fact) else fact


def _own(model: Mapping) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in ("name", "projection_units")}


def build(model: Mapping, image_shape: tuple[int, int, int], num_classes: int, seed: int, policy: str):
    """A tf_keras.Model from float32 images [batch, *image_shape] to float32 logits [batch, num_classes].

    The same seed gives the same initial weights, whatever was built before in this process. `policy` is a tf_keras
    dtype policy's name; logits are float32 in every policy. With `projection_units` among the model's keys, its own
    classifier gives way to a learned projection of the embedding to so many units, and a frozen classifier, whose
    weights are for a teacher to give (arXiv 2203.14001).
    """
    import tf_keras

    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(seed)
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(policy)
    random = tf_keras.backend.experimental
    was_enabled = random.is_tf_random_generator_enabled()
    random.enable_tf_random_generator()  # dropout that somebody else's code makes then has a state that can be saved
    try:
        inputs = tf_keras.Input(image_shape, dtype="float32", name="image")
        x = registry.get("model", model["name"]).call(inputs, num_classes, **_own(model))
        if "projection_units" in model:
            embedding = tf_keras.Model(inputs, x).get_layer(features(model)["embedding"]).output
            projection = tf_keras.layers.Dense(model["projection_units"], name="projection")(embedding)
            x = tf_keras.layers.Dense(num_classes, name="classifier", trainable=False)(projection)
        outputs = tf_keras.layers.Activation("linear", dtype="float32", name="logits")(x)
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
        if not was_enabled:
            random.disable_tf_random_generator()
    network = tf_keras.Model(inputs, outputs, name=model["name"])
    # tf_keras leaves the generators of its dropout layers out of checkpoints; as an attribute they are in
    drawing = [layer for layer in network.layers if hasattr(layer, "_random_generator")]
    network.generators = [x._random_generator._generator for x in drawing]  # noqa: SLF001 - shown nowhere else
    return network
