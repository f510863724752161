"""The command line: compose the config, check it, and only then load TensorFlow and run the stage."""

import os
import sys
import traceback
from pathlib import Path
from unittest import mock

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kdrun import resuming
from kdrun.errors import KdrunError
from kdrun.overrides import checked, config_dir, explained, help_text, plain


def main(arguments: list[str] | None = None) -> int:
    """Run kdrun with command-line arguments (sys.argv's by default); returns the exit code (see errors.py)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if {"--help", "-h"} & set(arguments):
        print(help_text())  # without Hydra, which composes a config for it
        return 0
    full_error = {"HYDRA_FULL_ERROR": "1"}  # Hydra raises its errors instead of printing them and exiting with 1
    try:
        with mock.patch.dict(os.environ, full_error), mock.patch.object(sys, "argv", ["kdrun", *arguments]):
            options, resumed = get_args_parser().parse_args(arguments), None
            if not (options.hydra_help or options.cfg or options.info or options.shell_completion):
                more, resumed = checked(options)
                # beside the other overrides: argparse takes them in one piece only
                last = max((place for place, word in enumerate(sys.argv) if word in options.overrides), default=0)
                sys.argv[last + 1 : last + 1] = more
            failures: list[KdrunError] = []
            job = _job_of(failures, resumed)
            hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(job)()
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


def _job_of(failures: list[KdrunError], resumed: dict | None):
    def job(composed: DictConfig) -> None:
        try:
            _job(composed, resumed)
        except KdrunError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # a sweep's launcher, perhaps in another process, has to know
            failures.append(error)  # else Hydra would put a line of its own before ours

    return job


def _job(composed: DictConfig, resumed: dict | None) -> None:
    """One job, in the directory that is made for it; `resumed` is the config of a run that goes on with its own."""
    from kdrun import config, fitting, startup

    given = plain(composed)
    values = resumed or config.check(given, given)  # a sweep's combination of values is seen here for the first time
    fitting.check(values, HydraConfig.get().overrides.task)
    startup.log_to_terminal()
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if values["resume"] == "auto" and HydraConfig.get().mode == RunMode.MULTIRUN:
        run_dir = resuming.interrupted(values) or run_dir
    startup.load_tensorflow()
    from kdrun import stages

    stages.run(values, run_dir)
