"""Training states on disk: all that the rest of a training run depends on, so that it can go on with the same bits.

A state is a folder checkpoints/state-<step>/ of a run: a tf.train.Checkpoint of the network's variables, the best
weights so far, and a sealed manifest with where training is. The last two are kept.
"""

import logging
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from kdrun.errors import KdrunError
from kdrun.storage import files, manifest
from kdrun.training.network import Network

log = logging.getLogger(__name__)

_KEPT = 2
_NAME = re.compile(r"state-(\d+)(-unvalidated)?")
_BESIDE = 1 << 16  # bytes that the variables' names, shapes and sums take beside their values, at most
_VARIABLES, _BEST = "variables", "best.weights.h5"


def save(folder: Path, step: int, validated: bool, network: Network, best: Path | None, progress: Mapping) -> Path:
    """Write a state below `folder` and let go of all but the last two; all of it is on disk afterwards.

    `progress` are plain values, and `best` the file of the best weights so far. A state after an epoch's last step and
    before its validation has a name of its own.
    """
    state = folder / f"state-{step}{'' if validated else '-unvalidated'}"
    if state.exists():  # saved before this process took it up: the same bits
        return state
    written = files.temporary_name(state)
    with manifest.made(state, written) as facts:
        files.reserve(written, size_of(network.state) + _BESIDE)
        _checkpoint(network).write(str(written / _VARIABLES))
        if best:
            shutil.copyfile(best, written / _BEST)
        facts |= progress
    try:
        manifest.opened(state)  # nothing older goes before this one is known to be good
    except manifest.Damaged as error:
        raise KdrunError(f"{state}: {error}, just after it was written. Is the disk failing?") from error
    for older in _states(folder)[_KEPT:]:
        shutil.rmtree(older)
    return state


class Found(NamedTuple):
    """A state that is good: its folder, the values saved with it, and the file of the best weights, where there is."""

    folder: Path
    values: dict
    best: Path | None


def newest(folder: Path, wrong: Callable[[Mapping, bool], str | None]) -> Found | None:
    """The newest good state below `folder`; None where no state was ever saved.

    `wrong(values, whether there are best weights)` says what of a state's values cannot be. A damaged state is set
    aside under another name, with a warning, and the one before it is taken. Raises KdrunError when there were states
    and none is good.
    """
    for found in _states(folder):
        try:
            values, best = manifest.opened(found), found / _BEST
            if odd := [path.name for path in found.iterdir() if not path.is_file()]:  # TensorFlow would wait for a FIFO
                raise manifest.Damaged(f"{odd[0]!a} in it is no file")
            if problem := wrong(values, best.exists()):
                raise manifest.Damaged(problem)
        except manifest.Damaged as error:
            log.warning("%s is damaged: %s. Set aside as %s", found, error, manifest.set_aside(found))
            continue
        return Found(found, values, best if best.exists() else None)
    if any(folder.glob("state-*")):
        raise KdrunError(
            f"{folder}: every saved training state is damaged, so there is nothing to go on from. They are kept as "
            "state-*.damaged. Start a new run."
        )
    return None


def read(found: Found, network: Network) -> None:
    """Set a network to a state. Raises KdrunError where its variables are not those of the network."""
    try:
        _checkpoint(network).read(str(found.folder / _VARIABLES)).assert_consumed()
    except Exception as error:  # whatever TensorFlow raises for what is not its own
        said = " ".join(str(error).split())
        raise KdrunError(
            f"{found.folder} is damaged, or of another network ({said[:200]}). Move it away to go on from the state "
            "before it, or start a new run."
        ) from error
    network.optimizer.reload()


def size(network: Network) -> int:
    """Bytes that a state takes, about."""
    return size_of([*network.state, *network.model.variables])


def size_of(variables: Iterable[tf.Variable]) -> int:
    """Bytes of variables."""
    return sum(variable.shape.num_elements() * variable.dtype.size for variable in variables)


def _checkpoint(network: Network) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(state=network.state)


def _states(folder: Path) -> list[Path]:
    """Newest first; an epoch's end is newer after its validation than before."""
    found = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("state-*") if path.is_dir()]
    named = [(int(match[1]), match[2] is None, path) for path, match in found if match]
    return [path for *_, path in sorted(named, reverse=True)]
