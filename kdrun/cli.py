"""The command line: compose the config, check it, and only then load TensorFlow and run the stage."""

import os
import sys
import traceback
from contextlib import nullcontext
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

from kdrun import gpus, resuming, sweeps
from kdrun.errors import KdrunError
from kdrun.overrides import Checked, checked, config_dir, explained, help_text, plain
from kdrun.training import stopping

WITHOUT_TENSORFLOW = ("compare",)


def main(arguments: list[str] | None = None) -> int:
    """Run kdrun with command-line arguments (sys.argv's by default); returns the exit code (see errors.py)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if {"--help", "-h"} & set(arguments):
        print(help_text())  # without Hydra, which composes a config for it
        return 0
    full_error = {"HYDRA_FULL_ERROR": "1"}  # Hydra raises its errors instead of printing them and exiting with 1
    try:
        with mock.patch.dict(os.environ, full_error), mock.patch.object(sys, "argv", ["kdrun", *arguments]):
            options, known = get_args_parser().parse_args(arguments), Checked([])
            if not (options.hydra_help or options.cfg or options.info or options.shell_completion):
                known = checked(options)
                # beside the other overrides: argparse takes them in one piece only
                last = max((place for place, word in enumerate(sys.argv) if word in options.overrides), default=0)
                sys.argv[last + 1 : last + 1] = known.overrides
            failures: list[KdrunError] = []
            job = _job_of(failures, known)
            try:
                # a stage listens by itself; between a sweep's jobs a signal is to be heard, too
                with stopping.on_signals() if known.sweep else nullcontext():
                    hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(job)()
            finally:
                all_done = known.sweep is None or _shown(known.sweep)
        if not all_done:
            return 1
        if failures:
            raise failures[0]
        return 0
    except resuming.Completed as done:
        print(f"kdrun: {done}")
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (KdrunError, HydraException, OmegaConfBaseException, YAMLError) as error:
        problem = error if isinstance(error, KdrunError) else explained(error, arguments)
        print(f"kdrun: {problem}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print("kdrun: Stopped by SIGINT.", file=sys.stderr)
        return 130
    except Exception:  # noqa: BLE001 - the last place where an unexpected error can be shown and given its exit code
        traceback.print_exc()
        return 1
    finally:
        GlobalHydra.instance().clear()


def _job_of(failures: list[KdrunError], known: Checked):
    """The function that Hydra calls for every job, perhaps in another process; what it needs to know comes along."""

    def job(composed: DictConfig):
        from kdrun import startup

        startup.log_to_terminal()
        given = plain(composed)
        if known.sweep:
            if HydraConfig.get().runtime.choices["hydra/launcher"] != "basic":
                gpus.pin(HydraConfig.get().job.num)  # this process is one of several
            run_dir = sweeps.job_dir(known.sweep, given, HydraConfig.get().overrides.task)
            number = HydraConfig.get().job.num + 1
            results = sweeps.run(
                known.sweep, number, run_dir, given, lambda: _job({**given, "resume": "auto"}, run_dir)
            )
            return _objective(results)
        try:
            _job(known.config or given, Path(HydraConfig.get().runtime.output_dir))
        except KdrunError as error:
            failures.append(error)  # else Hydra would put a line of its own before ours

    return job


def _job(given: dict, run_dir: Path) -> dict:
    """One job, in the directory that is made for it."""
    from kdrun import config, fitting, startup

    values = config.check(given, given)  # a sweep's combination of values is seen here for the first time
    fitting.check(values, HydraConfig.get().overrides.task)
    if values["stage"] not in WITHOUT_TENSORFLOW:
        startup.load_tensorflow()
    from kdrun import stages

    return stages.run(values, run_dir)


def _objective(results: dict | None) -> float:
    """What a search minimises: the validation cross-entropy of the best weights; not a number for a job that failed."""
    best = ((results or {}).get("validation") or {}).get("best") or {}
    return best.get("cross_entropy", float("nan"))


def _shown(sweep: sweeps.Sweep) -> bool:
    """Show what a sweep has come to; says whether all of it is done."""
    from kdrun.reports import jobs

    return jobs.show(sweeps.records(sweep), sweep.total)
