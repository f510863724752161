"""A training run on the terminal: a progress bar, and a line of the log for each epoch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kdrun.registry import register
from kdrun.runtime import terminal
from kdrun.tracking.tracker import Epoch, Run, Steps, Tracker

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)


@register("tracker", "terminal")
class Terminal(Tracker):
    """A progress bar where something may move on a terminal; log lines that kdrun.log has, too."""

    _bar: Progress | None = None

    def start(self, run: Run) -> None:
        """Show the bar, unless nothing moves there, or another process shows how far this one is."""
        self._run = run
        if not terminal.is_animated():
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._bar = Progress(*columns, console=terminal.canvas(), transient=True)
        self._task = self._bar.add_task(run.title, total=run.epochs * run.steps_per_epoch, shown="compiling")
        self._bar.start()
        if run.step:
            self._bar.update(self._task, completed=run.step)

    def steps(self, steps: Steps) -> None:
        """Move the bar on."""
        loss, accuracy = steps.latest["loss"], steps.latest["accuracy"]
        shown = f"loss {loss:.4f}, accuracy {accuracy:.3f}, {self._run.speed(steps.images_per_second)}"
        if self._bar is not None:  # else nothing moves there, or another process shows it
            self._bar.update(self._task, completed=steps.step, shown=shown)

    def epoch(self, epoch: Epoch) -> None:
        """Log the epoch's line."""
        train, validation = epoch.train, epoch.validation
        log.info(
            "%s epoch %d/%d  loss %.4f  accuracy %.4f  |  validation CE %.4f  accuracy %.4f%s  |  %s%s",
            self._run.title,
            epoch.number,
            self._run.epochs,
            train["loss"],
            train["accuracy"],
            validation["cross_entropy"],
            validation["accuracy"],
            f"  agreement {validation['teacher_agreement']:.4f}" if "teacher_agreement" in validation else "",
            self._run.speed(epoch.images_per_second),
            "  best" if epoch.best == epoch.number else "",
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()
