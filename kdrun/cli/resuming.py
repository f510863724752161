"""The run that a command goes on with, and its config. Neither TensorFlow nor NumPy before the values are good."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrun import registry, stages
from kdrun.config import schema
from kdrun.config.keys import Config
from kdrun.config.schema import for_role
from kdrun.errors import InputError
from kdrun.objectives import selection
from kdrun.runs import directory
from kdrun.runs import record as runs
from kdrun.runs.identity import FORMAT
from kdrun.storage import files, manifest

_EPOCHS = ("teacher.epochs", "student.epochs", "distill.epochs")
_CAN_GROW = ("epochs", *_EPOCHS)
_OF_A_RUN = {*_CAN_GROW, "teacher.run", "cache_dir"}  # without which a config is none of a run

# what can be given anew when a run goes on: it does not change a single bit of the result
FREE = (
    "resume",
    "outputs",
    "checkpoint.every_minutes",
    "tensorboard.histograms",
    "tracker.tensorboard.histograms",
    "tracker.mlflow.uri",
    "tracker.mlflow.experiment",
    "tracker.mlflow.wait_seconds",
    "tracker.wandb.project",
    "tracker.wandb.mode",
    "tracker.wandb.folder",
    "tracker.wandb.wait_seconds",
    "tracker.trackio.project",
    "tracker.trackio.folder",
    "tracker.trackio.wait_seconds",
    "measure_latency",
    "compare.margin",
    "cache_dir",
    "data.store",
    "data.transfer_store",
    "reuse",
    "workers",
    "cluster",
    "task",
    "cluster_timeout",
    "print",
    "export.format",
    "export.quantize",
    "export.output",
    "export.calibration_images",
    "export.most_loss",
    "teacher.time_limit",
)
# a run that began before one of these came has it as it is now
_CAME_LATER = {*(key.partition(".")[0] for key in FREE if "." in key), "plugins", "tracker", "workers", "print"}
_CAME_LATER |= {"cluster", "task", "cluster_timeout"}
_CAME_LATER |= {"seeds", "teachers", "controls", "arms"}
# what is as one of these keys says, unless it is given itself
_FOLLOWING = {"tensorboard.histograms": "tracker.tensorboard.histograms"}


class Completed(Exception):
    """The run to go on with, in `run_dir`, has nothing left to do."""

    def __init__(self, run_dir: str):
        super().__init__(f"{run_dir} is completed; there is nothing left to do.")
        self.run_dir = Path(run_dir)


def find_interrupted(config: Mapping) -> Path | None:
    """For resume=auto: the newest interrupted run of the same config, below its outputs."""
    identity = stages.identity(config)
    return runs.interrupted(config["outputs"], identity) if identity else None


def load_saved(run_dir: str, given: Mapping, keys: Sequence[str]) -> tuple[Config, bool]:
    """For resume=RUN_DIR: the run's own config, with those `keys` that were given on the command line changed in it;
    and whether the run is completed, and is to grow.

    `given` is the config of the command line. Raises Completed for a completed run that is not to grow, and InputError
    for a run that cannot go on and for keys that would change its result.
    """
    record = runs.settled(run_dir)
    stage = _check_can_go_on(run_dir, record)
    is_completed = record["status"] == "completed"
    if is_completed:
        _check_is_to_grow(run_dir, record, keys)
    came_since = {name: given[name] for name in _CAME_LATER & given.keys() - record["config"].keys()}
    began_with = {**schema.with_later_keys(record["config"]), **came_since}
    values = dict(schema.flatten(began_with))
    asked = dict(schema.flatten(for_role(given, stage.role)))  # the record has it like that, too
    if not isinstance(values.get("outputs"), str) or not values.keys() >= _OF_A_RUN:
        raise InputError(f"resume: the config in {run_dir}'s run.json lacks keys of a run. Start a new run.")
    code = _named_code(run_dir, record, given, keys)
    otherwise_checked = {"tracker", *code, *(["objective"] if "objective.module" in code else [])}
    _check_given(run_dir, [key for key in keys if key not in otherwise_checked], values, asked)
    changed: dict[str, Any] = {"task": None}  # the record's is the chief's
    changed |= _asked_anew(keys, asked) | {"resume": str(run_dir), **code} | _as_it_began(record, values)
    changed |= _more_epochs(stage, values, {key: asked[key] for key in keys if key in _CAN_GROW})
    config = _with(began_with, changed)
    if "tracker" in keys:  # others, or the same with other keys
        config["tracker"] = given["tracker"]
    _check_below_outputs(run_dir, config["outputs"])
    if is_completed:
        _check_grows(run_dir, record, config, stage)
    return schema.load(config), is_completed


def grow(run_dir: Path, config: Mapping) -> Path:
    """A new run directory that goes on from the last state of a completed run: its record names that run."""
    new = directory.create(config["outputs"], config["stage"])
    state = _last_state(run_dir)
    assert state is not None  # _check_grows has seen one
    (new / "checkpoints").mkdir()
    shutil.copytree(state, new / "checkpoints" / state.name)
    record = {key: value for key, value in runs.read(run_dir).items() if key not in ("results", "files", "finished")}
    goes_on = {"run": str(run_dir), "epochs": record["identity"]["epochs"]}
    record |= {"status": "interrupted", "goes_on_from": goes_on, "command": None}
    files.write_json(new / "run.json", manifest.sealed(record))
    return new


def _last_state(run_dir: Path) -> Path | None:
    found = [path for path in (run_dir / "checkpoints").glob("state-*") if path.name.removeprefix("state-").isdecimal()]
    return max(found, key=lambda path: int(path.name.removeprefix("state-")), default=None)


def _check_can_go_on(run_dir: str, record: Mapping) -> registry.Stage:
    stage = runs.stage_of(record)
    if stage is None or stage.identity is None:
        raise InputError(f"resume: {run_dir} is a {record['stage']} run, which is short. Run its command again.")
    if record["status"] == "diverged":
        raise InputError(f"resume: {run_dir} diverged, and would do so again. Start a new run with other keys.")
    if record["status"] == "running":
        raise InputError(f"resume: {run_dir} is being written by another kdrun ({runs.writer(record)}). Wait for it.")
    identity = record.get("identity")
    began = identity.get("format", FORMAT) if isinstance(identity, Mapping) else FORMAT
    if record["status"] != "completed" and began != FORMAT:
        raise InputError(
            f"resume: {run_dir} was begun by another kdrun (format {began}, this one has {FORMAT}), whose numbers "
            "are not this one's. Go on with the kdrun that began it, or start a new run."
        )
    return stage


def _check_is_to_grow(run_dir: str, record: Mapping, keys: Sequence[str]) -> None:
    """Raises Completed for a completed run of which no other epochs are asked, and InputError for a damaged one."""
    if changed := runs.damaged(Path(run_dir), {"files": {}, **record}):
        raise InputError(f"resume: {run_dir} is completed, but {', '.join(changed)} was changed. Start a new run.")
    if not any(key in _CAN_GROW for key in keys):
        raise Completed(run_dir)


def _check_given(run_dir: str, keys: Sequence[str], values: Mapping, asked: Mapping) -> None:
    """Raises InputError where one of `keys` is none of the run's, or is asked to be what changes its result."""
    for key in keys:
        if key not in values or key not in asked:
            raise InputError(f"{key} cannot be chosen anew: a run goes on with its own config. Leave it out.")
        if key not in FREE and key not in _CAN_GROW and asked[key] != values[key]:
            raise InputError(
                f"{key} cannot change in a run that goes on: it is {values[key]!r} in {run_dir}, got {asked[key]!r}. "
                "Leave it out, or start a new run."
            )


def _check_below_outputs(run_dir: str, outputs: str) -> None:
    if not Path(run_dir).resolve().is_relative_to(Path(outputs).resolve()):
        raise InputError(
            f"resume: {run_dir} is not below its outputs folder {outputs}, seen from here. Go to the folder where it "
            "was begun, or give outputs=FOLDER."
        )


def _check_grows(run_dir: str, record: Mapping, config: Mapping, stage: registry.Stage) -> None:
    """Raises InputError where a completed run has nothing to go on from, or would end again at once."""
    training = config[stage.trains]
    if record["identity"].get("format") != FORMAT:
        raise InputError(f"resume: {run_dir} was made by another kdrun, whose numbers are not this one's. Start anew.")
    if training["epochs"] == record["identity"]["epochs"]:
        raise Completed(run_dir)
    if (patience := training["patience"]) and record["results"]["validation"]["last"]["epoch"] < (
        record["identity"]["epochs"]
    ):
        raise InputError(f"resume: {run_dir} ended early by patience={patience}. More epochs would change nothing.")
    if _last_state(Path(run_dir)) is None:
        raise InputError(f"resume: {run_dir} has no saved training state to go on from. Start a new run.")


def _named_code(run_dir: str, record: Mapping, given: Mapping, keys: Sequence[str]) -> dict[str, Any]:
    """The files of code that a run uses, as this command line names them: a record is no reason to run one.

    Raises InputError where it names none, or one that is not what the run began with.
    """
    named: dict[str, Any] = {}
    if "plugins" in keys:
        named["plugins"] = given["plugins"]
    elif began := record["config"].get("plugins"):
        raise InputError(
            f"resume: {run_dir} uses code of the user's own, {', '.join(map(str, began))}, which is run only if the "
            "command line names it. Add plugins=[FILE]."
        )
    if "module" not in record["config"].get("objective", {}):
        return named
    names = ",".join(selection.chosen(record["config"]["objective"]))
    file = record["config"]["objective"]["module"]
    if "objective.module" not in keys:
        raise InputError(
            f"resume: {run_dir} uses code of the user's own, {file}, which is run only if the command line names it. "
            f"Add objective={names} objective.module=FILE."
        )
    return {**named, "objective.module": given["objective"]["module"]}


def check_module(run_dir: str, module: str) -> None:
    """Raises InputError where a file, before it is run, is not the one that a run to go on with began with."""
    identity = runs.read(run_dir).get("identity") or {}
    recorded = {
        each["objective"].get("module") for each in (identity, *identity.get("stages", ())) if "objective" in each
    }
    if not Path(module).is_file() or files.sha256(Path(module)) not in recorded:
        raise InputError(
            f"objective.module={module} is not the file that {run_dir} began with: its sha256 is another. Give that "
            "one, or start a new run."
        )


def _asked_anew(keys: Sequence[str], asked: Mapping) -> dict[str, Any]:
    """Changes of what is free to be another one, and of what follows it."""
    free = {key: asked[key] for key in keys if key in FREE}
    return free | {each: asked[each] for key, each in _FOLLOWING.items() if key in keys and each in asked}


def _as_it_began(record: Mapping, values: Mapping) -> dict[str, Any]:
    """Changes that keep what a run found when it began: its teacher, and the machine's threads and devices."""
    changed: dict[str, Any] = {}
    teachers = [teacher["run"] for teacher in record.get("teachers", ())]
    named = values.get("teacher.file") or values["teacher.run"] != "auto"
    if not named and teachers and Path(teachers[0]).is_dir():
        changed["teacher.run"] = teachers[0]  # not a newer one like it
    if "threads" in values and "threads" in record:
        changed["threads"] = record["threads"]  # whatever this machine has: it is part of what makes bits
    if "devices" in values and "devices" in record:
        changed["devices"] = record["devices"]
    return changed


def _more_epochs(stage: registry.Stage, values: Mapping, asked: Mapping) -> dict:
    """Changes of every key that an override of epochs reaches."""
    changed: dict[str, int] = {}
    for key, epochs in asked.items():
        reached = [key, *(role for role in _EPOCHS if values[role] == values[key])] if key == "epochs" else [key]
        changed |= dict.fromkeys(reached, epochs)
    for key, epochs in changed.items():
        if epochs < values[key]:
            raise InputError(f"{key} can only grow in a run that goes on: it is {values[key]}, got {epochs}.")
        if epochs > values[key] and not stage.trains:
            raise InputError(
                f"{key} cannot grow in stage={stage.name}, parts of which may be done: it is {values[key]}, got "
                f"{epochs}. Go on with the run of one of its parts, or start a new one."
            )
    return changed


def _with(config: Mapping, changed: Mapping, prefix: str = "") -> dict:
    """A config with the values of some dotted keys changed."""
    return {
        name: _with(value, changed, f"{prefix}{name}.")
        if isinstance(value, Mapping)
        else changed.get(prefix + name, value)
        for name, value in config.items()
    }
