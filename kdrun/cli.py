"""The command line: compose the config, check it, and only then load TensorFlow and run the stage."""

import argparse
import os
import re
import sys
import traceback
from pathlib import Path
from unittest import mock

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from kdrun.errors import InputError, KdrunError


def main(arguments: list[str] | None = None) -> int:
    """Run kdrun with command-line arguments (sys.argv's by default); returns the exit code (see errors.py)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    full_error = {"HYDRA_FULL_ERROR": "1"}  # Hydra raises its errors instead of printing them and exiting with 1
    try:
        with mock.patch.dict(os.environ, full_error), mock.patch.object(sys, "argv", ["kdrun", *arguments]):
            options = get_args_parser().parse_args(arguments)
            if not (options.help or options.hydra_help or options.cfg or options.info or options.shell_completion):
                sys.argv += _checked(options)
            failures: list[KdrunError] = []
            hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(_job_of(failures))()
        if failures:
            raise failures[0]
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (KdrunError, HydraException, OmegaConfBaseException, YAMLError) as error:
        problem = error if isinstance(error, KdrunError) else _explained(error, arguments)
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


def config_dir() -> Path:
    """The folder of shipped config files: inside an installed package, beside it in a checkout."""
    installed = Path(__file__).with_name("conf")
    return installed if installed.is_dir() else Path(__file__).parent.with_name("conf")


def _checked(options: argparse.Namespace) -> list[str]:
    """Check every job that the command line asks for; returns further overrides: the run directory made for it.

    Raises InputError, or what Hydra raises.
    """
    from kdrun import config, runs

    searched, flags, overrides = [], [], options.overrides
    if options.config_dir:
        if not os.path.isdir(options.config_dir):
            raise InputError(f"--config-dir: {options.config_dir} is not a folder. Give one with config files.")
        searched = [f"hydra.searchpath=[file://{os.path.abspath(options.config_dir)}]"]
        flags = ["--config-dir", options.config_dir]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        for override in overrides:
            if override.startswith("="):  # the one that Hydra's own reading lets pass
                raise _unreadable(override)
        for job in _jobs(overrides) if options.multirun else [overrides]:
            composed = hydra.compose(options.config_name or "config", job + searched, return_hydra_config=True)
            choices = [f"{group}={choice}" for group, choice in composed.hydra.runtime.choices.items()]
            checked = config.check(_plain(composed), _reference(choices + searched))
            config.check_together(checked, flags + job)
    if options.multirun or any(override.startswith("hydra.run.dir=") for override in overrides):
        return []
    run_dir = runs.create(checked["outputs"], checked["stage"])
    return [f"hydra.run.dir={_quoted(str(run_dir))}"]


def _jobs(overrides: list[str]) -> list[list[str]]:
    """Overrides of jobs in which each swept value occurs once: to check values, their combinations are not needed."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
    sweeps = [
        [f"{o.input_line.split('=')[0]}={value}" for value in o.sweep_string_iterator()]
        for o in parsed
        if o.is_discrete_sweep()
    ]
    first = [values[0] for values in sweeps]
    jobs = [fixed + first]
    for place, values in enumerate(sweeps):
        jobs += [fixed + first[:place] + [value] + first[place + 1 :] for value in values[1:]]
    return jobs


def _job_of(failures: list[KdrunError]):
    def job(composed: DictConfig) -> None:
        try:
            _job(composed)
        except KdrunError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # a sweep's launcher, perhaps in another process, has to know
            failures.append(error)  # else Hydra would put a line of its own before ours

    return job


def _job(composed: DictConfig) -> None:
    """One job, in the directory that is made for it."""
    from kdrun import config, startup

    given = _plain(composed)
    checked = config.check(given, given)  # a sweep's combination of values is seen here for the first time
    config.check_together(checked, HydraConfig.get().overrides.task)
    startup.log_to_terminal()
    startup.load_tensorflow()
    from kdrun import stages

    stages.run(checked, Path(HydraConfig.get().runtime.output_dir))


def _plain(composed: DictConfig) -> dict:
    hydra_left_out = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    return OmegaConf.to_container(hydra_left_out, resolve=True, throw_on_missing=True)


def _reference(choices: list[str]) -> dict:
    """The config of some choices of groups with nothing else set, as it stands in the files."""
    kept = [choice for choice in choices if not choice.startswith(("hydra/", "experiment="))]
    return OmegaConf.to_container(hydra.compose("config", kept), resolve=False)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _unreadable(override: str) -> InputError:
    return InputError(
        f"{override}: cannot be read as an override. A command line has key=value; lists go in brackets, and quotes "
        "around the whole word."
    )


def _explained(error: Exception, arguments: list[str]) -> InputError:
    """Hydra's and OmegaConf's errors in a line of our own."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, given = str(error.missing_cfg_file).rpartition("/")
        return InputError(f"{group}={given}: there is no such {group}. Allowed: {', '.join(sorted(error.options))}.")
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    instead = re.search(r"Could not override '([^']+)'\.\s*Did you mean to override ([^?]+)\?", str(error))
    if instead:
        return InputError(f"{instead[1]}: there is no such key. Did you mean {instead[2].strip()}?")
    unknown = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^'=]+)", str(error))
    if unknown:
        from kdrun import config

        groups = [a for a in arguments if "=" in a and (config_dir() / a.split("=")[0].split("@")[0]).is_dir()]
        try:
            with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
                known = dict(config.flatten(_reference(groups)))
        except HydraException:  # a second mistake, in a choice of groups
            known = {}
        return config.unknown_key(unknown[1], known)
    cause = error.__cause__ or error
    if isinstance(cause, MissingMandatoryValue):
        key = re.search(r"[\w.]+$", str(getattr(cause, "full_key", None) or cause).strip())[0]
        return InputError(f"{key} must be given. Write {key}=VALUE.")
    line = " ".join(str(error).split())
    return InputError(f"{line} See kdrun --help.")
