"""Which run a command goes on with, and with which config. Neither TensorFlow nor NumPy before the values are good."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdrun import config as rules
from kdrun import runs
from kdrun.errors import InputError

STAGES = (*runs.TRAINING, *runs.CHAINS)  # the others are done in no time
ROLES = tuple(f"{role}.epochs" for role in runs.TRAINING)

# what can be given anew when a run goes on: it does not change a single bit of the result
FREE = (
    "resume",
    "outputs",
    "checkpoint.every_minutes",
    "tensorboard.histograms",
    "measure_latency",
    "cache_dir",
    "reuse",
)


class Completed(Exception):
    """The run to go on with has nothing left to do."""


def interrupted(config: Mapping) -> Path | None:
    """For resume=auto: the newest interrupted run of the same config, below its outputs."""
    from kdrun.data import datasets
    from kdrun.teachers import checkpoint

    stage = config["stage"]
    if stage not in STAGES:
        return None
    dataset_sha256 = datasets.fingerprint(config["data"])
    if stage in runs.CHAINS:
        depends = runs.chain_identity(config, dataset_sha256)
    else:
        sources = checkpoint.sources(config) if stage == "distill" else []
        weights = [checkpoint.weights_of(source) for source in sources]
        depends = runs.identity(config, stage, dataset_sha256, weights)
    return runs.interrupted(config["outputs"], depends)


def saved(run_dir: str, given: Mapping, keys: Sequence[str]) -> dict:
    """For resume=RUN_DIR: the run's own config, with those `keys` that were given on the command line changed in it.

    `given` is the config of the command line. Raises Completed for a completed run, and InputError for a run that
    cannot go on and for keys that would change its result.
    """
    record = runs.read(run_dir)
    if record["stage"] not in STAGES:
        raise InputError(f"resume: {run_dir} is a {record['stage']} run, which is short. Run its command again.")
    if record["status"] == "completed":
        if changed := runs.damaged(Path(run_dir), {"files": {}, **record}):
            raise InputError(f"resume: {run_dir} is completed, but {', '.join(changed)} was changed. Start a new run.")
        if any(key in ("epochs", *ROLES) for key in keys):
            raise InputError(f"resume: {run_dir} is completed, and only a run that is not can grow. Start a new run.")
        raise Completed(f"{run_dir} is completed; there is nothing left to do.")
    if record["status"] == "diverged":
        raise InputError(f"resume: {run_dir} diverged, and would do so again. Start a new run with other keys.")
    if record["status"] == "running":
        raise InputError(f"resume: {run_dir} is being written by another kdrun ({_writer(record)}). Wait for it.")
    values = dict(rules.flatten(record["config"]))
    asked = dict(rules.flatten(runs.seen(given, record["stage"])))  # the record has it like that, too
    if not isinstance(values.get("outputs"), str) or not values.keys() >= {
        "epochs",
        "teacher.run",
        "cache_dir",
        *ROLES,
    }:
        raise InputError(f"resume: the config in {run_dir}'s run.json lacks keys of a run. Start a new run.")
    for key in keys:
        if key not in values or key not in asked:
            raise InputError(f"{key} cannot be chosen anew: a run goes on with its own config. Leave it out.")
        if key not in FREE and key != "epochs" and key not in ROLES and asked[key] != values[key]:
            raise InputError(
                f"{key} cannot change in a run that goes on: it is {values[key]!r} in {run_dir}, got {asked[key]!r}. "
                "Leave it out, or start a new run."
            )
    changed = {key: asked[key] for key in keys if key in FREE} | {"resume": str(run_dir)}
    teachers = [teacher["run"] for teacher in record.get("teachers", ())]
    if values["teacher.run"] == "auto" and teachers and Path(teachers[0]).is_dir():
        changed["teacher.run"] = teachers[0]  # not a newer one like it
    changed |= _more_epochs(record, values, {key: asked[key] for key in keys if key == "epochs" or key in ROLES})
    config = _with(record["config"], changed)
    if not Path(run_dir).resolve().is_relative_to(Path(config["outputs"]).resolve()):
        raise InputError(
            f"resume: {run_dir} is not below its outputs folder {config['outputs']}, seen from here. Go to the folder "
            "where it was begun, or give outputs=FOLDER."
        )
    return config


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


def _writer(record: Mapping) -> str:
    host = record.get("host")
    return f"process {record.get('pid')} on {host.get('name') if isinstance(host, Mapping) else 'another machine'}"
