"""Cache of a teacher's outputs on disk: asked once, read by every later epoch, run and sweep job.

An entry is a folder named by the sha256 of everything that the logits depend on: manifest.json, and one .npy of
float32 logits for each split, in the split's order, read through memory maps. No TensorFlow in here.
"""

import json
import logging
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from kdrun.data import augmentation, mixing
from kdrun.errors import InputError, KdrunError
from kdrun.runtime import locks
from kdrun.storage import arrays, files, manifest

log = logging.getLogger(__name__)

FORMAT = 3  # raise when an entry would be written otherwise
_NAME = re.compile(r"[0-9a-f]{32}(\.partial|\.damaged(-\d+)?)?")  # what is ours in a cache folder, locks aside

Shapes = Mapping[str, tuple[int, ...]]
Ask = Callable[[str], Iterator[np.ndarray]]


def wanted(config: Mapping) -> bool:
    """Whether the configured distil run reads its teacher's logits from here; see conf/config.yaml."""
    asked, shown = config["teacher"]["cache"], augmentation.of(config["data"])
    few = (shown.view_count == 1 or (shown.views is not None and shown.is_drawn)) and not mixing.is_on(
        config["distill"]
    )
    return asked == "on" or (asked == "auto" and few)


def key(cache_key: Mapping) -> str:
    """sha256 of everything that an entry's logits depend on, as plain values."""
    return manifest.digest(cache_key)


def size(shapes: Shapes) -> int:
    """Bytes of float32 logits of these shapes."""
    return sum(4 * math.prod(shape) for shape in shapes.values())


def obtain(folder: Path, cache_key: Mapping, shapes: Shapes, ask: Ask) -> dict[str, np.ndarray]:
    """The entry's logits by split, as read-only memory maps; computed first where there is no such entry.

    `shapes` gives each split's shape, and `ask(split)` its logits in order, in blocks float32 [some, classes]. Two
    processes that want one entry compute it once. A damaged entry is set aside under another name and computed again.
    Raises InputError for logits that are not finite numbers, and OSError where the folder cannot be written or is
    full; no half entry stays.
    """
    entry = folder / key(cache_key)[:32]
    found, problem = _read(entry, cache_key, shapes)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = f"teacher cache: another kdrun is filling {entry}; waiting for it"
        with locks.held(FileLock(_lock_path(entry)), waiting):
            found, problem = _read(entry, cache_key, shapes)
            if problem:
                aside = manifest.set_aside(entry)
                log.warning("teacher cache: %s: %s. Set aside as %s; asking the teacher again", entry, problem, aside)
            if found is None:
                _fill(entry, cache_key, shapes, ask)
                found, problem = _read(entry, cache_key, shapes)
                if found is None:
                    raise KdrunError(f"{entry}: {problem}, just after it was written. Is the disk failing?")
                return found
    log.info("teacher cache: the teacher's logits are in %s (%s)", entry, files.readable(size(shapes)))
    return found


def is_there(folder: Path, cache_key: Mapping) -> bool:
    """Whether there is such an entry, good or not."""
    return (folder / key(cache_key)[:32]).exists()


def is_good(folder: Path, cache_key: Mapping, shapes: Shapes) -> bool:
    """Whether there is an entry that `obtain` gives as it is."""
    return _read(folder / key(cache_key)[:32], cache_key, shapes)[0] is not None


def entries(folder: Path) -> list[tuple[Path, int]]:
    """What is named as kdrun names what it puts into a cache folder, with bytes: entries, entries set aside, and what a
    killed kdrun left. Somebody else's may be among them: a link, a file."""
    found = [path for path in folder.glob("*") if _NAME.fullmatch(path.name)]
    return [(path, _size_of(path)) for path in sorted(found)]


def _size_of(entry: Path) -> int:
    return 0 if foreign(entry) else sum(path.lstat().st_size for path in entry.iterdir())


def foreign(entry: Path) -> str | None:
    """Why one of `entries` is not the cache's, whatever it is named; None for a folder."""
    return "it is a link, or no folder: not the cache's" if entry.is_symlink() or not entry.is_dir() else None


def remove(entry: Path, splits: Sequence[str] = ("train", "validation", "test")) -> str | None:
    """Remove one of `entries`; None, or why it stays: it is being filled, or not all of it is the cache's.

    Nothing is followed, and nothing removed with what is in it.
    """
    if why := foreign(entry):
        return why
    try:
        with FileLock(_lock_path(entry), timeout=0):
            ours = re.compile(rf"({'|'.join(splits)})\.npy|(\.[0-9a-f]+\.)?manifest\.json")  # half written, too
            held = sorted(entry.iterdir())
            if odd := [path for path in held if not (ours.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode))]:
                return f"it holds {odd[0].name!a}, which is not the cache's"
            for path in held:
                path.unlink()
            entry.rmdir()
    except Timeout:
        return "it is being filled by another kdrun"
    except OSError as error:
        return f"it cannot be removed ({error.strerror})"
    return None


def _lock_path(entry: Path) -> Path:
    return entry.with_name(f"{entry.name[:32]}.lock")


def _read(entry: Path, cache_key: Mapping, shapes: Shapes) -> tuple[dict[str, np.ndarray] | None, str | None]:
    """The entry's logits, or None and what is wrong with it; (None, None) where there is none."""
    if not entry.exists():
        return None, None
    try:
        if manifest.opened(entry)["depends"] != json.loads(json.dumps(cache_key)):
            return None, "it holds another teacher's logits"
        logits = {}
        for split, shape in shapes.items():
            path = entry / f"{split}.npy"
            logits[split] = arrays.mapped(path)
            if logits[split].shape != tuple(shape) or logits[split].dtype != np.float32:
                return None, f"{path.name} is {logits[split].dtype} {list(logits[split].shape)}"
    except manifest.Damaged as error:
        return None, str(error)
    except arrays.UNREADABLE as error:
        return None, f"it cannot be read ({' '.join(str(error).split())})"
    return logits, None


def _fill(entry: Path, cache_key: Mapping, shapes: Shapes, ask: Ask) -> None:
    partial = entry.with_name(f"{entry.name}.partial")
    if partial.exists():  # of a kdrun that was killed: nobody else writes it while we hold the lock
        shutil.rmtree(partial)
    log.info("teacher cache: asking the teacher, %s into %s", files.readable(size(shapes)), entry)
    started = time.perf_counter()
    with manifest.made(entry, partial) as facts:
        for split, shape in shapes.items():
            _write(partial / f"{split}.npy", shape, ask(split))
        facts |= {"depends": cache_key, "seconds": round(time.perf_counter() - started, 3)}
    log.info("teacher cache: filled %s in %.1f s", entry, facts["seconds"])


def _write(path: Path, shape: tuple[int, ...], blocks: Iterator[np.ndarray]) -> None:
    """A .npy file of that shape from blocks of rows. Takes its room on disk first, so that a full one shows at once."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        end = file.tell() + size({path.stem: shape})
        os.posix_fallocate(file.fileno(), 0, end)
        for block in blocks:
            if not np.isfinite(block).all():
                raise InputError("The teacher's answers are not all finite numbers. Give another teacher.run.")
            file.write(block.astype("<f4", copy=False).tobytes())
        file.flush()
        if (given := file.tell()) != end:
            raise RuntimeError(f"The teacher gave {given} bytes for a file of {end}")
        os.fsync(file.fileno())
