"""Weights that objectives train beside the student."""

from __future__ import annotations

import math
import zlib

import numpy as np

from kdrun.runtime.lazy import tf


class Learned:
    """Weights that objectives need beside the networks', float32, by name; each is made at its first use.

    They are trained with the student and saved in training states, but are no part of the student. The first call of
    an objective must be outside of a tf.function.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._variables: dict[str, tf.Variable] = {}
        self._limits: dict[str, tuple[float, float]] = {}

    @property
    def variables(self) -> list[tf.Variable]:
        """All of them, in the order in which they were made."""
        return list(self._variables.values())

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """Those that gradients reach."""
        return [variable for variable in self.variables if variable.trainable]

    def initial(self, seed: int) -> list[np.ndarray]:
        """The values of `variables` before the first step of a run with this seed."""
        return [self._initial(name, variable.shape, seed) for name, variable in self._variables.items()]

    def variable(self, name: str, shape, low: float, high: float, trainable: bool = True) -> tf.Variable:
        """A variable that begins with uniform values from low to high; low = high is a constant."""
        if name not in self._variables:
            self._limits[name] = low, high
            value = self._initial(name, shape, self._seed)
            self._variables[name] = tf.Variable(value, trainable=trainable, name=name.replace(":", "_"))
        return self._variables[name]

    def dense(self, name: str, x: tf.Tensor, units: int, bias: bool = True) -> tf.Tensor:
        """A dense layer: [batch, n] to [batch, units]."""
        return self._biased(name, tf.matmul(x, self._kernel(name, [x.shape[-1], units])), bias)

    def convolution(self, name: str, x: tf.Tensor, filters: int, size: int = 1, bias: bool = True) -> tf.Tensor:
        """A convolution: [batch, height, width, channels] to [batch, height, width, filters]."""
        kernel = self._kernel(name, [size, size, x.shape[-1], filters])
        return self._biased(name, tf.nn.conv2d(x, kernel, 1, "SAME"), bias)

    def batch_norm(self, name: str, x: tf.Tensor) -> tf.Tensor:
        """Batch normalisation over all axes but the last, with a scale and an offset for each channel.

        By the batch's own statistics (epsilon 1e-5): an objective is computed in training alone, so that moving ones
        would never be used, and there are none.
        """
        mean, variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))
        scale = self.variable(f"{name}/scale", x.shape[-1:], 1.0, 1.0)
        offset = self.variable(f"{name}/offset", x.shape[-1:], 0.0, 0.0)
        return (x - mean) * tf.math.rsqrt(variance + 1e-5) * scale + offset

    def _kernel(self, name: str, shape: list[int]) -> tf.Variable:
        receptive = math.prod(shape[:-2])
        limit = math.sqrt(6 / (receptive * (shape[-2] + shape[-1])))  # Glorot and Bengio 2010, uniform
        return self.variable(f"{name}/kernel", shape, -limit, limit)

    def _biased(self, name: str, x: tf.Tensor, bias: bool) -> tf.Tensor:
        return x + self.variable(f"{name}/bias", x.shape[-1:], 0.0, 0.0) if bias else x

    def _initial(self, name: str, shape, seed: int) -> np.ndarray:
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return generator.uniform(*self._limits[name], tuple(shape)).astype(np.float32)
