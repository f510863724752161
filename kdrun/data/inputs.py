"""Images that a network is asked about: pictures in a folder, by a pattern or by name, or an array in a .npz file.

They are read some at a time, however many there are, and made what the network was trained on. No TensorFlow in here.
"""

import glob
import os
import select
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdrun.config.keys import MOST_PIXELS
from kdrun.data import pictures
from kdrun.data.folder import pictures_below
from kdrun.data.listing import LARGEST
from kdrun.data.store import Decoding
from kdrun.errors import InputError
from kdrun.runtime import parallel, progress, signals
from kdrun.storage import arrays, files

STANDARD_INPUT = "-"
_KINDS = ", ".join(suffix.lstrip(".") for suffix in pictures.SUFFIXES)
_ALLOWED = "Give a folder of pictures, a pattern ('*.png'), a picture, a .npz file, or - for names on standard input."
_NAMES = ("x", "images", "x_test")  # of the array in a .npz file; another name, where it is the only one
Size = tuple[int, int] | None  # height and width, the only ones that a network takes; None: any
_ADVICE = "It must hold one array of images, uint8, or more of which one is called x."


class Inputs(NamedTuple):
    """Images by what `read` knows them by, and how many there are, where that is known. `read(thing)` is its pixels,
    uint8 [height, width, channels], all of one shape, or raises pictures.Unreadable, by so many `threads` at a time;
    `called(thing)` is for people."""

    things: Iterable[Any]
    total: int | None
    shape: tuple[int, int, int]
    read: Callable[[Any], np.ndarray]
    called: Callable[[Any], str] = str
    threads: int = 1


class Block(NamedTuple):
    """Some of them in their order: their names, and uint8 [k, height, width, channels] of those that could be read;
    place -> why of the others."""

    names: list[str]
    images: np.ndarray
    broken: dict[int, str]


def decoding_of(record: Mapping) -> Decoding:
    """How a picture becomes pixels for the network of a run: as large as the images that it was trained on were before
    the network's own resizing, made so as the data source did it, in as many channels.

    Where these were no squares, or the run is of before their size was recorded: of `data.decode_size`, or as large as
    the network sees images.
    """
    data, channels = record["config"]["data"], record["image_shape"][2]
    raw = record.get("raw_shape", ())
    side = raw[0] if len(raw) == 3 and raw[0] == raw[1] else data.get("decode_size", data["image_size"])
    if not isinstance(side, int) or not 1 <= side <= MOST_PIXELS:
        side = data["image_size"]
    resize = data.get("resize")
    return Decoding(channels, side, resize if resize in pictures.RESIZES else "stretch")


def check(given: str, decoding: Decoding, size: Size = None) -> None:
    """Raises InputError where `inputs` names nothing that can be read, or nothing for a network that takes images of
    that `size` alone; names on standard input are not looked at."""
    if _is_npz(given):
        _array(Path(given), decoding.channels, size)
        return
    if size is not None and size != (decoding.size, decoding.size):
        raise InputError(
            f"inputs: {given}: pictures are made squares, and this network takes images of {_sides(size)} pixels "
            "alone. Give a .npz file of such images."
        )
    if given == STANDARD_INPUT:
        return
    if next(_files(given), None) is None:
        raise InputError(f"inputs: {given} holds no pictures ({_KINDS}). {_ALLOWED}")


def opened(given: str, decoding: Decoding, size: Size = None) -> Inputs:
    """The images that `inputs` names. Raises InputError where there are none, or they are not of that size, if any."""
    if _is_npz(given):
        images = _array(Path(given), decoding.channels, size)()
        return Inputs(range(len(images)), len(images), images.shape[1:], images.__getitem__, lambda n: f"{given}[{n}]")
    if given != STANDARD_INPUT:
        return of_files(sorted(_files(given)), decoding)
    if progress.is_elsewhere():
        raise InputError("inputs=-: standard input is the command's, and not for a sweep's job. Give a folder.")
    names = _names_on_standard_input()
    if (first := next(names, None)) is None:
        raise InputError("inputs=-: standard input names no pictures. Give it the names of files, a line each.")
    return of_files(chain([first], names), decoding)


def of_files(paths: Iterable[str], decoding: Decoding) -> Inputs:
    """Pictures by the names of their files."""
    assert decoding.size is not None  # a network's images are of one size
    shape = (decoding.size, decoding.size, decoding.channels)

    def read(path: str) -> np.ndarray:
        try:
            content = files.read(path, LARGEST)
        except (OSError, ValueError) as error:  # a name with a zero byte in it, too
            raise pictures.Unreadable(getattr(error, "strerror", None) or str(error)) from error
        return pictures.decode(content, *decoding)

    total = len(paths) if isinstance(paths, Sequence) else None
    return Inputs(paths, total, shape, read, threads=parallel.cores())


def blocks(inputs: Inputs, at_once: int) -> Iterator[Block]:
    """The images, at most `at_once` of them in memory. A bar on the terminal shows how far they are, with all that is
    done about a block before the next one is asked for."""

    def read(thing: Any) -> tuple[str, np.ndarray | str]:
        name = inputs.called(thing)
        try:
            return name, inputs.read(thing)
        except pictures.Unreadable as error:
            return name, str(error)

    for some in parallel.in_blocks(read, inputs.things, at_once, "predicting", inputs.threads, inputs.total):
        good = [pixels for _, pixels in some if isinstance(pixels, np.ndarray)]
        images = np.stack(good) if good else np.zeros((0, *inputs.shape), np.uint8)
        broken = {place: why for place, (_, why) in enumerate(some) if isinstance(why, str)}
        yield Block([name for name, _ in some], images, broken)


def _is_npz(given: str) -> bool:
    return given.lower().endswith(".npz") and os.path.isfile(given)


def _files(given: str) -> Iterator[str]:
    """The names of the pictures in a folder and below it, of the files that a pattern is of, or of one. Raises
    InputError where nothing is there."""
    if os.path.isdir(given):
        yield from (os.path.join(given, name) for name in pictures_below(Path(given), Counter()))
        return
    found = [given] if os.path.lexists(given) else glob.glob(given, recursive=True)
    if not found:
        raise InputError(f"inputs: there is no {given}. {_ALLOWED}")
    yield from (name for name in found if not os.path.isdir(name))


def _array(path: Path, channels: int, size: Size) -> Callable[[], np.ndarray]:
    """What reads the array of images in a .npz file, uint8 [n, height, width, channels]. Raises InputError where there
    is none, or not for a network that sees so many channels, or that size alone."""
    held = arrays.npz_names(path)
    called = next(iter(held)) if len(held) == 1 else next((name for name in _NAMES if name in held), _NAMES[0])
    file = arrays.Npz(path, [called], _ADVICE, "inputs: ")
    header = file.headers[called]
    shape = (*header.shape, 1) if len(header.shape) == 3 else header.shape
    if header.dtype != np.uint8 or len(shape) != 4 or shape[3] != channels or 0 in shape:
        raise InputError(
            f"inputs: {path}: {called} is {header.dtype} {list(header.shape)}; it must be uint8 "
            f"[n, height, width, {channels}], not empty: the network sees images of {channels} channel(s)."
        )
    if size is not None and shape[1:3] != size:
        raise InputError(
            f"inputs: {path}: {called} holds images of {_sides(shape[1:3])} pixels, and this network takes those of "
            f"{_sides(size)} alone. Make them so; a run, or a SavedModel, takes any size."
        )
    return lambda: file.read()[called].reshape(shape)


def _sides(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _names_on_standard_input() -> Iterator[str]:
    """What standard input names, a line each, as it comes; empty lines are none. A signal ends the wait: Stopped."""
    if sys.stdin is None:  # closed
        return
    source, unread = sys.stdin.fileno(), b""
    while True:
        while not select.select([source], [], [], 0.2)[0]:
            signals.check()
        block = os.read(source, 1 << 16)
        *whole, unread = (unread + block).split(b"\n") if block else [unread, b""]
        yield from (os.fsdecode(name) for line in whole if (name := line.rstrip(b"\r")))
        if not block:
            return
