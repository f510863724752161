"""Clock of a training run, over all processes that it takes."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import ClassVar

from kdrun.storage.forms import count, moment, number, problem

_SUMS = ("training_seconds", "steady_seconds", "steady_steps", "steps")
_MOMENTS = ("first_step", "last_step")


class Clock:
    """Seconds and steps of training. Time in which something else was done is left out by `pause_ended`."""

    # the form of what `state` gives
    STATE: ClassVar = {
        **dict.fromkeys(("training_seconds", "steady_seconds"), number),
        **dict.fromkeys(("steady_steps", "steps"), count),
        **dict.fromkeys(_MOMENTS, (None, moment)),
    }

    def __init__(self, batch_size: int, steps_per_epoch: int):
        self._batch_size, self._steps_per_epoch = batch_size, steps_per_epoch
        self._call_ended = time.perf_counter()
        self._compiled = False  # whether this process has done its first call of the compiled step
        self.steps = 0  # done in all
        self.training_seconds, self.steady_seconds, self.steady_steps = 0.0, 0.0, 0
        self.first_step: datetime | None = None
        self.last_step: datetime | None = None

    def count(self, steps: int) -> None:
        """Count steps that are done just now, and the seconds since the last call or pause for them."""
        now = time.perf_counter()
        seconds, self._call_ended = now - self._call_ended, now
        if self.first_step is None:
            self.first_step = datetime.now(UTC)
        if self._compiled:
            self.steady_seconds += seconds
            self.steady_steps += steps
        self._compiled = True
        self.training_seconds += seconds
        self.steps += steps
        if self.steps % self._steps_per_epoch == 0:  # any epoch's end may be the run's
            self.last_step = datetime.now(UTC)

    def pause_ended(self) -> None:
        """What happened since the last step was not training."""
        self._call_ended = time.perf_counter()

    def images_per_second(self) -> float:
        """Images a second in steady state, without each process's first call; of all calls while there is no other."""
        seconds, steps = self.steady_seconds, self.steady_steps
        if not steps:
            seconds, steps = self.training_seconds, self.steps
        return steps * self._batch_size / seconds if seconds else 0.0

    def speed(self, started: datetime) -> dict:
        """What run.json says of speed: seconds from the run's start to the first finished step, seconds of training,
        images a second in steady state, and when the first and the last step were done."""
        assert self.first_step is not None  # training is over
        assert self.last_step is not None
        return {
            "seconds_to_first_step": round((self.first_step - started).total_seconds(), 3),
            "training_seconds": round(self.training_seconds, 3),
            "images_per_second": round(self.images_per_second(), 1),
            "first_step": self.first_step.isoformat(timespec="microseconds"),
            "last_step": self.last_step.isoformat(timespec="microseconds"),
        }

    def state(self) -> dict:
        """What `restore` needs to go on in another process, as plain values."""
        moments = {name: getattr(self, name) for name in _MOMENTS}
        return {name: getattr(self, name) for name in _SUMS} | {
            name: when and when.isoformat() for name, when in moments.items()
        }

    def restore(self, values: Mapping) -> None:
        """Go on from what `state` gave."""
        for name in _SUMS:
            setattr(self, name, values[name])
        for name in _MOMENTS:
            setattr(self, name, values[name] and datetime.fromisoformat(values[name]))

    def wrong(self, values: Mapping, step: int, epochs: int) -> str | None:
        """Say what of a saved state cannot be after so many steps and epochs, in one line."""
        if found := problem(values, self.STATE):
            return found
        if values["steps"] != step:
            return f"the clock counted {values['steps']} steps, and {step} are done"
        if (step and values["first_step"] is None) or (epochs and values["last_step"] is None):
            return f"step {step} has no time"
        return None
