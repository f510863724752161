"""Augmentation as plain values, and the integers that say what it makes of an image: its views.

With `jitter` j and `flip` alone, there are (2j + 1)^2 shifts and twice as many with their mirror images: a view says
which, so views are finite, and what a teacher says of each can be kept. The other operations are random; with one of
them, or with `views`, a view is only a number: with the image's index, it decides what is drawn.
"""

from collections.abc import Mapping
from typing import NamedTuple

_ALL = 2**31  # as many as an int32 counts: no image is seen in one of them twice


class Augmentation(NamedTuple):
    """What is done to the images that a network learns from; see conf/data/mnist.yaml. By default, nothing."""

    jitter: int = 0
    flip: bool = False
    resized_crop: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    cutout: float = 0.0
    views: int | None = None
    seed: int = 0

    @property
    def is_random(self) -> bool:
        """Whether an operation is on that makes more views than can be counted."""
        return self.resized_crop < 1 or any((self.brightness, self.contrast, self.saturation, self.hue, self.cutout))

    @property
    def is_drawn(self) -> bool:
        """Whether a view is a number by which random ones are drawn, instead of a shift and which way round."""
        return self.is_random or (self.views is not None and self.shifted > 1)

    @property
    def is_finite(self) -> bool:
        """Whether a teacher can be asked for every view."""
        return self.views is not None or not self.is_random

    @property
    def shifted(self) -> int:
        """How many images jitter and flip make of one, itself included."""
        return (2 * self.jitter + 1) ** 2 * (2 if self.flip else 1)

    @property
    def view_count(self) -> int:
        """How many views of an image there are."""
        if not self.is_drawn:
            return self.shifted
        return _ALL if self.views is None else self.views


NONE = Augmentation()


def of(data: Mapping) -> Augmentation:
    """The augmentation of a config's data, as a role's network sees them."""
    augment = data["augment"]
    return Augmentation(**{key: value for key, value in augment.items() if key != "colour"}, **augment["colour"])
