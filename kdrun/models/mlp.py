"""Fully connected networks, as in section 3 of arXiv 1503.02531."""

from kdrun.registry import register


@register("features", "mlp")
def features(model) -> dict[str, str]:
    """Each hidden layer, before its dropout; the embedding is the last one."""
    hidden = [f"hidden{number}" for number in range(1, len(model["hidden_units"]) + 1)]
    return {**{name: name for name in hidden}, "embedding": hidden[-1]}


@register("maps", "mlp")
def maps(model) -> list[str]:
    """None: all layers are dense."""
    return []


@register("model", "mlp")
def mlp(
    inputs,
    num_classes: int,
    *,
    hidden_units: list[int],
    input_dropout: float,
    hidden_dropout: float,
    max_norm: float | None = None,
):
    """Logits [batch, num_classes] of images [batch, height, width, channels]: dense layers with ReLU and dropout.

    `max_norm` is the longest that a hidden unit's vector of incoming weights may be: after every step a longer one is
    scaled back (arXiv 1207.0580, section 2).

    Dropout draws from generators that are part of the model's state, so that a resumed run goes on with their bits.
    """
    from tf_keras import constraints, layers

    def dropout(x, rate, name):
        return layers.Dropout(rate, rng_type="stateful", name=name)(x) if rate else x

    x = layers.Flatten(name="pixels")(inputs)
    x = dropout(x, input_dropout, "pixels_dropout")
    for number, units in enumerate(hidden_units, start=1):
        limit = max_norm and constraints.MaxNorm(max_norm, axis=0)
        x = layers.Dense(units, activation="relu", kernel_constraint=limit, name=f"hidden{number}")(x)
        x = dropout(x, hidden_dropout, f"hidden{number}_dropout")
    return layers.Dense(num_classes, name="classifier")(x)
