"""Fully connected networks, as in section 3 of arXiv 1503.02531."""

from kdrun.registry import register


@register("features", "mlp")
def features(model) -> dict[str, str]:
    """Each hidden layer, before its dropout; the embedding is the last one."""
    hidden = [f"hidden{number}" for number in range(1, len(model["hidden_units"]) + 1)]
    return {**{name: name for name in hidden}, "embedding": hidden[-1]}


@register("model", "mlp")
def mlp(inputs, num_classes: int, *, hidden_units: list[int], input_dropout: float, hidden_dropout: float):
    """Logits [batch, num_classes] of images [batch, height, width, channels]: dense layers with ReLU and dropout.

    Dropout draws from generators that are part of the model's state, so that a resumed run goes on with their bits.
    """
    from tf_keras import layers

    def dropout(x, rate, name):
        return layers.Dropout(rate, rng_type="stateful", name=name)(x) if rate else x

    x = layers.Flatten(name="pixels")(inputs)
    x = dropout(x, input_dropout, "pixels_dropout")
    for number, units in enumerate(hidden_units, start=1):
        x = layers.Dense(units, activation="relu", name=f"hidden{number}")(x)
        x = dropout(x, hidden_dropout, f"hidden{number}_dropout")
    return layers.Dense(num_classes, name="classifier")(x)
