"""Pictures decoded once, on disk: uint8 arrays of any size, sealed, found again by what the files hold.

An entry is a folder named by the sha256 of its pictures' files and of how they were decoded: pixels.npy
[n, height, width, channels], digests.npy [n, 32], the sha256 of each picture's pixels, and a manifest. Beside the
entries, a small file for each state of a listing (sizes and times of its files) says which entry it is, so that nothing
is read again while nothing changes. No TensorFlow in here.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict, Unpack

import numpy as np
from filelock import FileLock

from kdrun.config import rules
from kdrun.data import pictures
from kdrun.data.listing import SPLITS, Listing, some
from kdrun.data.rows import Rows
from kdrun.errors import InputError, KdrunError
from kdrun.runtime import locks, parallel, signals
from kdrun.storage import arrays, files, forms, manifest

log = logging.getLogger(__name__)

_FORMAT = 1  # raise when an entry would be written otherwise
_AT_ONCE = 1 << 26  # bytes of pixels that are decoded before they are written
_TOGETHER = 128  # pictures that are decoded at most before a signal is looked for
_SMALL = 1 << 16  # bytes of pixels of a picture that one thread decodes sooner: most of its time is Python's own
_DIGEST = 32  # bytes
_DAMAGED: tuple[type[Exception], ...] = (manifest.Damaged, *arrays.UNREADABLE)


class Keys(TypedDict):
    """What sources of pictures have in common: how they are decoded, and where they are kept; see conf/data."""

    channels: Annotated[int | str, rules.one_of("auto", 1, 3)]
    resize: Annotated[str, rules.one_of(*pictures.RESIZES)]
    decode_size: rules.Count
    skip_broken: bool
    store: rules.Path


class Decoding(NamedTuple):
    """How pictures become pixels: 1 or 3 channels, and the square that they are made, None where they stay."""

    channels: int
    size: int | None
    resize: str


class Stored(NamedTuple):
    """Decoded pictures: pixels uint8 [n, height, width, channels], their sums uint8 [n, 32], both memory maps, and the
    places in the listing of those that could not be read, with why."""

    pixels: np.ndarray
    digests: np.ndarray
    broken: dict[int, str]


class StoredSource:
    """A data source of listed pictures, which are decoded when it is made, unless they were before."""

    def __init__(self, listing: Listing, **keys: Unpack[Keys]):
        self.path, self.class_names, self.num_classes = listing.path, listing.class_names, len(listing.class_names)
        self.left_out = {why: count for why, count in listing.left_out.items() if count}
        stored = obtain(Path(keys["store"]), listing, keys["channels"], keys["decode_size"], keys["resize"])
        if stored.broken:
            complain(listing, stored.broken, keys["skip_broken"])
            self.left_out["broken"] = len(stored.broken)
        kept = np.setdiff1d(np.arange(len(listing.names)), list(stored.broken))
        splits = np.array([SPLITS.index(split) for split in listing.splits])[kept]
        self._labels, self._pixels, self._digests = listing.labels[kept], stored.pixels, stored.digests
        self._places = {split: np.flatnonzero(splits == number) for number, split in enumerate(SPLITS)}
        self._kept_names = np.array(listing.names, object)[kept]
        self.names = tuple(f"{kind}_{split}" for split in SPLITS if len(self._places[split]) for kind in "xy")
        self.sha256 = hashlib.sha256(stored.digests.tobytes() + self._labels.tobytes()).hexdigest()

    def shape(self, name: str) -> tuple[int, ...]:
        places = self._places[name[2:]]
        return (len(places), *self._pixels.shape[1:]) if name.startswith("x_") else (len(places),)

    def read(self, name: str) -> np.ndarray | Rows:
        places = self._places[name[2:]]
        return Rows(self._pixels, places) if name.startswith("x_") else self._labels[places]

    def digests(self, split: str) -> np.ndarray:
        """The sha256 of each picture's pixels, uint8 [n, 32]."""
        return self._digests[self._places[split]]

    def picture_names(self, split: str) -> Sequence[str]:
        """What a split's pictures are called."""
        return self._kept_names[self._places[split]]


def complain(listing: Listing, broken: Mapping[int, str], skip: bool) -> None:
    """Raises InputError for pictures that cannot be read, all of them in one; with `skip` says so instead."""
    said = [f"{listing.names[place]!a} ({why})" for place, why in broken.items()]
    count = f"{len(said):,} of {len(listing.names):,} pictures cannot be read"
    if skip and len(said) < len(listing.names):
        log.warning("data: %s: %s, and are left out: %s", listing.path, count, some(said))
        return
    raise InputError(
        f"{listing.path}: {count}: {'; '.join(said[:20])}{f' and {len(said) - 20:,} more' if len(said) > 20 else ''}. "
        "Mend or remove them, or leave them out with data.skip_broken=true."
    )


def obtain(
    folder: Path, listing: Listing, channels: int | str, size: int, resize: str, exactly: bool = False
) -> Stored:
    """The listed pictures as pixels; decoded first where that was not done before.

    `channels` may be auto: colour where any picture has it. Pictures stay as large as they are where all are squares of
    one size, not larger than `size` a side, unless that is meant `exactly`; else each is made a square of `size`, by
    `resize`. Two processes decode once. Raises InputError for a file that changes meanwhile, KdrunError where the
    folder cannot be written or is full.
    """
    asked = {"format": _FORMAT, "pillow": pictures.PILLOW, "channels": channels, "size": size, "resize": resize}
    asked |= {"exactly": True} if exactly else {}
    state = folder / f"{manifest.digest({**asked, 'listing': listing.stamp})[:32]}.json"
    try:
        if (found := _known(folder, state)) is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        # a signal is looked for between pictures: raised anywhere, it might leave a thread waiting for another
        waiting = f"data: another kdrun is decoding {listing.path}; waiting for it"
        with signals.on_signals(), locks.held(FileLock(folder / f"{state.stem}.lock"), waiting):
            if (found := _known(folder, state)) is not None:
                return found
            seen = _look_at(listing)
            decoding = _decoding(listing, seen, channels, size, resize, exactly)
            sums = [each[0] for each in seen]
            key = {"format": _FORMAT, "pillow": pictures.PILLOW, "decoding": list(decoding), "files": sums}
            entry = folder / manifest.digest(key)[:32]
            with locks.held(FileLock(entry.with_suffix(".lock")), waiting):
                if (found := _opened(entry)) is None:
                    _fill(entry, listing, seen, decoding)
                    found = _opened(entry)
            files.write_json(state, manifest.sealed({"entry": entry.name}))
    except OSError as error:
        raise files.no_room(error, folder) or KdrunError(
            f"{folder} cannot keep the decoded pictures ({error.strerror}). Set data.store to another folder."
        ) from error
    if found is None:
        raise KdrunError(f"{entry}: it is damaged, just after it was written. Is the disk failing?")
    return found


def _known(folder: Path, state: Path) -> Stored | None:
    """The entry of a state of a listing, if there is one."""
    try:
        name = manifest.unsealed(json.loads(files.read(state)))["entry"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, manifest.Damaged):
        log.warning("data: %s is damaged. Looking at the pictures again", state)
        return None
    return _opened(folder / name) if forms.plain_name(name) else None


def _opened(entry: Path) -> Stored | None:
    """An entry, every byte of it checked, or None; a damaged one is set aside."""
    if not entry.exists():
        return None
    try:
        facts = manifest.opened(entry)
        pixels, digests = arrays.mapped(entry / "pixels.npy"), arrays.mapped(entry / "digests.npy")
        if pixels.dtype != np.uint8 or digests.shape != (len(pixels), _DIGEST):
            raise ValueError("its arrays do not go together")
        return Stored(pixels, digests, {int(place): str(why) for place, why in facts["broken"]})
    except _DAMAGED as error:
        aside = manifest.set_aside(entry)
        log.warning("data: %s is damaged (%s). Set aside as %s; decoding again", entry, error, aside)
        return None


Seen = tuple[str, pictures.Look | str]  # a file's sha256, and what its header says, or why it cannot be read


def _look_at(listing: Listing) -> list[Seen]:
    def seen(place: int) -> Seen:
        try:
            content = listing.read(place)
        except OSError as error:
            return "", error.strerror or str(error)
        try:
            return hashlib.sha256(content).hexdigest(), pictures.look(content)
        except pictures.Unreadable as error:
            return hashlib.sha256(content).hexdigest(), str(error)

    count = len(listing.names)
    together = parallel.in_blocks(seen, range(count), _TOGETHER, "reading pictures", parallel.cores(), count)
    return [each for some_ in together for each in some_]


def _decoding(
    listing: Listing, seen: Sequence[Seen], channels: int | str, size: int, resize: str, exactly: bool
) -> Decoding:
    looks = [look for _, look in seen if not isinstance(look, str)]
    if not looks:
        complain(listing, {place: str(why) for place, (_, why) in enumerate(seen)}, skip=False)
    if channels == "auto":
        channels = 3 if any(look.has_colour for look in looks) else 1
    sides = {(look.width, look.height) for look in looks}
    width, height = next(iter(sides))
    stay = len(sides) == 1 and width == height <= size and (width == size or not exactly)
    return Decoding(int(channels), None if stay else size, "stretch" if stay else resize)


def _fill(entry: Path, listing: Listing, seen: Sequence[Seen], decoding: Decoding) -> None:
    """Decode into a new entry, written under another name."""
    partial, started = entry.with_suffix(".partial"), time.perf_counter()
    shutil.rmtree(partial, ignore_errors=True)  # of a kdrun that was killed: nobody else writes while we hold the lock
    log.info("data: decoding %s pictures of %s into %s", f"{len(seen):,}", listing.path, entry)
    with manifest.made(entry, partial) as facts:
        broken = _write(partial, listing, seen, decoding)
        facts |= {"decoding": list(decoding), "broken": [[place, why] for place, why in broken.items()]}
    log.info("data: decoded in %.1f s", time.perf_counter() - started)


def _write(partial: Path, listing: Listing, seen: Sequence[Seen], decoding: Decoding) -> dict[int, str]:
    """pixels.npy and digests.npy of what can be decoded; returns what cannot."""
    broken = {place: look for place, (_, look) in enumerate(seen) if isinstance(look, str)}
    good = [place for place in range(len(seen)) if place not in broken]
    side = decoding.size or max(look.width for _, look in seen if not isinstance(look, str))
    shape, sums = (side, side, decoding.channels), []

    def decoded(place: int) -> np.ndarray | str:
        try:
            content = listing.read(place)
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() != seen[place][0]:
            raise InputError(f"{listing.path}: {listing.names[place]!a} was changed while it was read. Run it again.")
        try:
            pixels = pictures.decode(content, decoding.channels, decoding.size, decoding.resize)
        except pictures.Unreadable as error:
            return str(error)
        return pixels if pixels.shape == shape else f"{list(pixels.shape)} pixels, its header says {list(shape)}"

    with (partial / "pixels.npy").open("wb") as file:
        _header(file, (len(good), *shape))
        os.posix_fallocate(file.fileno(), 0, file.tell() + len(good) * side * side * decoding.channels)
        at_once = max(1, min(_TOGETHER, _AT_ONCE // (side * side * decoding.channels)))
        threads = 1 if side * side * decoding.channels < _SMALL else parallel.cores()
        blocks = parallel.in_blocks(decoded, good, at_once, "decoding pictures", threads, len(good))
        for places, block in zip(parallel.cut(good, at_once), blocks, strict=True):
            for place, pixels in zip(places, block, strict=True):
                if isinstance(pixels, str):
                    broken[place] = pixels
                else:
                    sums.append(hashlib.sha256(pixels).digest())
                    file.write(np.ascontiguousarray(pixels).data)
        file.truncate()
        _header(file, (len(sums), *shape))  # of as many as could be read: its length is the same
    np.save(partial / "digests.npy", np.frombuffer(b"".join(sums), np.uint8).reshape(-1, _DIGEST))
    return dict(sorted(broken.items()))


def _header(file: Any, shape: tuple[int, ...]) -> None:
    end = file.tell()
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    file.seek(max(end, file.tell()))
