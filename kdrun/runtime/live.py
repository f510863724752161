"""A table of tasks on the terminal while they are at work; nothing where standard output is no terminal."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdrun.runtime import terminal

if TYPE_CHECKING:
    from rich.live import Live

    from kdrun.runtime.workers import Task

_ROWS = 12  # of tasks that have ended or wait, beside those at work


class Table:
    """The table, drawn from the first `show` on."""

    def __init__(self) -> None:
        self._live: Live | None = None

    def show(self, tasks: Sequence["Task"], workers: int) -> None:
        """Draw it as it is now."""
        if not terminal.is_animated() or not tasks:
            return
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=terminal.canvas(), transient=True, refresh_per_second=4)
            self._live.start()
        self._live.update(_drawn(tasks, workers))

    def close(self) -> None:
        """Take it away."""
        if self._live is not None:
            self._live.stop()


def _drawn(tasks: Sequence["Task"], workers: int):
    from rich.table import Table as Grid

    grid = Grid(title=_title(tasks, workers), title_justify="left", box=None, pad_edge=False)
    for heading, justify in (
        ("job", "left"),
        ("", "left"),
        ("epoch", "right"),
        ("accuracy", "right"),
        ("images/s", "right"),
    ):
        grid.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    at_work = [task for task in tasks if task.status == "running"]
    ended = [task for task in tasks if task.has_ended]
    waiting = [task for task in tasks if task.status == "waiting"]
    shown = [*ended[-_ROWS:], *at_work, *waiting[:_ROWS]]
    for task in shown:
        far = task.progress
        grid.add_row(
            task.name,
            task.status if task.status != "running" or far else task.doing or "starting",
            f"{far['epoch']:.0f}/{far['epochs']:.0f}" if far else "",
            f"{far['accuracy']:.3f}" if far else "",
            f"{far['images_per_second']:,.0f}" if far and task.status == "running" else "",
        )
    return grid


def _title(tasks: Sequence["Task"], workers: int) -> str:
    ended = sum(task.has_ended for task in tasks)
    left = seconds_left(tasks, workers)
    return f"{ended} of {len(tasks)} jobs done" + ("" if left is None else f", about {readable(left)} left")


def seconds_left(tasks: Sequence["Task"], workers: int) -> float | None:
    """Seconds until all tasks have ended, if those that wait take as long as others; None while nothing is known."""
    now, known, rest = time.monotonic(), [], 0.0
    for task in tasks:
        if task.status == "done":
            known.append(task.seconds)
        elif task.status == "running" and task.progress.get("step"):
            whole = (now - task.began) * task.progress["steps"] / task.progress["step"]
            known.append(whole)
            rest += max(0.0, whole - (now - task.began))
    if not known:
        return None
    unknown = sum(task.status == "waiting" or (task.status == "running" and not task.progress) for task in tasks)
    return (rest + unknown * sum(known) / len(known)) / workers


def readable(seconds: float) -> str:
    """A length of time for people."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
