"""Run directories: made, checked, found by where they are. No TensorFlow in here."""

import glob
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from kdrun.errors import InputError
from kdrun.runtime import signals
from kdrun.storage import files

_DEPTH = 4  # folders below a given one in which runs are looked for


def create(outputs: str, stage: str) -> Path:
    """A new, empty run directory outputs/<stage>/<timestamp>; a collision gets a suffix."""
    base = Path(outputs) / stage / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1, 1000):
        run_dir = base if attempt == 1 else base.with_name(f"{base.name}_{attempt}")
        if _made(run_dir):
            return run_dir
    raise InputError(f"{base}: a thousand runs were started in this second. Wait a moment.")


def found(places: str | Sequence[str]) -> list[Path]:
    """The run directories in `places`: run directories, folders of them, or glob patterns; one, or a list.

    Raises InputError where there is none at all.
    """
    places = [places] if isinstance(places, str) else places
    run_dirs = list(dict.fromkeys(run_dir for place in places for run_dir in _below(place)))
    if not run_dirs:
        raise InputError(f"runs: nothing of kdrun's is in {', '.join(places)}. Give run directories.")
    return run_dirs


def _below(place: str) -> Iterator[Path]:
    for match in sorted(glob.glob(place)) or [place]:
        top = Path(match)
        for folder, folders, names in os.walk(top):
            if "run.json" in names:
                yield Path(folder)
                folders.clear()  # what is in a run directory is its own
            elif len(Path(folder).relative_to(top).parts) >= _DEPTH:
                folders.clear()
            folders.sort()


def check_unused(run_dir: Path) -> None:
    """Raises InputError when the directory holds a run: a run is never overwritten."""
    if (run_dir / "run.json").exists():
        raise InputError(f"{run_dir} holds a run already, which is never overwritten. Choose another directory.")


def check_below(key: str, folder: Path, outputs: str) -> None:
    """Raises InputError when a folder that the user chose with `key` is not below the outputs folder."""
    if not folder.resolve().is_relative_to(Path(outputs).resolve()):
        raise InputError(f"{key}: {folder} is not below outputs={outputs}; runs are written nowhere else. Set outputs.")


def check_writable(key: str, folder: Path) -> None:
    """Try whether a folder can be made in `folder`, the value of `key`, and leave everything as it was.

    Raises InputError where it cannot.
    """
    probe = folder / uuid.uuid4().hex
    made = []
    with signals.undisturbed():
        try:
            made = [parent for parent in (probe, *probe.parents) if not parent.is_dir()]
            _made(probe)
        except OSError as error:
            raise files.no_room(error, folder) or InputError(
                f"{key}: {folder} cannot be written to ({error.strerror}: {error.filename}). "
                f"Set {key} to a folder of yours."
            ) from error
        finally:
            for parent in made:
                with suppress(OSError):  # somebody else's run has begun in there meanwhile
                    parent.rmdir()


def _made(folder: Path) -> bool:
    """Make a folder and its parents; False where it was there. Others may be making and removing the parents, too."""
    for _ in range(100):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            return False
        except FileNotFoundError:  # a parent was removed just now
            continue
        return True
    folder.mkdir(parents=True)
    return True
