"""A manifest: the sha256 sums of a folder's files, sealed by a sum of its own.

It is written last, so a folder with a good one is whole, whenever the process that wrote it was killed. No TensorFlow
in here.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kdrun.storage import files, forms

NAME = "manifest.json"
_SEAL = "sealed_sha256"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Damaged(Exception):
    """A folder is not what its manifest says, or has none; the text says in what."""


def seal(folder: Path, facts: Mapping) -> None:
    """Write the manifest of a folder's files, with `facts`, plain values; all of it is on disk afterwards."""
    sums = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sums[path.name] = files.sha256(path)
    files.write_json(folder / NAME, sealed({**facts, "files": sums}))
    files.flush(folder)


@contextmanager
def made(folder: Path, partial: Path) -> Iterator[dict]:
    """A new folder, whole or not there: what is written below `partial` while inside gets a manifest with the facts
    that are put into the dictionary, and is then renamed. Of what is left by an error nothing stays."""
    facts: dict = {}
    try:
        partial.mkdir()
        yield facts
        seal(partial, facts)
        partial.rename(folder)
        files.flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def opened(folder: Path) -> dict:
    """The facts that were sealed with a folder, of which every file is byte for byte what it was. Raises Damaged."""
    try:
        manifest = unsealed(json.loads(files.read(folder / NAME)))
        sums = manifest.pop("files")
        if wrong := next((name for name in sums if not forms.plain_name(name)), None):
            raise Damaged(f"{NAME} names {wrong!a}, which is no file in it")
        for name, expected in sums.items():
            if files.sha256(folder / name) != expected:
                raise Damaged(f"{name} is not what {NAME} says")
    except _UNREADABLE as error:
        raise Damaged(f"it cannot be read ({' '.join(str(error).split())})") from error
    return manifest


def sealed(values: Mapping) -> dict:
    """Plain values with a sum over them, so that `unsealed` notices any change."""
    values = {key: value for key, value in values.items() if key != _SEAL}
    return {**values, _SEAL: digest(values)}


def unsealed(values: Mapping) -> dict:
    """What was `sealed`. Raises Damaged where it is something else now."""
    if not isinstance(values, dict) or _SEAL not in values:
        raise Damaged("it has no checksum of its own")
    unsealed = {key: value for key, value in values.items() if key != _SEAL}
    if values[_SEAL] != digest(unsealed):
        raise Damaged("it was changed: its own checksum says so")
    return unsealed


def set_aside(path: Path) -> Path:
    """Give a damaged file or folder another name, so that nobody takes it for good and somebody can look at it."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(aside)
    return aside


def digest(value: Mapping) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
