"""Settings of a training run, as plain values."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kdrun.data import batches
from kdrun.data.augmentation import Augmentation
from kdrun.data.preparation import Preparation


class Annealed(NamedTuple):
    """A value that may change over training: see schedules.annealed."""

    start: float
    end: float | None = None
    warmup_epochs: float = 0.0


class Settings(NamedTuple):
    """How a network is trained; see conf/config.yaml and conf/data for each. `weights` are the objectives'.

    `images_per_epoch` is how many an epoch takes, where that is not the size of the training set: so many as a brother
    has that learns from a transfer set, too.
    """

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
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    quantize: str | None = None
    images_per_epoch: int | None = None

    @property
    def is_mixed(self) -> bool:
        """Whether images are mixed with others of their batch."""
        return bool(self.mixup or self.cutmix)

    def steps_per_epoch(self, training_size: int) -> int:
        """Steps that an epoch takes; the last, partial batch is filled up."""
        return batches.steps_per_epoch(self.images_per_epoch or training_size, self.batch_size)
