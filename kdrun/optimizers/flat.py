"""An optimizer applied to all of a model's weights at once.

Those of elementwise.py work element by element, so one flat vector of all weights gives the same numbers as one
variable at a time, with far fewer graph operations for a network of hundreds of variables, and so a far earlier first
step.
"""

from collections.abc import Mapping, Sequence

import tensorflow as tf
import tf_keras

from kdrun.config.schema import own
from kdrun.registry import get
from kdrun.runtime.tensorflow import quiet

_COMPILE_FROM = 2**18  # weights; of fewer, a run of some epochs does not earn back the half second that compiling takes


class FlatOptimizer(tf.Module):
    """An optimizer over the concatenation of `variables`, which follow it after every step.

    On a CPU, from `compile_from` weights on, XLA makes one loop of an update that is many operations, each of which
    goes through all weights. It rounds otherwise. `factors` are what the learning rate is times for the first
    variables, where it is not the same for all.
    """

    def __init__(
        self,
        optimizer: Mapping,
        variables: Sequence[tf.Variable],
        scale_loss: bool = False,
        factors: Sequence[float] = (),
        compile_from: int = _COMPILE_FROM,
    ):
        super().__init__()
        entry = get("optimizer", optimizer["name"])
        keys = own(optimizer, entry)
        self.variables_ = list(variables)
        self._clip_norm = optimizer.get("clip_norm")
        self._coupled, self._decay = optimizer.get("coupled", False), None
        if keys.get("weight_decay") and (self._coupled or optimizer.get("decay") == "weights"):
            self._decay = keys["weight_decay"] * _decaying(self.variables_, optimizer.get("decay", "all"))
            keys = {**keys, "weight_decay": 0.0}  # ours to do, then
        self._factors, self._most = None, max([1.0, *factors])
        if factors:  # at most 1: what is scaled up is rounded before that
            of_each = [f / self._most for f in (*factors, *[1.0] * (len(self.variables_) - len(factors)))]
            self._factors = flattened([tf.fill(v.shape, f) for v, f in zip(self.variables_, of_each, strict=True)])
        self.optimizer = entry.call(**keys)
        self.flat = tf.Variable(flattened(self.variables_), name="weights")
        if isinstance(self.optimizer, tf_keras.optimizers.legacy.Optimizer):
            # now, since a loop inside a graph cannot
            self.optimizer._create_all_weights([self.flat])  # noqa: SLF001 - they have no public `build`
        else:
            self.optimizer.build([self.flat])
        self.learning_rate = self.optimizer.learning_rate
        if scale_loss:  # float16 gradients underflow otherwise
            self.optimizer = tf_keras.mixed_precision.LossScaleOptimizer(self.optimizer)
        self.scales_loss = scale_loss
        self._update = self._apply
        if entry.compiles(keys) and self.flat.shape[0] >= compile_from and "CPU" in self.flat.device:
            self._update = tf.function(self._apply, jit_compile=True)
            with quiet():  # XLA greets when it first compiles
                tf.function(tf.identity, jit_compile=True)(0.0)

    @property
    def state(self) -> list[tf.Variable]:
        """What the optimizer remembers from step to step, beside the weights."""
        inner = self.optimizer.inner_optimizer if self.scales_loss else self.optimizer
        remembered = list(inner.variables() if callable(inner.variables) else inner.variables)
        if self.scales_loss:
            scale = self.optimizer._loss_scale  # noqa: SLF001 - its values alone are shown, not its variables
            remembered += [scale.current_loss_scale, scale.counter]
        return remembered

    def reload(self) -> None:
        """Take over the variables' values, after they were set from outside."""
        self.flat.assign(flattened(self.variables_))

    def gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
        """The gradient of each variable, as `tape` has it, which must have been told `scaled(loss)`."""
        gradients = tape.gradient(loss, self.variables_, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return self.optimizer.get_unscaled_gradients(gradients) if self.scales_loss else gradients

    def update(self, gradient: tf.Tensor, learning_rate: tf.Tensor) -> None:
        """One step down a gradient, that of all variables as one vector: see `flat`."""
        self.learning_rate.assign(learning_rate if self._factors is None else self._most * learning_rate)
        self._update(gradient if self._clip_norm is None else clipped(gradient, self._clip_norm))
        values = unflattened(self.flat, self.variables_)
        if any(variable.constraint for variable in self.variables_):
            values = [
                variable.constraint(value) if variable.constraint else value
                for variable, value in zip(self.variables_, values, strict=True)
            ]
            self.flat.assign(flattened(values))
        for variable, value in zip(self.variables_, values, strict=True):
            variable.assign(value)

    def _apply(self, gradient: tf.Tensor) -> None:
        if self._factors is None:
            return self._step(gradient)
        before = self.flat.value()
        self._step(gradient)
        # every update is proportional to the learning rate
        self.flat.assign(before + self._factors * (self.flat - before))

    def _step(self, gradient: tf.Tensor) -> None:
        if self._decay is not None and self._coupled:
            gradient += self._decay * self.flat
        elif self._decay is not None:
            share = self.learning_rate * self._decay
            if self.scales_loss:  # a step that is left out leaves the weights alone
                share *= tf.cast(tf.reduce_all(tf.math.is_finite(gradient)), share.dtype)
            self.flat.assign_sub(share * self.flat)
        self.optimizer.apply_gradients([(gradient, self.flat)])

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """What to differentiate instead of `loss`; the same thing unless the loss is scaled."""
        return self.optimizer.get_scaled_loss(loss) if self.scales_loss else loss


def clipped(gradient: tf.Tensor, longest: float) -> tf.Tensor:
    """A gradient, float32 [n], made `longest` long where it is longer (arXiv 1211.5063, algorithm 1)."""
    return gradient * (longest / tf.maximum(tf.norm(gradient), longest))


def _decaying(variables: Sequence, what: str) -> tf.Tensor:
    """Which values of a flat vector decay, 1.0 or 0.0: all, or for `weights` those of matrices and kernels: biases,
    scales and offsets are vectors."""
    chosen = [tf.fill(v.shape, float(what == "all" or v.shape.rank > 1)) for v in variables]
    return flattened(chosen)


def flattened(tensors: Sequence) -> tf.Tensor:
    """Tensors as one vector."""
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)


def unflattened(vector: tf.Tensor, like: Sequence) -> list[tf.Tensor]:
    """The inverse of `flattened`: tensors of these shapes."""
    parts = tf.split(vector, [each.shape.num_elements() for each in like])
    return [tf.reshape(part, each.shape) for each, part in zip(like, parts, strict=True)]
