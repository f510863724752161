"""What a network from elsewhere is given, made of pixels: size, channels, layout, (pixel / scale - mean) / std.

NumPy alone: the process that runs such a network need not have TensorFlow.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdrun.errors import InputError

FORMAT = 1  # raise when the same pixels would no longer be given as the same numbers
_BYTE = 255.0
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # how bright red, green and blue are: ITU-R BT.601
_OF_CHANNELS = {"grey": 1, "rgb": 3, "bgr": 3}


class Declared(NamedTuple):
    """What a file says of its input: its shape, the batch first, None for what may be anything; its NumPy dtype; and
    whether its first layers scale pixels themselves."""

    shape: tuple[int | None, ...]
    dtype: str = "float32"
    scales: bool = False


class Input(NamedTuple):
    """What a network is given: images of `size` pixels a side with `channels` grey, rgb or bgr, in a `layout` NHWC,
    NCHW or NHW, each number (pixel / scale - mean) / std, as `dtype`."""

    size: int
    channels: str
    layout: str
    scale: float
    mean: Sequence[float]
    std: Sequence[float]
    dtype: str

    def __str__(self) -> str:
        numbers = f"(pixel / {self.scale:g} - {_numbers(self.mean)}) / {_numbers(self.std)}"
        return f"{self.size}x{self.size}, {self.channels}, {self.layout}, {numbers}"


def resolved(asked: Mapping[str, Any], declared: Declared) -> Input:
    """The input of a network from the keys of teacher.input and what its file says. Raises InputError where neither
    says something, or both say different things."""
    shape, layout = declared.shape, asked["layout"] or _layout(declared.shape, asked["channels"])
    if layout is None:
        raise InputError(
            f"its input {_shown(shape)} does not say where channels are. Set teacher.input.layout=NHWC, NCHW or NHW."
        )
    if len(shape) != len(layout):
        raise InputError(
            f"its input is {_shown(shape)}, and images in the layout {layout} have {len(layout)} axes, the batch's "
            "included. Give a network on images, or another teacher.input.layout."
        )
    axes = dict(zip(layout, shape, strict=True))
    if axes.get("C") not in (None, 1, 3):
        raise InputError(
            f"its input is {_shown(shape)}, and in the layout {layout} these are images of {axes['C']} channels. They "
            "must have 1 or 3: set teacher.input.layout otherwise, or leave it out."
        )
    channels = asked["channels"] or {1: "grey", 3: "rgb"}.get(axes.get("C", 1) or 0)
    if channels is None:
        raise InputError(f"its input {_shown(shape)} does not say which channels. Set teacher.input.channels=rgb.")
    size = asked["size"] or axes["H"] or axes["W"]
    if size is None:
        raise InputError(f"its input {_shown(shape)} says no size. Set teacher.input.size=224 or the like.")
    fits = {"H": size, "W": size, "C": _OF_CHANNELS[channels]}
    if (layout == "NHW" and channels != "grey") or any(axes[axis] not in (None, fits[axis]) for axis in layout[1:]):
        raise InputError(
            f"its input is {_shown(shape)} in the layout {layout}, and images are to be {size}x{size}, {channels}. "
            "Set teacher.input.size, channels or layout otherwise, or leave them out."
        )
    return Input(size, channels, layout, *_numbers_of(asked, declared, channels), declared.dtype)


def prepare(images: np.ndarray, shown: Input) -> np.ndarray:
    """Images, uint8 [n, height, width, 1 or 3], as a network is given them."""
    found = _channels(images.astype(np.float32), shown.channels)
    found = resize(found, shown.size) / np.float32(shown.scale)
    found = (found - np.array(shown.mean, np.float32)) / np.array(shown.std, np.float32)
    if shown.layout == "NCHW":
        found = found.transpose(0, 3, 1, 2)
    elif shown.layout == "NHW":
        found = found[..., 0]
    dtype = np.dtype(shown.dtype)
    return np.ascontiguousarray(np.rint(found) if dtype.kind in "iu" else found, dtype)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """float32 [n, height, width, channels] resized bilinearly to a square, as tf.image.resize does it: pixels' centres
    are at halves, and nothing is smoothed before."""
    for axis in (1, 2):
        if (length := images.shape[axis]) != size:
            place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(length / size) - np.float32(0.5)
            low = np.floor(place)
            part = (place - low).reshape([-1 if each == axis else 1 for each in range(4)])
            first, second = (
                np.take(images, np.clip(low + more, 0, length - 1).astype(int), axis=axis) for more in (0, 1)
            )
            images = first + (second - first) * part
    return images


def _layout(shape: Sequence[int | None], channels: str | None) -> str | None:
    """Where channels are, of a shape that says so."""
    if len(shape) == 3:
        return "NHW"
    if len(shape) != 4:
        return "NHWC"  # which `resolved` then refuses
    counts = (1, 3) if channels is None else (_OF_CHANNELS[channels],)
    first, last = shape[1] in counts, shape[3] in counts
    return None if first == last else "NCHW" if first else "NHWC"


def _numbers_of(asked: Mapping, declared: Declared, channels: str) -> tuple[float, list[float], list[float]]:
    """scale, mean and std."""
    whole = np.dtype(declared.dtype).kind in "iu"
    scale = asked["scale"] or (1.0 if declared.scales or whole else _BYTE)
    if whole and scale != 1:
        raise InputError(f"its input is {declared.dtype}, pixels as they are. Leave out teacher.input.scale.")
    mean, std = (_of_channels(key, asked[key], channels) for key in ("mean", "std"))
    return float(scale), mean, std


def _of_channels(key: str, given: float | list[float], channels: str) -> list[float]:
    found = given if isinstance(given, list) else [given] * _OF_CHANNELS[channels]
    if len(found) != _OF_CHANNELS[channels]:
        raise InputError(
            f"teacher.input.{key} has {len(found)} numbers, and its images are {channels}. Give one, or one for each "
            "channel."
        )
    return found


def _channels(images: np.ndarray, wanted: str) -> np.ndarray:
    if wanted == "grey":
        return images if images.shape[3] == 1 else (images @ _GREY)[..., np.newaxis]
    if images.shape[3] == 1:
        return np.repeat(images, 3, axis=3)
    return images[..., ::-1] if wanted == "bgr" else images


def _shown(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if each is None else str(each) for each in shape)}]"


def _numbers(given: Sequence[float]) -> str:
    return f"{given[0]:g}" if len(set(given)) == 1 else f"[{', '.join(f'{each:g}' for each in given)}]"
