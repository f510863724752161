"""A network with what is compiled of it: made once, then reset for every job that it serves.

Tracing and compiling a training step of the notebook's nets takes longer than many of its steps. What the jobs of a
sweep differ in (temperature, alpha, learning rate, seed) are inputs of the compiled step or values of variables, so
that one network serves them all, and each starts from exactly what a process of its own would have made.
"""

import gc
import json
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kdrun.training.inference import Infer
from kdrun.training.optimizers import FlatOptimizer

_SEEDS_REMEMBERED = 16


class Teacher(NamedTuple):
    """What a distilled student learns from.

    `objective(z, v, temperature)` is the distillation loss. The teacher's logits on the training set are either kept:
    `train` float32 [views, n, classes]; or `train` is None and `ask(images)` gives them inside the compiled step for
    prepared images. `validation` and `test` are its logits on those splits.
    """

    objective: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    train: np.ndarray | None
    ask: Callable[[tf.Tensor], tf.Tensor] | None
    validation: np.ndarray
    test: np.ndarray


class Network:
    """A model, its optimizer, and, set by whoever makes it, its teacher and the functions compiled of them.

    `build(seed)` makes the model with its initial weights. A second call of it, for another seed, is made for its
    values alone.
    """

    teacher: Teacher | None
    run_steps: Callable
    infer: Infer
    latency: dict | None = None  # measured once: a later job's weights take as long

    def __init__(self, build: Callable, seed: int, optimizer: Mapping, scale_loss: bool):
        self._build = build
        self.model = build(seed)
        self.optimizer = FlatOptimizer(optimizer, self.model.trainable_variables, scale_loss)
        self._initial = {seed: _values(_state(self.model))}
        self._fresh_optimizer = _values(self.optimizer.state)

    def reset(self, seed: int) -> None:
        """Weights, random generators and optimizer as they are before the first step of a run with this seed."""
        if seed not in self._initial:
            if len(self._initial) == _SEEDS_REMEMBERED:
                del self._initial[next(iter(self._initial))]
            self._initial[seed] = _values(_state(self._build(seed)))
        _assign(_state(self.model), self._initial[seed])
        _assign(self.optimizer.state, self._fresh_optimizer)
        self.optimizer.reload()

    @property
    def state(self) -> list[tf.Variable]:
        """All variables that the next step depends on: weights, random generators, what the optimizer remembers."""
        return [*_state(self.model), *self.optimizer.state]

    def weights(self) -> list[np.ndarray]:
        """A copy of the model's weights."""
        return _values(self.model.variables)

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Take over what `weights` has given."""
        _assign(self.model.variables, weights)


_kept: dict[str, Network] = {}


def kept(depends: Mapping, make: Callable[[], Network]) -> Network:
    """The network that was made last, if it depended on the same plain values, else a new one from `make`."""
    key = json.dumps(depends, sort_keys=True)
    if key not in _kept:
        release()  # first, so that two networks are never in memory together
        _kept[key] = make()
    return _kept[key]


def release() -> None:
    """Let go of the network that was kept, memory included: tf_keras's objects refer to each other in circles."""
    _kept.clear()
    gc.collect()


def _state(model) -> list[tf.Variable]:
    return [*model.variables, *(generator.state for generator in model.generators)]


def _values(variables: Iterable[tf.Variable]) -> list[np.ndarray]:
    return [variable.numpy().copy() for variable in variables]


def _assign(variables: Iterable[tf.Variable], values: Iterable[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
