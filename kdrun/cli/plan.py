"""A command line's overrides: composed and checked before anything is made, and refused in words of our own."""

import argparse
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from kdrun.cli import hydra_keys, resuming
from kdrun.cli.explain import choices as choices_of
from kdrun.cli.explain import config_dir, reference, unreadable
from kdrun.cli.hydra_keys import EXTRAS
from kdrun.commands import quoted
from kdrun.config import schema as config
from kdrun.errors import InputError
from kdrun.objectives import selection as choosing
from kdrun.runs import record as runs
from kdrun.runs import sweeps
from kdrun.runtime import devices as gpus


def help_text() -> str:
    """The text of --help."""
    text = OmegaConf.load(config_dir() / "hydra" / "help" / "kdrun.yaml").template
    return text.replace("$$", "$").rstrip()


# what a search goes over if the command line does not say
SEARCHED = [
    "temperature=tag(log,interval(1,50))",
    "alpha=interval(0.05,1)",
    "optimizer.learning_rate=tag(log,interval(1e-4,1e-2))",
]


class Asked(NamedTuple):
    """What a command line asks for: its overrides, the last job as Hydra composes it and as plain values; whether these
    are a completed run's that is to go on."""

    options: argparse.Namespace
    composed: DictConfig
    values: dict
    is_growing: bool = False


class Place(NamedTuple):
    """Where it is written: further overrides, for the run directory; the config, where it is not the one that Hydra
    composes; the sweep; the folder that all is written into, and whether it is a run directory that is new."""

    overrides: Sequence[str] = ()
    config: dict | None = None
    sweep: sweeps.Sweep | None = None
    folder: str = "."
    is_new: bool = False


def checked(options: argparse.Namespace) -> Asked:
    """Check every job that the command line asks for. Raises InputError, resuming.Completed, or what Hydra raises."""
    flags, searched = _config_folder(options)
    overrides = options.overrides
    growing = False
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        for word in overrides:
            _check_word(word)
        identities = {}
        for swept, job in _jobs(overrides) if options.multirun else [(None, overrides)]:
            composed = hydra.compose(options.config_name or "config", job + searched, return_hydra_config=True)
            values = _checked_values(composed, job, searched)
            if values["resume"] not in (None, "auto"):
                if options.multirun:
                    raise InputError("resume: a sweep's jobs go on with resume=auto, each with its own run.")
                values, growing = _resumed(values, job, searched)
            from kdrun.stages import checks as fitting  # reads data, with NumPy: not before the values are good

            fitting.check(values, flags + job)
            if options.multirun:
                identities.setdefault(swept, []).append(resuming.identity(values))
    if options.multirun:
        _say_what_changes_nothing(identities, values["stage"])
    return Asked(options, composed, values, growing)


def placed(asked: Asked) -> Place:
    """Make or find the run directory, or the sweep's folder. Raises InputError."""
    composed, values, overrides = asked.composed, asked.values, asked.options.overrides
    if asked.options.multirun:
        return _swept(composed, values, overrides)
    if values["resume"] not in (None, "auto"):
        run_dir = Path(values["resume"])
        if asked.is_growing:
            run_dir = resuming.grown(run_dir, values)
        return Place(_going_on(str(run_dir)), {**values, "resume": str(run_dir)}, folder=str(run_dir))
    if values["sweep"] is not None:
        raise InputError(f"sweep={values['sweep']} is the name of a sweep. Add -m, or leave it out.")
    if any(override.startswith("hydra.run.dir=") for override in overrides):
        if values["resume"] == "auto":
            raise InputError("hydra.run.dir and resume=auto both say where to write. Leave one of them out.")
        run_dir = Path(os.path.expanduser(composed.hydra.run.dir))
        runs.check_below("hydra.run.dir", run_dir, values["outputs"])
        runs.check_unused(run_dir)
        is_new = not run_dir.exists()
        return Place([f"hydra.run.dir={quoted(str(run_dir))}"], folder=str(run_dir), is_new=is_new)
    found = resuming.interrupted(values) if values["resume"] == "auto" else None
    if found:
        return Place(_going_on(str(found)), folder=str(found))
    run_dir = runs.create(values["outputs"], values["stage"])
    return Place([f"hydra.run.dir={quoted(str(run_dir))}"], folder=str(run_dir), is_new=True)


def _config_folder(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The user's own folder of configs: as flags, and as what Hydra composes with it."""
    for flag in ("experimental_rerun", "config_path"):  # the one unpickles a file, the other leaves kdrun's config out
        if getattr(options, flag):
            raise InputError(f"--{flag.replace('_', '-')} is not for kdrun. Give overrides, or --config-dir.")
    if not options.config_dir:
        return [], []
    if not os.path.isdir(options.config_dir):
        raise InputError(f"--config-dir: {options.config_dir} is not a folder. Give one with config files.")
    return ["--config-dir", options.config_dir], [f"hydra.searchpath=[file://{os.path.abspath(options.config_dir)}]"]


def _check_word(word: str) -> None:
    """Raises InputError, or what Hydra raises, for an override that is not to be composed."""
    if word.startswith("="):  # the one that Hydra's own reading lets pass
        raise unreadable(word)
    group = word.partition("=")[0].partition("@")[0]
    if word.endswith("=null") and (config_dir() / group).is_dir():  # for which Hydra has a traceback
        raise InputError(f"{word}: a choice cannot be null. Allowed: {', '.join(choices_of(group))}. Or leave it out.")
    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise unreadable(word) from error
    hydra_keys.check(parsed)


def _checked_values(composed: DictConfig, job: list[str], searched: list[str]) -> dict:
    """A composed config's values, checked one by one."""
    chosen = [f"{group}={choice}" for group, choice in composed.hydra.runtime.choices.items() if group != "tracker"]
    given = plain(composed)
    chosen.append(_trackers(given))
    if composed.hydra.runtime.choices.get("objective") is None:  # a list, which Hydra does not name there
        chosen.append(_objectives(given))
    known = reference(chosen + searched)
    named = {override.get_key_element().lstrip("+~") for override in OverridesParser.create().parse_overrides(job)}
    preset = composed.hydra.runtime.choices.get("experiment")
    for key in dict(config.flatten(given)).keys() - dict(config.flatten(known)).keys() if preset else ():
        if not any(key == name or key.startswith(f"{name}.") for name in named):
            said = config.unknown_key(key, dict(config.flatten(known)))
            raise InputError(f"{said} experiment={preset} sets it: add ~{key}, or choose another preset.")
    return config.check(given, known)


def _say_what_changes_nothing(identities: Mapping[str | None, list[dict | None]], stage: str) -> None:
    """Name the swept keys whose every value gives the same training as the first one."""
    (first,) = identities.pop(None)
    for key, of_values in identities.items():
        if first is not None and all(each == first for each in of_values):
            print(
                f"kdrun: {key} changes nothing that stage={stage} depends on: its jobs will be the same training again "
                "and again. Leave it out, unless that is what you want.",
                flush=True,
            )


def _swept(composed: DictConfig, values: Mapping, overrides: list[str]) -> Place:
    """Where a sweep is written, and what its launcher and sweeper are set to beside their own defaults.

    Its jobs' own folders are ours to choose (see sweeps.job_dir), not Hydra's.
    """
    from kdrun.teachers import checkpoint

    choices = [composed.hydra.runtime.choices[group] for group in ("hydra/launcher", "hydra/sweeper")]
    given = Path(os.path.expanduser(composed.hydra.sweep.dir))
    folder = Path(values["outputs"]) / "sweeps" / values["sweep"] if values["sweep"] else given
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
    if choices[1] == "optuna" and values["stage"] == "distill" and values["teacher"]["run"] == "auto":
        # the teacher of this config, once: what is searched is the student's, and no trial is to look for another one
        own += [f"teacher.run={quoted(str(teacher))}" for teacher in checkpoint.sources(values)]
    if choices[1] == "optuna" and not any(override.is_sweep_override() for override in parsed):
        own += SEARCHED
        parsed += OverridesParser.create().parse_overrides(SEARCHED)
    swept = [override for override in parsed if override.is_sweep_override()]
    total = composed.hydra.sweeper.get("n_trials")
    if choices[1] == "basic":
        total = math.prod(len(set(override.sweep_string_iterator())) for override in swept)
    keys = [override.get_key_element() for override in swept]
    folder.mkdir(parents=True, exist_ok=True)  # a search keeps its trials in there
    return Place(own, sweep=sweeps.Sweep(str(folder), keys, total), folder=str(folder))


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


def _resumed(given: Mapping, overrides: list[str], searched: list[str]) -> tuple[dict, bool]:
    """The config of the run that resume=RUN_DIR names, checked like any other; and whether it was completed, and is to
    go on for more epochs."""
    keys = [override.get_key_element() for override in OverridesParser.create().parse_overrides(overrides)]
    saved, growing = resuming.saved(given["resume"], given, keys)
    try:
        names = {
            "stage": saved["stage"],
            "data": saved["data"]["name"],
            "model@teacher.model": saved["teacher"]["model"]["name"],
            "model@student.model": saved["student"]["model"]["name"],
            "optimizer": saved["optimizer"]["name"],
            "objective": _objectives(saved).partition("=")[2],
            "tracker": _trackers(saved).partition("=")[2],
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{given['resume']}: the config in its run.json lacks {error}. It was changed.") from error
    for group, name in names.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w+|\[(\w+(,\w+)*)?\]", name):
            raise InputError(f"{given['resume']}: {group}={name!r} in its run.json cannot be. It was changed.")
    try:
        known = reference([f"{group}={name}" for group, name in names.items()] + searched)
    except MissingConfigException as error:
        raise InputError(
            f"{given['resume']}: {error.missing_cfg_file} is not kdrun's own. Add the --config-dir that it began with."
        ) from error
    return config.check(saved, known), growing


def _jobs(overrides: list[str]) -> list[tuple[str | None, list[str]]]:
    """Overrides of jobs in which each swept value occurs once: to check values, their combinations are not needed.

    The first job has each key's first value; of the others comes the key beside it whose value differs.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
    sweeps = [
        [f"{o.input_line.split('=')[0]}={value}" for value in o.sweep_string_iterator()]
        for o in parsed
        if o.is_discrete_sweep()
    ]
    first = [values[0] for values in sweeps]
    jobs: list[tuple[str | None, list[str]]] = [(None, fixed + first)]
    for place, values in enumerate(sweeps):
        key = values[0].partition("=")[0].lstrip("+")
        jobs += [(key, fixed + first[:place] + [value] + first[place + 1 :]) for value in values[1:]]
    return jobs


def _objectives(given: Mapping) -> str:
    """The override that chooses a config's objectives."""
    names = choosing.chosen(given.get("objective") or {})
    if not names:
        raise InputError("objective must name at least one. Write objective=kd.")
    return f"objective=[{','.join(names)}]"


def _trackers(given: Mapping) -> str:
    """The override that chooses a config's trackers, perhaps none."""
    trackers = given.get("tracker")
    named = trackers.items() if isinstance(trackers, Mapping) else ()
    names = [name for name, keys in named if isinstance(keys, Mapping) or name in choices_of("tracker")]
    return f"tracker=[{','.join(names)}]"


def plain(composed: DictConfig) -> dict:
    """A composed config without Hydra's own part, resolved, as plain dictionaries."""
    hydra_left_out = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    return OmegaConf.to_container(hydra_left_out, resolve=True, throw_on_missing=True)
