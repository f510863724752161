"""Fully connected networks, as in section 3 of arXiv 1503.02531."""

from kdrun.config.rules import Counts, Positive, Rate
from kdrun.registry import Keys, register


def _features(keys: Keys) -> dict[str, str]:
    """Each hidden layer, before its dropout; the embedding is the last one."""
    hidden = [f"hidden{number}" for number in range(1, len(keys["hidden_units"]) + 1)]
    return {**{name: name for name in hidden}, "embedding": hidden[-1]}


@register("model", "mlp", features=_features, maps=())
def mlp(
    inputs,
    num_classes: int,
    *,
    hidden_units: Counts,
    input_dropout: Rate,
    hidden_dropout: Rate,
    max_norm: Positive | None = None,
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
