"""A worker process: does one task after another and says in lines of JSON how it gets on; see runtime.workers."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from kdrun import errors
from kdrun.plugins import load
from kdrun.runs import sweeps
from kdrun.runtime import progress
from kdrun.stages import work


def _stage(config: dict, run_dir: str, words: list[str] | None, threads: int) -> dict:
    return work.do(config, Path(run_dir), words, threads)


def _sweep_job(config: dict, sweep: list, number: int, words: list[str], threads: int) -> dict | None:
    return work.sweep_job(sweeps.Sweep(*sweep), number, config, words)


def _cached(config: dict, source: str, threads: int) -> None:
    """Have a teacher's outputs cached, where they are to be."""
    from kdrun.stages.cache import ask

    work.load_tensorflow(config, threads)
    ask(config, Path(source))


DOES: dict[str, Callable] = {"stage": _stage, "sweep_job": _sweep_job, "cached": _cached}


class _Sent(logging.Handler):
    """Log lines, sent to the process whose worker this is."""

    def __init__(self, say: Callable):
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say({"log": record.getMessage(), "level": record.levelno})


def main() -> None:
    """Do what standard input tells, a line a task, until it ends; what came of each goes to standard output."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer

    def say(line: Mapping) -> None:
        with suppress(BrokenPipeError):  # nobody listens any more: `_listen` sees it, too
            output.write(json.dumps(line) + "\n")
            output.flush()

    logger = logging.getLogger("kdrun")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_Sent(say))
    progress.goes_to(lambda values: say(values if "doing" in values else {"progress": values}))
    tasks: SimpleQueue[dict | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    while (task := tasks.get()) is not None:
        say(_answer(**task))
    os._exit(0)  # TensorFlow would take a while to end


def _answer(what: str, plugins: list[str], **of_it: Any) -> dict:
    try:
        load(plugins)
        return {"result": DOES[what](**of_it)}
    except SystemExit as end:  # a sweep's job that a signal has stopped
        number = int(end.code or 0) - 128
        return {"error": errors.plain(errors.Stopped(number, f"Stopped by {signal.Signals(number).name}."))}
    except Exception as error:  # noqa: BLE001 - whatever it is, the other process is to know
        return {"error": errors.plain(error)}


def _listen(tasks: SimpleQueue) -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    tasks.put(None)
    os.kill(os.getpid(), signal.SIGTERM)  # who gave the tasks is gone, or wants no more of them
