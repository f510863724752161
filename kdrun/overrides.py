"""A command line's overrides: composed and checked before anything is made, and refused in words of our own."""

import argparse
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from kdrun import config, gpus, resuming, runs, sweeps
from kdrun.commands import quoted
from kdrun.errors import InputError
from kdrun.objectives import choosing


def config_dir() -> Path:
    """The folder of shipped config files: inside an installed package, beside it in a checkout."""
    installed = Path(__file__).with_name("conf")
    return installed if installed.is_dir() else Path(__file__).parent.with_name("conf")


def help_text() -> str:
    """The text of --help."""
    text = OmegaConf.load(config_dir() / "hydra" / "help" / "kdrun.yaml").template
    return text.replace("$$", "$").rstrip()


# what hydra/launcher and hydra/sweeper may choose beside Hydra's own, and the extra that brings it
EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray", "optuna": "optuna"}

# what a search goes over if the command line does not say
SEARCHED = [
    "temperature=tag(log,interval(1,50))",
    "alpha=interval(0.05,1)",
    "optimizer.learning_rate=tag(log,interval(1e-4,1e-2))",
]


class Checked(NamedTuple):
    """Further overrides, for the run directory; the config, where it is not the one that Hydra composes; the sweep."""

    overrides: list[str]
    config: dict | None = None
    sweep: sweeps.Sweep | None = None


def checked(options: argparse.Namespace) -> Checked:
    """Check every job that the command line asks for, and make or find the run directory.

    Raises InputError, resuming.Completed, or what Hydra raises.
    """
    for flag in ("experimental_rerun", "config_path"):  # the one unpickles a file, the other leaves kdrun's config out
        if getattr(options, flag):
            raise InputError(f"--{flag.replace('_', '-')} is not for kdrun. Give overrides, or --config-dir.")
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
            group = config_dir() / override.partition("=")[0].partition("@")[0]
            if override.endswith("=null") and group.is_dir():  # for which Hydra has a traceback
                allowed = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
                raise InputError(f"{override}: a choice cannot be null. Allowed: {allowed}. Or leave it out.")
            if override.lstrip("+~").startswith(("hydra.sweep.subdir", "hydra.output_subdir")):
                raise InputError(f"{override}: kdrun names these folders itself. Leave it out.")
        for job in _jobs(overrides) if options.multirun else [overrides]:
            composed = hydra.compose(options.config_name or "config", job + searched, return_hydra_config=True)
            choices = [f"{group}={choice}" for group, choice in composed.hydra.runtime.choices.items()]
            given = plain(composed)
            if composed.hydra.runtime.choices.get("objective") is None:  # a list, which Hydra does not name there
                choices.append(_objectives(given))
            values = config.check(given, _reference(choices + searched))
            resumes = values["resume"] not in (None, "auto")
            if resumes:
                if options.multirun:
                    raise InputError("resume: a sweep's jobs go on with resume=auto, each with its own run.")
                values = _resumed(values, job, searched)
            from kdrun import fitting  # reads data, with NumPy: not before the values are good

            fitting.check(values, flags + job)
    if options.multirun:
        return _swept(composed, values, overrides)
    if resumes:
        return Checked(_going_on(values["resume"]), values)
    if values["sweep"] is not None:
        raise InputError(f"sweep={values['sweep']} is the name of a sweep. Add -m, or leave it out.")
    if any(override.startswith("hydra.run.dir=") for override in overrides):
        if values["resume"] == "auto":
            raise InputError("hydra.run.dir and resume=auto both say where to write. Leave one of them out.")
        runs.check_below("hydra.run.dir", Path(composed.hydra.run.dir), values["outputs"])
        runs.check_unused(Path(composed.hydra.run.dir))
        return Checked([])
    found = resuming.interrupted(values) if values["resume"] == "auto" else None
    if found:
        return Checked(_going_on(str(found)))
    run_dir = runs.create(values["outputs"], values["stage"])
    return Checked([f"hydra.run.dir={quoted(str(run_dir))}"])


def _swept(composed: DictConfig, values: Mapping, overrides: list[str]) -> Checked:
    """Where a sweep is written, and what its launcher and sweeper are set to beside their own defaults.

    Its jobs' own folders are ours to choose (see sweeps.job_dir), not Hydra's.
    """
    choices = [composed.hydra.runtime.choices[group] for group in ("hydra/launcher", "hydra/sweeper")]
    folder = Path(values["outputs"]) / "sweeps" / values["sweep"] if values["sweep"] else Path(composed.hydra.sweep.dir)
    runs.check_below("hydra.sweep.dir", folder, values["outputs"])
    own = [f"hydra.sweep.dir={quoted(str(folder))}", "hydra.sweep.subdir=.", "hydra.output_subdir=null"]
    own += [preset for choice in choices for preset in _presets(choice, overrides)]
    role = runs.role_of(values["stage"])
    if choices[1] == "optuna" and values[role]["train_on_validation"]:
        raise InputError(
            f"A search minimises the validation cross-entropy, which means nothing where {role}.train_on_validation "
            f"is true. Add {role}.train_on_validation=false."
        )
    parsed = OverridesParser.create().parse_overrides(overrides)
    if choices[1] == "optuna" and not any(override.is_sweep_override() for override in parsed):
        own += SEARCHED
        parsed += OverridesParser.create().parse_overrides(SEARCHED)
    swept = [override for override in parsed if override.is_sweep_override()]
    total = composed.hydra.sweeper.get("n_trials")
    if choices[1] == "basic":
        total = math.prod(len(set(override.sweep_string_iterator())) for override in swept)
    keys = [override.get_key_element() for override in swept]
    folder.mkdir(parents=True, exist_ok=True)  # a search keeps its trials in there
    return Checked(own, sweep=sweeps.Sweep(str(folder), keys, total))


def _presets(choice: str, overrides: list[str]) -> list[str]:
    """Overrides from conf/hydra/presets for a launcher or a sweeper, except of keys that the command line has."""
    if choice not in EXTRAS:
        return []
    given = {override.lstrip("+").split("=")[0] for override in overrides}
    preset = OmegaConf.to_container(
        OmegaConf.load(config_dir() / "hydra" / "presets" / f"{choice}.yaml"), resolve=False
    )
    values = {f"hydra.{key}": value for key, value in config.flatten(preset)}
    if here := gpus.visible():  # a job on each GPU, instead of on each core; see gpus.pin
        values |= {
            "joblib": {"hydra.launcher.n_jobs": len(here)},
            "submitit_local": {"hydra.launcher.gpus_per_node": len(here)},  # it would hide them
            "ray": {"hydra.launcher.ray.remote.num_gpus": 1},
        }.get(choice, {})
    return [
        f"++{key}={quoted(value) if isinstance(value, str) else value}"
        for key, value in values.items()
        if key not in given
    ]


def _going_on(run_dir: str) -> list[str]:
    return [f"hydra.run.dir={quoted(run_dir)}", "hydra.output_subdir=null"]  # which would be written over


def _resumed(given: Mapping, overrides: list[str], searched: list[str]) -> dict:
    """The config of the run that resume=RUN_DIR names, checked like any other."""
    keys = [override.get_key_element() for override in OverridesParser.create().parse_overrides(overrides)]
    saved = resuming.saved(given["resume"], given, keys)
    try:
        names = {
            "stage": saved["stage"],
            "data": saved["data"]["name"],
            "model@teacher.model": saved["teacher"]["model"]["name"],
            "model@student.model": saved["student"]["model"]["name"],
            "optimizer": saved["optimizer"]["name"],
            "objective": _objectives(saved).partition("=")[2],
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{given['resume']}: the config in its run.json lacks {error}. It was changed.") from error
    for group, name in names.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w+|\[\w+(,\w+)*\]", name):
            raise InputError(f"{given['resume']}: {group}={name!r} in its run.json cannot be. It was changed.")
    try:
        reference = _reference([f"{group}={name}" for group, name in names.items()] + searched)
    except MissingConfigException as error:
        raise InputError(
            f"{given['resume']}: {error.missing_cfg_file} is not kdrun's own. Add the --config-dir that it began with."
        ) from error
    return config.check(saved, reference)


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


def _objectives(given: Mapping) -> str:
    """The override that chooses a config's objectives."""
    names = choosing.chosen(given.get("objective") or {})
    if not names:
        raise InputError("objective must name at least one. Write objective=kd.")
    return f"objective=[{','.join(names)}]"


def plain(composed: DictConfig) -> dict:
    """A composed config without Hydra's own part, resolved, as plain dictionaries."""
    hydra_left_out = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    return OmegaConf.to_container(hydra_left_out, resolve=True, throw_on_missing=True)


def _reference(choices: list[str]) -> dict:
    """The config of some choices of groups with nothing else set, as it stands in the files."""
    kept = [choice for choice in choices if not choice.startswith(("hydra/", "experiment=", "control="))]
    return OmegaConf.to_container(hydra.compose("config", kept), resolve=False)


def _unreadable(override: str) -> InputError:
    return InputError(
        f"{override}: cannot be read as an override. A command line has key=value; lists go in brackets, and quotes "
        "around the whole word."
    )


def explained(error: Exception, arguments: list[str]) -> InputError:
    """Hydra's and OmegaConf's errors in a line of our own."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, given = str(error.missing_cfg_file).rpartition("/")
        if group in ("hydra/launcher", "hydra/sweeper") and given in EXTRAS:
            return InputError(
                f"{group}={given} needs more packages: in kdrun's own folder, pip install '.[{EXTRAS[given]}]'"
            )
        return InputError(f"{group}={given}: there is no such {group}. Allowed: {', '.join(sorted(error.options))}.")
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    instead = re.search(r"Could not override '([^']+)'\.\s*Did you mean to override ([^?]+)\?", str(error))
    if instead:
        return InputError(f"{instead[1]}: there is no such key. Did you mean {instead[2].strip()}?")
    unknown = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^'=]+)", str(error))
    if unknown:
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
