"""The command line: compose the config, check it, and only then load TensorFlow and run the stage."""

import argparse
import os
import shlex
import shutil
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from unittest import mock

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kdrun import __version__
from kdrun.cli import resuming
from kdrun.cli.explain import config_dir, explained, readable, unknown_flag
from kdrun.cli.plan import Place, checked, help_text, placed, plain
from kdrun.errors import KdrunError, NoRoom
from kdrun.runs import sweeps
from kdrun.runtime import devices as gpus
from kdrun.runtime import signals as stopping
from kdrun.storage import files

WITHOUT_TENSORFLOW = ("compare",)


def main(arguments: list[str] | None = None) -> int:
    """Run kdrun with command-line arguments (sys.argv's by default); returns the exit code (see errors.py)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # without Hydra, which composes a config for the one, and says its own version
    if answer := help_text() if {"--help", "-h"} & set(arguments) else _version(arguments):
        print(answer)
        return 0
    try:
        with stopping.at_once():
            return _run(arguments)
    except resuming.Completed as done:
        print(f"kdrun: {done}")
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (KdrunError, HydraException, OmegaConfBaseException, YAMLError) as error:
        problem = error if isinstance(error, KdrunError) else explained(error, arguments)
        if isinstance(problem, NoRoom):
            problem.command = shlex.join(["kdrun", *arguments])
        print(f"kdrun: {problem}", file=sys.stderr)
        return problem.exit_code
    except stopping.AtOnce as error:
        print(f"kdrun: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("kdrun: Stopped by SIGINT.", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - the last place where an unexpected one can be shown and given its exit code
        if problem := files.no_room(error, Path()):  # for a run directory
            print(f"kdrun: {problem}", file=sys.stderr)
        else:
            traceback.print_exc()
        return 1
    finally:
        GlobalHydra.instance().clear()


def _version(arguments: list[str]) -> str:
    return f"kdrun {__version__}" if "--version" in arguments else ""


def _run(arguments: list[str]) -> int:
    """Check a command line, have Hydra call its jobs, and show what came of them; returns the exit code."""
    options = _options(arguments)
    arguments = [readable(word, options.multirun) if word in options.overrides else word for word in arguments]
    options.overrides = [readable(word, options.multirun) for word in options.overrides]
    asked, place = None, Place()
    if not (options.hydra_help or options.cfg or options.info or options.shell_completion):
        asked = checked(options)
    failures: list[KdrunError] = []
    full_error = {"HYDRA_FULL_ERROR": "1"}  # Hydra raises its errors instead of printing them and exiting with 1
    try:
        if asked:
            with stopping.undisturbed():
                place = placed(asked)
            # beside the other overrides: argparse takes them in one piece only
            last = max((index for index, word in enumerate(arguments) if word in options.overrides), default=-1)
            arguments[last + 1 : last + 1] = place.overrides
        with mock.patch.dict(os.environ, full_error), mock.patch.object(sys, "argv", ["kdrun", *arguments]):
            job = _job_of(failures, place)
            hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(job)()
    except Exception as error:
        if problem := files.no_room(error, Path(place.folder)):  # what Hydra writes
            raise problem from error
        # a search of which no trial was completed has no best one, for which its sweeper has a traceback
        if not isinstance(error, ValueError) or place.sweep is None or sweeps.done(place.sweep)["completed"]:
            raise
    finally:
        if place.is_new:
            _remove_unbegun(Path(place.folder))
        all_done = place.sweep is None or _shown(place.sweep)
    if not all_done:
        return 1
    if failures:
        raise failures[0]
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = get_args_parser()

    def refuse(message: str):
        raise unknown_flag(message)

    parser.error = refuse  # argparse would print its usage and end the process
    return parser.parse_args(arguments)


def _remove_unbegun(run_dir: Path) -> None:
    """Take away the directory of a run that did not get as far as a record: nothing of it is worth keeping."""
    if not (run_dir / "run.json").exists():
        shutil.rmtree(run_dir, ignore_errors=True)
        for parent in (run_dir.parent, run_dir.parent.parent):
            with suppress(OSError):  # it holds something else
                parent.rmdir()


def _job_of(failures: list[KdrunError], place: Place):
    """The function that Hydra calls for every job, perhaps in another process; what it needs to know comes along."""

    def job(composed: DictConfig):
        from kdrun.runtime import tensorflow as startup

        startup.log_to_terminal()
        given = plain(composed)
        if place.sweep:
            if HydraConfig.get().runtime.choices["hydra/launcher"] != "basic":
                gpus.pin(HydraConfig.get().job.num)  # this process is one of several
            run_dir = sweeps.job_dir(place.sweep, given, HydraConfig.get().overrides.task, _identity(given))
            number = HydraConfig.get().job.num + 1
            results = sweeps.run(
                place.sweep, number, run_dir, given, lambda: _job({**given, "resume": "auto"}, run_dir)
            )
            return _objective(results)
        try:
            _job(place.config or given, Path(HydraConfig.get().runtime.output_dir))
        except KdrunError as error:
            failures.append(error)  # else Hydra would put a line of its own before ours

    return job


def _job(given: dict, run_dir: Path) -> dict:
    """One job, in the directory that is made for it."""
    from kdrun.config import schema as config
    from kdrun.runtime import tensorflow as startup
    from kdrun.stages import checks as fitting

    values = config.check(given, given)  # a sweep's combination of values is seen here for the first time
    fitting.check(values, HydraConfig.get().overrides.task)
    if values["stage"] not in WITHOUT_TENSORFLOW:
        startup.load_tensorflow(resuming.threads(run_dir, values))
    from kdrun import stages

    return stages.run(values, run_dir)


def _identity(given: dict) -> dict | None:
    """What a job's result depends on; None where that cannot be said, because it will fail."""
    from kdrun.config import schema as config

    try:
        return resuming.identity(config.check(given, given))
    except KdrunError:
        return None


def _objective(results: dict | None) -> float:
    """What a search minimises: the validation cross-entropy of the best weights; not a number for a job that failed."""
    best = ((results or {}).get("validation") or {}).get("best") or {}
    return best.get("cross_entropy", float("nan"))


def _shown(sweep: sweeps.Sweep) -> bool:
    """Show what a sweep has come to; says whether all of it is done."""
    from kdrun.reports import jobs

    return jobs.show(sweeps.records(sweep), sweep.total)
