"""What a command has come to, for machines: with print=json, one JSON object is all that standard output gets.

It is read from the records that the command's runs have left, so that every stage has one, a user's own among them.
"""

import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrun.errors import InputError
from kdrun.runs import record as runs

_SHOWING = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc")  # a config, not a command's end


@dataclass
class Begun:
    """What a command has begun, noted as it does: its stage, and its run's directory; of a sweep, its folder, the
    directories of the command's jobs, and that of their comparison."""

    stage: str | None = None
    run_dir: Path | None = None
    sweep: Path | None = None
    jobs: Collection[Path] = field(default_factory=list)
    comparison: Path | None = None


def is_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for one JSON object. It is looked for in its words, so that one that is refused has
    its answer, too."""
    given = [word.lstrip("+").partition("=")[2] for word in arguments if word.lstrip("+").startswith("print=")]
    return given[-1:] == ["json"] and not any(word.partition("=")[0] in _SHOWING for word in arguments)


def check_is_said(config: Mapping, is_said: bool) -> None:
    """Raises InputError where a config file, or a sweep, asks for JSON, and the command line itself does not."""
    if config["print"] == "json" and not is_said:
        raise InputError("print: what a command prints is said once, by its own line. Add print=json to it.")


@contextmanager
def on_standard_error() -> Iterator[None]:
    """While inside, what is printed goes to standard error, by whatever prints it: Python, a library, a process of a
    sweep's launcher."""
    sys.stdout.flush()
    kept = None
    with suppress(OSError):  # closed: nothing can be printed there anyway
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def text(begun: Begun, exit_code: int, error: str | None) -> str:
    """The object of a command that has ended, on one line: `stage`, `exit_code`, `error` (what standard error says of
    it, or null), `verdict` (the sentence of a comparison, or null), `result` (the one in run.json, or null), `paths`
    (`run`, the directory, and the files in it by their names; `sweep`), and of a sweep its `jobs`, likewise."""
    of_run = _of_run(begun.comparison or begun.run_dir)
    answer = {"stage": begun.stage, "exit_code": exit_code, "error": error, **of_run}
    if begun.sweep is not None:
        answer["paths"] |= {"sweep": str(begun.sweep.absolute())}
        answer["jobs"] = [_of_job(run_dir) for run_dir in sorted(begun.jobs)]
    return json.dumps(answer, allow_nan=False)


def _of_run(run_dir: Path | None) -> dict[str, Any]:
    """Verdict, result and paths of a run; empty ones where it has left no record."""
    nothing: dict[str, Any] = {"verdict": None, "result": None, "paths": {}}
    if run_dir is None:
        return nothing
    try:
        record = runs.read(run_dir)
    except InputError:
        return nothing
    result = record.get("results")
    return {"verdict": (result or {}).get("sentence"), "result": result, "paths": _paths(run_dir.absolute())}


def _of_job(run_dir: Path) -> dict[str, Any]:
    try:
        record = runs.read(run_dir)
    except InputError as error:
        return {"status": "damaged", "error": str(error), **_of_run(None)}
    return {"status": record["status"], "error": record.get("error"), **_of_run(run_dir)}


def _paths(run_dir: Path) -> dict[str, str]:
    """A run directory, and its files by name; without what is hidden, and what only kdrun and TensorBoard read."""
    found = {"run": str(run_dir)}
    for folder, folders, names in os.walk(run_dir):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "state-", "tensorboard")))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith("."):
                found[path.relative_to(run_dir).as_posix()] = str(path)
    return found
