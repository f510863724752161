"""A stage's work, in this process or in a worker: TensorFlow loaded with the right threads, the command recorded."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from kdrun import registry, stages
from kdrun.config import schema
from kdrun.errors import InputError, KdrunError
from kdrun.runs import record as runs
from kdrun.runs import recording, sweeps
from kdrun.runtime import devices, rendezvous, tensorflow
from kdrun.runtime.workers import Task

WORKER = "kdrun.stages.worker"  # the module whose `main` a worker process runs


def do(values: Mapping, run_dir: Path, words: Sequence[str] | None, threads: int | None = None) -> dict:
    """Run the configured stage, whose config is checked, in the directory that is made for it.

    `words` are the command's overrides, and `threads` those of an operation (None: of a job that has the machine to
    itself; see `threads_alone`).
    """
    if stages.needs_tensorflow(values):
        load_tensorflow(values, threads or threads_alone(values, run_dir))
    with recording.commanded(words):
        return stages.run(values, run_dir)


def load_tensorflow(config: Mapping, threads: int | None = None) -> None:
    """Have TensorFlow in this process, with the config's devices and so many threads (None: of one of several jobs)."""
    member = rendezvous.current()
    threads, count = threads or threads_beside(config), devices.count(config["devices"])
    if member:
        tensorflow.load_tensorflow(threads, count, member.cluster, partial(member.agree, {}, ""))
    else:
        tensorflow.load_tensorflow(threads, count)


def threads_alone(config: Mapping, run_dir: Path) -> int:
    """How many threads an operation has in a job that has the machine to itself: one in a run of several parts, and
    where the net's operations are too small to be shared (docs/performance.md), else as many as TensorFlow takes."""
    entry = registry.get("stage", config["stage"])
    if (given := _given(config, run_dir)) is not None:
        return given
    if entry.has_parts or devices.count(config["devices"]) > 1:
        return 1
    if entry.role is None or "TF_NUM_INTRAOP_THREADS" in os.environ:
        return tensorflow.threads_of_its_own()
    net = registry.get("model", config[entry.role]["model"]["name"])
    small = config[entry.role]["image_size"] <= net.one_thread_up_to
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
    """A task for a worker: one of worker.DOES with its keywords."""
    module = config["objective"].get("module") if isinstance(config.get("objective"), Mapping) else None
    files = [*config.get("plugins", ()), *([module] if module else [])]
    does = {"what": what, "plugins": files, "config": config, **of_it}
    return Task(name, does, _key(config), threads, devices.count(config["devices"]))


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
    f"{group}.{key}" for group in ("optimizer", "student.optimizer") for key in ("learning_rate", "schedule", "step_")
)
