"""Trackers of a training run: what each of them is told, and the container that tells all of them.

A tracker is chosen by the config group `tracker`. One of the user's own takes a few lines:

    @register("tracker", "mine")
    class Mine(Tracker):
        def epoch(self, epoch):
            print(epoch.number, epoch.validation["accuracy"])
"""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kdrun.errors import InputError, KdrunError
from kdrun.registry import get
from kdrun.runtime import progress
from kdrun.storage.forms import problem
from kdrun.tracking.clock import Clock

if TYPE_CHECKING:
    import tf_keras


@dataclass(frozen=True)
class Run:
    """Facts of a training run, known before its first step."""

    run_dir: Path
    title: str  #: its stage
    started: datetime  #: with its offset from UTC
    epochs: int  #: at most: patience may end it before
    steps_per_epoch: int
    batch_size: int
    config: Mapping  #: all of it, as plain values
    hyperparameters: Mapping  #: the few that tell runs apart: numbers and texts by name
    step: int = 0  #: steps done before; above 0 in a run that goes on
    epoch: int = 0  #: epochs validated before
    devices: int = 1  #: that each batch is spread over, of all machines

    def speed(self, images_per_second: float) -> str:
        """Images/s in words: of all devices, and of each where there are several."""
        of_each = f" ({images_per_second / self.devices:,.0f} on each of {self.devices} devices)"
        return f"{images_per_second:,.0f} images/s" + (of_each if self.devices > 1 else "")


@dataclass(frozen=True)
class Steps:
    """One call of the compiled steps: about a quarter of a second."""

    step: int  #: steps done
    count: int  #: of which in this call
    latest: Mapping[str, float]  #: the last one's metrics: loss, cross_entropy, accuracy, distillation_loss, objectives
    images_per_second: float  #: in steady state


@dataclass(frozen=True)
class Epoch:
    """An epoch and its validation."""

    number: int  #: from 1
    step: int  #: steps done
    train: Mapping[str, float]  #: means of the steps' metrics, the learning rate and what else changes over training
    validation: Mapping[str, float]  #: see metrics.evaluate
    best: int  #: the epoch with the best weights so far
    model: "tf_keras.Model"  #: as it is now; its weights are its variables
    images_per_second: float


@dataclass(frozen=True)
class End:
    """The test set's verdict, at the very end."""

    step: int  #: steps done
    test: Mapping[str, Mapping[str, float]]  #: metrics of the `best` weights and of the `last`
    pictures: Mapping[str, np.ndarray]  #: uint8 [height, width, 3]


class Tracker:
    """A tracker that does nothing: the base of all others, which implement what they need.

    What a method raises ends the run, but for an OSError of `close`.
    """

    STATE: ClassVar[Any] = None  #: the form (see storage.forms) of what `state` gives; None: no state
    files: tuple[str, ...] = ()  #: written below the run directory, for the record to have the sums of at the end

    def restore(self, values: Any) -> None:
        """Take what `state` gave when the training state was saved that a run goes on from; before `start`."""

    def start(self, run: Run) -> None:
        """Begin; with `run.step` above 0, go on: what was written after that step comes again."""

    def steps(self, steps: Steps) -> None:
        """Note some steps."""

    def epoch(self, epoch: Epoch) -> None:
        """Note an epoch."""

    def end(self, end: End) -> None:
        """Note what training came to. Not called in a run that is interrupted or fails."""

    def report(self, run: Run, written: Mapping[str, Path]) -> None:
        """Note a comparison, whose run trains nothing: its page and tables, by name. Nothing else is called."""

    def state(self) -> Any:
        """What `restore` needs in another process, as JSON has it and in the form STATE; None for nothing."""
        return None

    def wrong(self, values: Any, step: int, epochs: int) -> str | None:
        """Say in one line what of a saved state, perhaps somebody else's, cannot be after so many steps and epochs."""
        return problem(values, type(self).STATE)  # a form may be a function, which is no method

    def close(self) -> None:
        """Let go of files and connections, however the run ended; also where `start` was never called."""


class Trackers:
    """All trackers of a run, and its clock. A context manager: leaving it closes them."""

    def __init__(self, run: Run, trackers: Mapping[str, Tracker]):
        self._run, self._trackers = run, dict(trackers)
        self._clock = Clock(run.batch_size, run.steps_per_epoch)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *exception: object) -> None:
        with ExitStack() as closing:  # all of them, whatever one raises
            for tracker in reversed(self._trackers.values()):
                closing.callback(_closed, tracker)

    @property
    def files(self) -> list[str]:
        """The files of all trackers, as names below the run directory."""
        return [name for tracker in self._trackers.values() for name in tracker.files]

    def start(self, values: Mapping | None, step: int = 0, epochs: int = 0) -> None:
        """Begin, or go on after `step` with `epochs` done from a training state's `values`, which were checked."""
        if values:
            saved = _saved(values)
            self._clock.restore(saved["clock"])
            for name, tracker in self._trackers.items():
                if name in saved["trackers"]:
                    tracker.restore(saved["trackers"][name])
        run = replace(self._run, step=step, epoch=epochs)
        for tracker in self._trackers.values():
            tracker.start(run)

    def state(self) -> dict:
        """What `start` needs to go on from here in another process, as plain values.

        Raises KdrunError for a tracker whose state has no form.
        """
        states = {name: tracker.state() for name, tracker in self._trackers.items()}
        states = {name: values for name, values in states.items() if values is not None}
        for name in states:
            if type(self._trackers[name]).STATE is None:
                raise KdrunError(f"tracker {name} has a state and no form of it. Set STATE: see storage/forms.py.")
        return {"clock": self._clock.state(), "trackers": states}

    def wrong(self, values: Mapping, step: int, epochs: int) -> str | None:
        """Say what of a training state's values cannot be, in one line; a tracker that it does not name begins anew."""
        saved = _saved(values)
        if found := problem(saved, {"clock": Clock.STATE, "trackers": dict}):
            return found
        if found := self._clock.wrong(saved["clock"], step, epochs):
            return found
        for name, tracker in self._trackers.items():
            if name in saved["trackers"] and (found := tracker.wrong(saved["trackers"][name], step, epochs)):
                return f"in trackers.{name} {found}"
        return None

    def steps(self, latest: Mapping[str, float], count: int) -> None:
        """Note `count` more steps; `latest` are the last one's metrics by name."""
        self._clock.count(count)
        steps = Steps(self._clock.steps, count, latest, self._clock.images_per_second())
        run = self._run
        progress.tell(
            step=steps.step,
            steps=run.epochs * run.steps_per_epoch,
            epoch=steps.step // run.steps_per_epoch,
            epochs=run.epochs,
            accuracy=latest["accuracy"],
            images_per_second=steps.images_per_second,
        )
        for tracker in self._trackers.values():
            tracker.steps(steps)

    def pause_ended(self) -> None:
        """What happened since the last step was not training."""
        self._clock.pause_ended()

    def epoch(self, number: int, train: Mapping, validation: Mapping, best: int, model: "tf_keras.Model") -> None:
        """Note an epoch that is validated: see Epoch."""
        step = number * self._run.steps_per_epoch
        epoch = Epoch(number, step, train, validation, best, model, self._clock.images_per_second())
        for tracker in self._trackers.values():
            tracker.epoch(epoch)

    def end(self, test: Mapping[str, Mapping], pictures: Mapping[str, np.ndarray]) -> None:
        """Note the end of training: see End."""
        end = End(self._clock.steps, test, pictures)
        for tracker in self._trackers.values():
            tracker.end(end)

    def speed(self) -> dict:
        """How long training took and how fast it was: see Clock.speed."""
        return self._clock.speed(self._run.started)


def chosen(keys: Mapping[str, Mapping]) -> dict[str, Tracker]:
    """The trackers that a config names, made with their keys. Raises InputError for what is none."""
    found = {name: get("tracker", name).call(**own) for name, own in keys.items()}
    for name, tracker in found.items():
        if not isinstance(tracker, Tracker):
            raise InputError(f"tracker={name}: it must be a kdrun.tracking.tracker.Tracker, and is {tracker!r:.60}.")
    return found


def _closed(tracker: Tracker) -> None:
    with suppress(OSError):  # the terminal is gone, or the disk full: what matters was flushed
        tracker.close()


def _saved(values: Mapping) -> Mapping:
    """What a training state says of clock and trackers.

    In states from before these were apart, both were in one, called monitor.
    """
    together = values.get("monitor")
    if not isinstance(together, Mapping):
        return values
    lines = {"since": 0, "lines": together.get("lines")}
    return {"clock": together, "trackers": {"jsonl": lines}}
