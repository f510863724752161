"""A network and all that is trained with it: made once, then reset for every job that it serves.

Tracing and compiling a training step of the notebook's nets takes longer than many of its steps. What the jobs of a
sweep differ in (temperature, alpha, learning rate, seed) are inputs of the compiled step or values of variables, so
that one network serves them all, and each starts from exactly what a process of its own would have made.
"""

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from kdrun.data.batches import relative_seed
from kdrun.models.quantization import FakeQuantized
from kdrun.objectives.learned import Learned
from kdrun.optimizers.average import Average
from kdrun.optimizers.flat import FlatOptimizer, flattened, unflattened
from kdrun.training.replicas import Part
from kdrun.training.supervision import LABELS_ALONE, Forward, Supervision, call_on_zeros, forward

_SEEDS_REMEMBERED = 16

Built = TypeVar("Built")


class Network:
    """A model, what it learns from, the weights that this needs, and its optimizer.

    `build(seed)` makes the model with its initial weights; its `peers` are made with relative seeds. A second call
    for another seed is made for its values alone. `factors(model)` is what the learning rate is times for each of the
    model's trainable variables. With `quantize`, int8, it is trained with its values rounded; the weights are those of
    the model either way.
    """

    def __init__(
        self,
        build: Callable,
        seed: int,
        optimizer: Mapping,
        scale_loss: bool,
        supervision: Supervision = LABELS_ALONE,
        factors: Callable | None = None,
        quantize: str | None = None,
    ):
        self._build = build
        self.model = build(seed)
        self.supervision = supervision
        self.peers = [build(relative_seed(seed, number)) for number in range(1, 1 + supervision.peers)]
        self.learned = Learned(seed)
        call_on_zeros(supervision, self.model, self.learned)
        trained = [v for model in (self.model, *self.peers) for v in model.trainable_variables]
        trained += self.learned.trainable_variables
        of_model = factors(self.model) if factors else []
        self.optimizer = FlatOptimizer(optimizer, trained, scale_loss, of_model)
        self.quantized = FakeQuantized(self.model, supervision.layers) if quantize else None
        self.forward: Forward = self.quantized or forward(self.model, supervision.layers)  # as it is trained
        # batch norm's moving statistics, too: those of now are not those of averaged weights
        of_models = [v for model in (self.model, *self.peers) for v in model.variables]
        self.average = Average(of_models, optimizer["ema"]) if optimizer.get("ema") else None
        self._initial = {
            relative_seed(seed, number): _values(_state(each)) for number, each in enumerate((self.model, *self.peers))
        }
        self._fresh = _values(self._remembered)

    def reset(self, seed: int) -> None:
        """Weights, random generators and optimizer as they are before the first step of a run with this seed."""
        for number, model in enumerate((self.model, *self.peers)):
            _assign(_state(model), self._initial_values(relative_seed(seed, number)))
        _assign(self.learned.variables, self.learned.initial(seed))
        _assign(self._remembered, self._fresh)
        self.optimizer.reload()

    def take(self, state: Iterable[np.ndarray]) -> None:
        """Be in the state that another machine's `state` has the values of."""
        _assign(self.state, state)
        self.optimizer.reload()

    def follow(self, first: "Network", number: int) -> None:
        """Be in the state of another one of the same kind, on another device, but for random numbers: those are this
        device's own, number `number`."""
        pairs = zip((self.model, *self.peers), (first.model, *first.peers), strict=True)
        for mine, other in pairs:
            _assign(mine.variables, (each.numpy() for each in other.variables))
            for generator, of_first in zip(mine.generators, other.generators, strict=True):
                *counter, key = of_first.state.numpy()
                generator.state.assign([*counter, key + number])
        _assign(self.learned.variables, (each.numpy() for each in first.learned.variables))
        _assign(self.optimizer.state, (each.numpy() for each in first.optimizer.state))
        self.optimizer.reload()

    @property
    def moving(self) -> list[tf.Variable]:
        """What a forward pass in training moves on: batch normalisation's statistics, where it is not frozen."""
        trained = [layer for model in (self.model, *self.peers) for layer in model.layers if layer.trainable]
        return [v for layer in trained for v in layer.non_trainable_variables if v.dtype.is_floating]

    def gradient(
        self, tape: tf.GradientTape, scaled_loss: tf.Tensor, before: Sequence[tf.Tensor], part: Part
    ) -> tf.Tensor:
        """The gradient of the whole batch's loss, as one vector, of which `tape` has the part's share.

        All that the devices have to tell each other goes with it: each has moved its statistics since `before`, and
        all move on by the mean of that.
        """
        gradients = self.optimizer.gradients(tape, scaled_loss)
        if part.count == 1:
            return flattened(gradients)
        # what objectives learn sees the whole batch: each device has all of its gradient
        own = len(gradients) - len(self.learned.trainable_variables)
        gradients = [*gradients[:own], *(each / part.count for each in gradients[own:])]
        moved = [variable - each for variable, each in zip(self.moving, before, strict=True)]
        summed = unflattened(part.sum(flattened([*gradients, *moved])), [*gradients, *moved])
        for variable, each, change in zip(self.moving, before, summed[len(gradients) :], strict=True):
            variable.assign(each + change / part.count)
        return flattened(summed[: len(gradients)])

    def _initial_values(self, seed: int) -> list[np.ndarray]:
        if seed not in self._initial:
            if len(self._initial) >= _SEEDS_REMEMBERED:
                del self._initial[next(iter(self._initial))]
            self._initial[seed] = _values(_state(self._build(seed)))
        return self._initial[seed]

    @property
    def state(self) -> list[tf.Variable]:
        """All variables that the next step depends on: weights, random generators, what the optimizer remembers."""
        of_peers = [variable for peer in self.peers for variable in _state(peer)]
        return [*_state(self.model), *of_peers, *self.learned.variables, *self._remembered]

    @property
    def _remembered(self) -> list[tf.Variable]:
        """What is remembered of steps, beside what they have made of weights."""
        of_average = self.average.state if self.average else ()
        of_ranges = [self.quantized.ranges] if self.quantized else ()
        return [*self.optimizer.state, *of_average, *of_ranges]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While inside, the models' weights are their averages, where an average is kept of them."""
        if self.average is None:
            yield
            return
        variables = [v for model in (self.model, *self.peers) for v in model.variables]
        trained = _values(variables)
        self.average.assign()
        try:
            yield
        finally:
            _assign(variables, trained)

    def weights(self) -> list[np.ndarray]:
        """A copy of the model's weights."""
        return _values(self.model.variables)

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Take over what `weights` has given."""
        _assign(self.model.variables, weights)


_built: dict[str, Any] = {}


def reuse_or_build(compile_key: Mapping, build: Callable[[], Built]) -> Built:
    """What was built last, if it was for an equal key, else what `build` gives.

    The key holds, as plain values, all that a network and the functions compiled of it depend on.
    """
    key = json.dumps(compile_key, sort_keys=True)
    if key not in _built:
        release()  # first, so that two networks are never in memory together
        _built[key] = build()
    return _built[key]


def release() -> None:
    """Let go of what was built, memory included: tf_keras's objects refer to each other in circles."""
    _built.clear()
    gc.collect()


def _state(model) -> list[tf.Variable]:
    return [*model.variables, *(generator.state for generator in model.generators)]


def _values(variables: Iterable[tf.Variable]) -> list[np.ndarray]:
    return [variable.numpy().copy() for variable in variables]


def _assign(variables: Iterable[tf.Variable], values: Iterable[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
