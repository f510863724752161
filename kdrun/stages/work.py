"""A stage's work, in this process or in a worker: TensorFlow loaded with the right threads, the command recorded.

`main` is what a worker process runs; see kdrun.runtime.workers.
"""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from kdrun import errors, registry, stages
from kdrun.config import schema
from kdrun.errors import InputError, KdrunError
from kdrun.plugins import load
from kdrun.runs import record as runs
from kdrun.runs import recording, sweeps
from kdrun.runtime import progress, tensorflow
from kdrun.runtime.workers import Task

MODULE = __name__


def do(values: Mapping, run_dir: Path, words: Sequence[str] | None, threads: int | None = None) -> dict:
    """Run the configured stage, whose config is checked, in the directory that is made for it.

    `words` are the command's overrides, and `threads` those of an operation (None: of a job that has the machine to
    itself; see `threads_alone`).
    """
    if stages.needs_tensorflow(values):
        tensorflow.load_tensorflow(threads or threads_alone(values, run_dir))
    with recording.commanded(words):
        return stages.run(values, run_dir)


def threads_alone(config: Mapping, run_dir: Path) -> int:
    """How many threads an operation has in a job that has the machine to itself: one in a run of several parts, and
    where the net's operations are too small to be shared (docs/performance.md), else as many as TensorFlow takes."""
    entry = registry.get("stage", config["stage"])
    if (given := _given(config, run_dir)) is not None:
        return given
    if entry.has_parts:
        return 1
    if entry.role is None or "TF_NUM_INTRAOP_THREADS" in os.environ:
        return tensorflow.threads_of_its_own()
    net = registry.get("model", config[entry.role]["model"]["name"])
    small = config["data"]["image_size"] <= net.one_thread_up_to
    return 1 if small else tensorflow.threads_of_its_own()


def threads_beside(config: Mapping, run_dir: Path | None = None) -> int:
    """How many threads an operation has in a job that is one of several, however many are at work: one, unless more are
    asked for, so that bits do not depend on how many there are."""
    return _given(config, run_dir) or 1


def _given(config: Mapping, run_dir: Path | None) -> int | None:
    """What a run that goes on began with, else what the config says; None for auto."""
    with suppress(InputError):
        if run_dir and (threads := runs.read(run_dir).get("threads")):
            return threads
    return None if config["threads"] == "auto" else config["threads"]


def sweep_job(sweep: sweeps.Sweep, number: int, given: dict, words: Sequence[str]) -> dict | None:
    """Do a sweep's job of that number, from 1, whose config is composed and not yet checked; returns its results, None
    where it failed, which is recorded. A signal ends it: SystemExit."""
    run_dir = directory_of(sweep, given, words)

    def work() -> dict:
        values = schema.load({**given, "resume": "auto"})  # this combination of values is seen for the first time
        stages.check(values, words)
        return do(values, run_dir, words, threads_beside(values, run_dir))

    return sweeps.run(sweep, number, run_dir, given, work)


def directory_of(sweep: sweeps.Sweep, given: dict, words: Sequence[str]) -> Path:
    """The run directory of a sweep's job with that config."""
    values: Mapping = given
    identity = None
    with suppress(KdrunError):  # it will fail
        values = schema.load(given)
        identity = stages.identity(values)
    return sweeps.job_dir(sweep, values, identity, words)


def as_task(what: str, name: str, threads: int, config: Mapping, **of_it: Any) -> Task:
    """A task for a worker: one of DOES with its keywords."""
    module = config["objective"].get("module") if isinstance(config.get("objective"), Mapping) else None
    files = [*config.get("plugins", ()), *([module] if module else [])]
    does = {"what": what, "plugins": files, "config": config, **of_it}
    return Task(name, does, _key(config), threads)


def _key(config: Mapping) -> str:
    """What jobs have in common that can share a compiled network, as far as can be told before it is made."""
    found = dict(schema.flatten(config))
    return json.dumps({key: found[key] for key in sorted(found) if not key.startswith(_INPUTS)}, default=str)


# keys of a config that are inputs of a compiled step, or no part of it
_INPUTS: tuple[str, ...] = (
    "seed",
    "teacher.seed",
    "temperature",
    "alpha",
    "annealing",
    "outputs",
    "sweep",
    "resume",
    "seeds",
)
_INPUTS += tuple(
    f"{group}.{key}" for group in ("optimizer", "student.optimizer") for key in ("learning_rate", "schedule")
)


def _stage(config: dict, run_dir: str, words: list[str] | None, threads: int) -> dict:
    return do(config, Path(run_dir), words, threads)


def _sweep_job(config: dict, sweep: list, number: int, words: list[str], threads: int) -> dict | None:
    return sweep_job(sweeps.Sweep(*sweep), number, config, words)


def _cached(config: dict, source: str, threads: int) -> None:
    """Have a teacher's outputs cached, where they are to be."""
    from kdrun.stages.cache import ask

    tensorflow.load_tensorflow(threads)
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
    progress.goes_to(lambda values: say({"progress": values}))
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
