"""Which run a command goes on with, and with which config. Neither TensorFlow nor NumPy before the values are good."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kdrun.config import schema as rules
from kdrun.errors import InputError
from kdrun.objectives import selection as choosing
from kdrun.runs import record as runs
from kdrun.storage import files, manifest

STAGES = (*runs.TRAINING, *runs.CHAINS)  # the others are done in no time
ROLES = tuple(f"{role}.epochs" for role in runs.TRAINING)

# what can be given anew when a run goes on: it does not change a single bit of the result
FREE = (
    "resume",
    "outputs",
    "checkpoint.every_minutes",
    "tensorboard.histograms",
    "tracker.tensorboard.histograms",
    "measure_latency",
    "compare.margin",
    "cache_dir",
    "reuse",
)
_GROUPS = {key.partition(".")[0] for key in FREE if "." in key}  # a run that began before one came has it as it is now
# what is as one of these keys says, unless it is given itself
_FOLLOWING = {"tensorboard.histograms": "tracker.tensorboard.histograms"}


class Completed(Exception):
    """The run to go on with has nothing left to do."""


def identity(config: Mapping) -> dict | None:
    """Everything that the configured stage's result depends on; None for a stage that trains nothing.

    Raises InputError where what it depends on cannot be found.
    """
    from kdrun.data import datasets
    from kdrun.teachers import checkpoint

    stage = config["stage"]
    if stage not in STAGES:
        return None
    dataset_sha256 = datasets.fingerprint(config["data"])
    if stage in runs.CHAINS:
        return runs.chain_identity(config, dataset_sha256)
    sources = checkpoint.sources(config) if stage == "distill" else []
    return runs.identity(config, stage, dataset_sha256, [checkpoint.weights_of(source) for source in sources])


def interrupted(config: Mapping) -> Path | None:
    """For resume=auto: the newest interrupted run of the same config, below its outputs."""
    depends = identity(config)
    return runs.interrupted(config["outputs"], depends) if depends else None


def threads(run_dir: Path, config: Mapping) -> int | str:
    """How many threads an operation is to have: as many as a run that goes on began with, else what the config says."""
    with suppress(InputError):
        return runs.read(run_dir).get("threads", config["threads"])
    return config["threads"]


def saved(run_dir: str, given: Mapping, keys: Sequence[str]) -> tuple[dict, bool]:
    """For resume=RUN_DIR: the run's own config, with those `keys` that were given on the command line changed in it;
    and whether the run is completed, and is to grow.

    `given` is the config of the command line. Raises Completed for a completed run that is not to grow, and InputError
    for a run that cannot go on and for keys that would change its result.
    """
    record = runs.settled(run_dir)
    _check_can_go_on(run_dir, record)
    grows = any(key in ("epochs", *ROLES) for key in keys)
    if record["status"] == "completed":
        if changed := runs.damaged(Path(run_dir), {"files": {}, **record}):
            raise InputError(f"resume: {run_dir} is completed, but {', '.join(changed)} was changed. Start a new run.")
        if not grows:
            raise Completed(f"{run_dir} is completed; there is nothing left to do.")
    came_since = {name: given[name] for name in _GROUPS & given.keys() - record["config"].keys()}
    began_with = {**record["config"], **came_since}
    values = dict(rules.flatten(began_with))
    asked = dict(rules.flatten(runs.seen(given, record["stage"])))  # the record has it like that, too
    if not isinstance(values.get("outputs"), str) or not values.keys() >= {
        "epochs",
        "teacher.run",
        "cache_dir",
        *ROLES,
    }:
        raise InputError(f"resume: the config in {run_dir}'s run.json lacks keys of a run. Start a new run.")
    code = _named_code(run_dir, record, given, keys)
    for key in keys:
        if key in code or (code and key == "objective") or key == "tracker":
            continue
        if key not in values or key not in asked:
            raise InputError(f"{key} cannot be chosen anew: a run goes on with its own config. Leave it out.")
        if key not in FREE and key != "epochs" and key not in ROLES and asked[key] != values[key]:
            raise InputError(
                f"{key} cannot change in a run that goes on: it is {values[key]!r} in {run_dir}, got {asked[key]!r}. "
                "Leave it out, or start a new run."
            )
    changed = {key: asked[key] for key in keys if key in FREE} | {"resume": str(run_dir), **code}
    changed |= {each: asked[each] for key, each in _FOLLOWING.items() if key in keys and each in asked}
    teachers = [teacher["run"] for teacher in record.get("teachers", ())]
    if values["teacher.run"] == "auto" and teachers and Path(teachers[0]).is_dir():
        changed["teacher.run"] = teachers[0]  # not a newer one like it
    changed |= _more_epochs(record, values, {key: asked[key] for key in keys if key == "epochs" or key in ROLES})
    if "threads" in values and "threads" in record:
        changed["threads"] = record["threads"]  # whatever this machine has: it is part of what makes bits
    config = _with(began_with, changed)
    if "tracker" in keys:  # others, or the same with other keys
        config["tracker"] = given["tracker"]
    if not Path(run_dir).resolve().is_relative_to(Path(config["outputs"]).resolve()):
        raise InputError(
            f"resume: {run_dir} is not below its outputs folder {config['outputs']}, seen from here. Go to the folder "
            "where it was begun, or give outputs=FOLDER."
        )
    if record["status"] == "completed":
        _check_grows(run_dir, record, config)
    return config, record["status"] == "completed"


def grown(run_dir: Path, config: Mapping) -> Path:
    """A new run directory that goes on from the last state of a completed run: its record names that run."""
    new = runs.create(config["outputs"], config["stage"])
    state = _last_state(run_dir)
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


def _check_can_go_on(run_dir: str, record: Mapping) -> None:
    if record["stage"] not in STAGES:
        raise InputError(f"resume: {run_dir} is a {record['stage']} run, which is short. Run its command again.")
    if record["status"] == "diverged":
        raise InputError(f"resume: {run_dir} diverged, and would do so again. Start a new run with other keys.")
    if record["status"] == "running":
        raise InputError(f"resume: {run_dir} is being written by another kdrun ({runs.writer(record)}). Wait for it.")
    identity = record.get("identity")
    began = identity.get("format", runs.FORMAT) if isinstance(identity, Mapping) else runs.FORMAT
    if record["status"] != "completed" and began != runs.FORMAT:
        raise InputError(
            f"resume: {run_dir} was begun by another kdrun (format {began}, this one has {runs.FORMAT}), whose numbers "
            "are not this one's. Go on with the kdrun that began it, or start a new run."
        )


def _check_grows(run_dir: str, record: Mapping, config: Mapping) -> None:
    """Raises InputError where a completed run has nothing to go on from, or would end again at once."""
    stage = record["stage"]
    if record["identity"].get("format") != runs.FORMAT:
        raise InputError(f"resume: {run_dir} was made by another kdrun, whose numbers are not this one's. Start anew.")
    if config[stage]["epochs"] == record["identity"]["epochs"]:
        raise Completed(f"{run_dir} is completed; there is nothing left to do.")
    if (patience := config[stage]["patience"]) and record["results"]["validation"]["last"]["epoch"] < (
        record["identity"]["epochs"]
    ):
        raise InputError(f"resume: {run_dir} ended early by patience={patience}. More epochs would change nothing.")
    if _last_state(Path(run_dir)) is None:
        raise InputError(f"resume: {run_dir} has no saved training state to go on from. Start a new run.")


def _named_code(run_dir: str, record: Mapping, given: Mapping, keys: Sequence[str]) -> dict[str, str]:
    """The file of code that a run uses, as this command line names it: a record is no reason to run one.

    Raises InputError where it names none, or one that is not what the run began with.
    """
    if "module" not in record["config"].get("objective", {}):
        return {}
    names = ",".join(choosing.chosen(record["config"]["objective"]))
    file = record["config"]["objective"]["module"]
    if "objective.module" not in keys:
        raise InputError(
            f"resume: {run_dir} uses code of the user's own, {file}, which is run only if the command line names it. "
            f"Add objective={names} objective.module=FILE."
        )
    named = given["objective"].get("module")
    identity = record.get("identity") or {}
    recorded = {
        each["objective"].get("module") for each in (identity, *identity.get("stages", ())) if "objective" in each
    }
    if not Path(named).is_file() or files.sha256(Path(named)) not in recorded:
        raise InputError(
            f"objective.module={named} is not the file that {run_dir} began with: its sha256 is another. Give that "
            "one, or start a new run."
        )
    return {"objective.module": named}


def _more_epochs(record: Mapping, values: Mapping, asked: Mapping) -> dict:
    """Changes of every key that an override of epochs reaches."""
    changed = {}
    for key, epochs in asked.items():
        reached = [key, *(role for role in ROLES if values[role] == values[key])] if key == "epochs" else [key]
        changed |= dict.fromkeys(reached, epochs)
    for key, epochs in changed.items():
        if epochs < values[key]:
            raise InputError(f"{key} can only grow in a run that goes on: it is {values[key]}, got {epochs}.")
        if epochs > values[key] and record["stage"] in runs.CHAINS:
            raise InputError(
                f"{key} cannot grow in stage={record['stage']}, parts of which may be done: it is {values[key]}, got "
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
