"""The average of a network's weights over its steps, by which it is measured where one is asked for."""

from collections.abc import Sequence

import tensorflow as tf


class Average(tf.Module):
    """An exponential moving average of `variables`, float32 of any shapes: after step t, Σ dᵗ⁻ⁱ wᵢ / Σ dᵗ⁻ⁱ over the
    steps i = 1 ... t.

    Divided by the sum of its weights as Adam's moments are (arXiv 1412.6980, section 3), so that weights of before the
    first step are no part of it. The average of weights along the way: Polyak and Juditsky, 1992.
    """

    def __init__(self, variables: Sequence[tf.Variable], decay: float):
        super().__init__()
        self._variables, self._decay = list(variables), decay
        self._flat = tf.Variable(tf.zeros_like(self._concatenated()))  # one operation a step, however many there are
        self._total = tf.Variable(0.0, dtype=tf.float64)  # Σ dᵗ⁻ⁱ; float32 would lose digits of 1 - d

    def update(self) -> None:
        """A step was taken."""
        self._total.assign(self._decay * self._total + 1.0)
        self._flat.assign_add(tf.cast(1.0 / self._total, tf.float32) * (self._concatenated() - self._flat))

    def assign(self) -> None:
        """Give the variables their averages; before any step they stay."""
        if self._total.numpy():
            parts = tf.split(self._flat, [v.shape.num_elements() for v in self._variables])
            for part, variable in zip(parts, self._variables, strict=True):
                variable.assign(tf.reshape(part, variable.shape))

    @property
    def state(self) -> list[tf.Variable]:
        """What it remembers from step to step."""
        return [self._flat, self._total]

    def _concatenated(self) -> tf.Tensor:
        return tf.concat([tf.reshape(variable, [-1]) for variable in self._variables], axis=0)
