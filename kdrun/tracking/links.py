"""outputs/tensorboard: a link to each run's events, under a name that says which run it is. TensorBoard shows the name.

The events themselves are in the run directory. Links are relative, so that the outputs may be moved as a whole.
"""

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kdrun.tracking.tracker import Run

EVENTS = "tensorboard"  # in a run directory the events, in the outputs folder the links to them
_LONGEST = 100  # characters of a name
_NOT_SHOWN = re.compile(r"[^\w.,+= -]+")


def name(run: Run) -> str:
    """What tells a training run from others: stage, model, T, alpha, seed; of a control, what it is."""
    shown = run.hyperparameters
    words = [run.title, str(shown.get("model", ""))]
    if "temperature" in shown:
        shuffle = run.config["teacher"]["shuffle"]
        words += [shown["objective"]] * (shown["objective"] != "kd") + [f"shuffle={shuffle}"] * (shuffle != "none")
        words += [f"T={shown['temperature']:g}", f"alpha={shown['alpha']:g}"]
    words += [f"seed={shown['seed']}"] if "seed" in shown else []
    return " ".join(filter(None, words))


def add(outputs: str, run_dir: Path, name: str) -> None:
    """Link a run's events, unless they are linked. A name that is taken gets the run directory's after it.

    Where there can be no links, or the run is not below the outputs folder, none is made: the events are there anyway.
    """
    events, folder = (run_dir / EVENTS).resolve(), Path(outputs).resolve() / EVENTS
    if not events.is_relative_to(folder.parent):
        return
    target = os.path.relpath(events, folder)
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        for each in _names(name, run_dir.name):
            link = folder / each
            if link.is_symlink() and not link.exists():  # of a run that is gone
                link.unlink(missing_ok=True)
            try:
                link.symlink_to(target)
            except FileExistsError:
                if link.resolve() != events:
                    continue
            return


def _names(name: str, further: str) -> Iterator[str]:
    """A name, and what it may be instead where it is another run's already."""
    shown = _NOT_SHOWN.sub("_", name)[:_LONGEST]
    yield shown
    longer = f"{shown}, {_NOT_SHOWN.sub('_', further)[:_LONGEST]}"
    yield longer
    yield from (f"{longer} {number}" for number in itertools.count(2))
