"""One task for many things, some at a time, by threads; a bar on the terminal shows how far it is."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from rich.progress import Progress

from kdrun.runtime import signals, terminal

Thing = TypeVar("Thing")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def cut(things: Iterable[Thing], count: int) -> Iterator[list[Thing]]:
    """Things in lists of so many, the last one of fewer; no more is taken than is asked for."""
    left = iter(things)
    while some := list(islice(left, count)):
        yield some


def in_blocks(
    task: Callable, things: Iterable, at_once: int, called: str, threads: int = 1, total: int | None = None
) -> Iterator[list[Any]]:
    """A task's results for all things, in order, a list for every `at_once` of them; by so many threads, since Pillow
    lets others run. `called` is what the bar says, and `total` how many things there are, where that is known. Raises
    Stopped after a signal."""
    with (
        Progress(console=terminal.canvas(), transient=True, disable=not terminal.is_animated()) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        line = bar.add_task(called, total=total)
        for some in cut(things, at_once):
            signals.check()
            parts = pool.map(lambda part: [task(thing) for thing in part], cut(some, -(-len(some) // threads)))
            yield [each for part in parts for each in part]
            bar.advance(line, len(some))
