"""A network of another tool, as the module of its format has loaded it: plain functions of arrays."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from kdrun.teachers.pixels import Declared


class Feature(NamedTuple):
    """What a network computes on the way: its shape for one image, and a function from a batch to it."""

    shape: tuple[int, ...]
    call: Callable[[np.ndarray], np.ndarray]


class Network(NamedTuple):
    """What the module of a format loads: what the file says of the input, a function from a batch of it to outputs, and
    one that finds its features, by name, in order; none, where the format has no layers."""

    declared: Declared
    call: Callable[[np.ndarray], np.ndarray]
    features: Callable[[], Mapping[str, Feature]] = dict
