"""Settings of a training run, as plain values."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kdrun.data.augmentation import Augmentation
from kdrun.data.preparation import Preparation


class Annealed(NamedTuple):
    """A value that may change over training: see schedules.annealed."""

    start: float
    end: float | None = None
    warmup_epochs: float = 0.0


class Settings(NamedTuple):
    """How a network is trained; see conf/config.yaml and conf/data for each. `weights` are the objectives'."""

    seed: int
    epochs: int
    batch_size: int
    preparation: Preparation
    augmentation: Augmentation
    optimizer: Mapping
    temperature: Annealed
    alpha: Annealed
    weights: Sequence[Annealed] = ()
    annealing: str = "linear"
    patience: int | None = None
    held_out: bool = True  # whether validation images are not trained on
    shuffle: str = "none"
    mixup: float = 0.0
