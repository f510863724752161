"""The plan of a command line: its jobs, checked before anything is made, and where they are written."""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdrun import plugins, registry
from kdrun.cli import answer, hydra_keys, offers, resuming
from kdrun.cli.compose import CONFIG, compose, config_dir, dictionaries, parsed, plain
from kdrun.cli.explain import unreadable
from kdrun.cli.hydra_keys import EXTRAS
from kdrun.commands import quoted
from kdrun.config import schema
from kdrun.config.keys import Config
from kdrun.config.mistakes import UnknownKey
from kdrun.errors import InputError
from kdrun.runs import directory, sweeps
from kdrun.runtime import devices
from kdrun.runtime.workers import places

# what a search goes over if the command line does not say
SEARCHED = [
    "temperature=tag(log,interval(1,50))",
    "alpha=interval(0.05,1)",
    "++student.optimizer.learning_rate=tag(log,interval(1e-4,1e-2))",
]


class Request(NamedTuple):
    """What a command line asks for: its overrides and those of the user's own folder, the last job as Hydra composes it
    and as plain values; whether these are a completed run's that is to go on."""

    options: argparse.Namespace
    searched: Sequence[str]
    composed: DictConfig
    values: Config
    is_growing: bool = False


class Place(NamedTuple):
    """Where it is written: the folder; of a run, whether it is new, and whether another run goes on in it; of a sweep,
    the sweep, and further overrides."""

    folder: str = "."
    is_new: bool = False
    goes_on: bool = False
    sweep: sweeps.Sweep | None = None
    overrides: Sequence[str] = ()


def check_request(options: argparse.Namespace, flags: Sequence[str], searched: Sequence[str]) -> Request:
    """Check every job that the command line asks for. `flags` are those that an error's command repeats, `searched` the
    overrides of the user's own folder. Raises InputError, resuming.Completed, or what Hydra raises."""
    from kdrun import stages

    growing, identities = False, dict[str | None, list[dict | None]]()
    is_json = answer.is_json(options.overrides)
    first = _with_files_words(options, searched)
    for key, job in _jobs(options.overrides) if options.multirun else [(None, options.overrides)]:
        composed = first or compose([*job, *searched], options.config_name or CONFIG)
        first = None
        values = _load(composed, job)
        answer.check_is_said(values, is_json)
        if values["resume"] not in (None, "auto"):
            if options.multirun:
                raise InputError("resume: a sweep's jobs go on with resume=auto, each with its own run.")
            keys = [word.get_key_element().lstrip("+") for word in parsed(job)]
            values, growing = resuming.load_saved(values["resume"], values, keys)
        stages.check(values, [*flags, *job])
        if options.multirun and values["cluster"]:
            raise InputError(f"cluster={values['cluster']} is for one job, not for a sweep. Leave -m out, or cluster.")
        if options.multirun:
            identities.setdefault(key, []).append(stages.identity(values))
    if options.multirun:
        _say_what_changes_nothing(identities, values["stage"])
    return Request(options, searched, composed, values, growing)


def _with_files_words(options: argparse.Namespace, searched: Sequence[str]) -> DictConfig | None:
    """Add to the command line what config files ask for, or what it leaves out of them; returns the first job's config
    where that is as the command line had it before."""
    given = {override.get_key_element().lstrip("+"): override for override in parsed(options.overrides)}
    (_, first), *_ = _jobs(options.overrides)
    composed = compose([*first, *searched], options.config_name or CONFIG)
    if composed.hydra.mode == RunMode.MULTIRUN:
        options.multirun = True
    words = _files_sweep(composed, given) if options.multirun else []
    words += _without_presets_study(composed, given)
    check_words(words)
    options.overrides = [*options.overrides, *words]
    is_swept = any(override.is_sweep_override() for override in given.values())
    return None if words or (is_swept and not options.multirun) else composed


def _files_sweep(composed: DictConfig, given: Mapping[str, Override]) -> list[str]:
    """What a config file sweeps over (hydra.sweeper.params) and the command line does not name, as its words."""
    if composed.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return []
    params = composed.hydra.sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in params.items() if str(key) not in given]


def _without_presets_study(composed: DictConfig, given: Mapping[str, Override]) -> list[str]:
    """The words that leave out a preset's seeds, teachers and controls, which are for its pipeline: where the command
    line has another stage or sweeps over seed, and does not name them."""
    is_pipeline = "stage" not in given and not ("seed" in given and given["seed"].is_sweep_override())
    if "experiment" not in given or "resume" in given or is_pipeline:
        return []
    without = {"seeds": "seeds=null", "teachers": "teachers=null", "controls": "controls=none"}
    return [word for key, word in without.items() if key not in given and composed.get(key)]


def find_place(request: Request) -> Place:
    """Make or find the run directory, or the sweep's folder. Raises InputError."""
    composed, values, overrides = request.composed, request.values, request.options.overrides
    if request.options.multirun:
        return _sweep_place(composed, values, overrides)
    if values["resume"] not in (None, "auto"):
        run_dir = Path(values["resume"])
        if request.is_growing:
            run_dir = resuming.grow(run_dir, values)
        return Place(str(run_dir), goes_on=True)
    if values["sweep"] is not None:
        raise InputError(f"sweep={values['sweep']} is the name of a sweep. Add -m, or leave it out.")
    if any(override.startswith("hydra.run.dir=") for override in overrides):
        if values["resume"] == "auto":
            raise InputError("hydra.run.dir and resume=auto both say where to write. Leave one of them out.")
        run_dir = Path(os.path.expanduser(composed.hydra.run.dir))
        directory.check_below("hydra.run.dir", run_dir, values["outputs"])
        directory.check_unused(run_dir)
        return Place(str(run_dir), is_new=not run_dir.exists())
    found = resuming.find_interrupted(values) if values["resume"] == "auto" else None
    if found:
        return Place(str(found), goes_on=True)
    return Place(str(directory.create(values["outputs"], values["stage"])), is_new=True)


def check_words(overrides: Sequence[str]) -> None:
    """Raises InputError, or what Hydra raises, for overrides that are not to be composed."""
    for word in overrides:
        _check_word(word)


def _check_word(word: str) -> None:
    """Raises InputError, or what Hydra raises, for an override that is not to be composed."""
    if word.startswith("="):  # the one that Hydra's own reading lets pass
        raise unreadable(word)
    group = word.partition("=")[0].partition("@")[0]
    if word.endswith("=null") and (config_dir() / group).is_dir():  # for which Hydra has a traceback
        raise InputError(
            f"{word}: a choice cannot be null. Allowed: {', '.join(offers.names(group))}. Or leave it out."
        )
    try:
        (override,) = parsed([word])
    except HydraException as error:
        raise unreadable(word) from error
    hydra_keys.check(override)
    given = override.value() if not override.is_sweep_override() and not override.is_delete() else None
    for name in given if isinstance(given, list) else [given]:
        if (config_dir() / group).is_dir() and isinstance(name, bool | int | float):
            raise InputError(f"{word}: there is no such {group}. Allowed: {', '.join(offers.names(group))}.")
    key = str(override.key_or_group)
    if key in _NAMES and not override.is_delete():
        group = key.removesuffix(".name")
        choice = f"model@{group}" if group.endswith(".model") else group
        raise InputError(
            f"{key} cannot be set by hand, got {override.value()!r}: it is its group's. "
            f"Write {choice}={override.value()}."
        )


# a name that says whose keys stand beside it: its group's to choose
_NAMES = (
    "data.name",
    "optimizer.name",
    *(f"{role}.{group}.name" for role in ("teacher", "student") for group in ("model", "optimizer")),
)


def _load(composed: DictConfig, job: Sequence[str]) -> Config:
    """A composed config's values, checked one by one; a file that its objective is in is run."""
    given = plain(composed)
    if not plugins.are_loaded(map(str, given.get("plugins") or ())):
        raise InputError(
            f"plugins={given['plugins']}: a config file names code, which is run only if the command line names it. "
            "Add plugins=[FILE] to it."
        )
    if isinstance(given.get("objective"), Mapping) and "module" in given["objective"]:
        if given.get("resume") not in (None, "auto"):
            resuming.check_module(given["resume"], given["objective"]["module"])
        _load_objective(given["objective"])
    try:
        return schema.load(given)
    except UnknownKey as error:
        preset = composed.hydra.runtime.choices.get("experiment")
        named = [word.get_key_element().lstrip("+~") for word in parsed(job)]
        if preset and not any(error.key == name or error.key.startswith(f"{name}.") for name in named):
            advice = f"experiment={preset} sets it: add ~{error.key}, or choose another preset."
            raise InputError(f"{error} {advice}") from error
        raise


def _load_objective(objective: Mapping) -> None:
    plugins.load([objective["module"]], "objective.module")
    for name, keys in objective.items():
        if isinstance(keys, Mapping) and not registry.has("objective", name):
            raise InputError(
                f"objective.module: {objective['module']} registers no objective {name}. Put "
                f'@register("objective", "{name}") above its function.'
            )


def _say_what_changes_nothing(identities: Mapping[str | None, list[dict | None]], stage: str) -> None:
    """Name the swept keys whose every value gives the same training as the first one."""
    (first,) = identities[None]
    for key, of_values in identities.items():
        if key is not None and first is not None and all(each == first for each in of_values):
            print(
                f"kdrun: {key} changes nothing that stage={stage} depends on: its jobs will be the same training again "
                "and again. Leave it out, unless that is what you want.",
                flush=True,
            )


_OF_A_PROCESS = {"devices", "threads"}  # keys of which each value needs a process of its own


def _sweep_place(composed: DictConfig, values: Config, overrides: list[str]) -> Place:
    """Where a sweep is written, and what its launcher and sweeper are set to beside their own defaults.

    Its jobs' own folders are ours to choose (see sweeps.job_dir), not Hydra's.
    """
    from kdrun.stages import chain, work
    from kdrun.teachers import sources

    choices = [composed.hydra.runtime.choices[group] for group in ("hydra/launcher", "hydra/sweeper")]
    given = Path(os.path.expanduser(composed.hydra.sweep.dir))
    folder = Path(values["outputs"]) / "sweeps" / values["sweep"] if values["sweep"] else given
    directory.check_below("hydra.sweep.dir", folder, values["outputs"])
    own = [f"hydra.sweep.dir={quoted(str(folder))}", "hydra.sweep.subdir=.", "hydra.output_subdir=null"]
    if choices[1] == "basic":
        own.append("hydra.sweeper.params=null")  # they are among the overrides: see check_request
    of_one = devices.count(values["devices"])
    own += [preset for choice in choices for preset in _presets(choice, overrides, of_one)]
    stage = registry.get("stage", values["stage"])
    role: Literal["teacher", "student"] = stage.role or "student"
    if choices[1] == "optuna" and values[role]["train_on_validation"]:
        raise InputError(
            f"A search minimises the validation cross-entropy, which means nothing where {role}.train_on_validation "
            f"is true. Add {role}.train_on_validation=false."
        )
    asked = parsed(overrides)
    its_own = not sources.are_given(values) and sources.are_needed(values)
    if choices[1] == "optuna" and stage.takes_teachers and its_own:
        # the teacher of this config, once: what is searched is the student's, and no trial is to look for another one
        own += [f"teacher.run={quoted(str(teacher))}" for teacher in sources.resolve(values)]
    if choices[1] == "optuna" and not any(override.is_sweep_override() for override in asked):
        own += SEARCHED
        asked += parsed(SEARCHED)
    swept = [override for override in asked if override.is_sweep_override()]
    total = composed.hydra.sweeper.get("n_trials")
    if choices[1] == "basic":
        total = math.prod(len(set(override.sweep_string_iterator())) for override in swept)
    keys = [override.get_key_element().lstrip("+") for override in swept]
    folder.mkdir(parents=True, exist_ok=True)  # a search keeps its trials in there
    workers = 0
    if choices == ["basic", "basic"]:  # else another launcher has processes of its own, or a search waits for each
        threads = work.threads_beside(values)
        workers = places(values["workers"], total, threads, chain.bytes_of(values), of_one)
        if workers == 1 and not _OF_A_PROCESS & set(keys):
            workers = 0
    sweep = sweeps.Sweep(str(folder), keys, total, sweeps.new_command(), workers)
    return Place(str(folder), sweep=sweep, overrides=own)


def _presets(choice: str, overrides: list[str], devices_of_one: int) -> list[str]:
    """Overrides from conf/hydra/presets for a launcher or a sweeper, except of keys that the command line has; each of
    its jobs is spread over so many devices."""
    if choice not in EXTRAS:
        return []
    given = {override.lstrip("+").split("=")[0] for override in overrides}
    preset = dictionaries(OmegaConf.load(config_dir() / "hydra" / "presets" / f"{choice}.yaml"), resolved=False)
    values = {f"hydra.{key}": value for key, value in schema.flatten(preset)}
    if here := devices.visible():  # a job on its GPUs, instead of on each core; see devices.pin
        values |= {
            "joblib": {"hydra.launcher.n_jobs": max(1, len(here) // devices_of_one)},
            "submitit_local": {"hydra.launcher.gpus_per_node": len(here)},  # it would hide them
            "ray": {"hydra.launcher.ray.remote.num_gpus": devices_of_one},
        }.get(choice, {})
    return [
        f"++{key}={quoted(value) if isinstance(value, str) else value}"
        for key, value in values.items()
        if key not in given
    ]


def _jobs(overrides: list[str]) -> list[tuple[str | None, list[str]]]:
    """Overrides of jobs in which each swept value occurs once: to check values, their combinations are not needed.

    The first job has each key's first value; of the others comes the key beside it whose value differs.
    """
    given = parsed(overrides)
    fixed = [hydra_keys.word_of(o) for o in given if not o.is_sweep_override()]
    sweeps = [
        [f"{hydra_keys.word_of(o).split('=')[0]}={value}" for value in o.sweep_string_iterator()]
        for o in given
        if o.is_discrete_sweep()
    ]
    first = [values[0] for values in sweeps]
    jobs: list[tuple[str | None, list[str]]] = [(None, fixed + first)]
    for place, values in enumerate(sweeps):
        key = values[0].partition("=")[0].lstrip("+")
        jobs += [(key, fixed + first[:place] + [value] + first[place + 1 :]) for value in values[1:]]
    return jobs
