"""Who teaches: finished runs, or a file of logits; found and checked. A run's network is loaded from here."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdrun.data import datasets
from kdrun.errors import InputError
from kdrun.models import build as models
from kdrun.models.weights import load_weights
from kdrun.objectives import selection as choosing
from kdrun.runs import record as runs
from kdrun.runs import run_json as records
from kdrun.storage import files
from kdrun.teachers import logits_file as file
from kdrun.teachers import overlap

log = logging.getLogger(__name__)

WEIGHTS = "checkpoints/best.weights.h5"


# Overrides that a teacher does not depend on: the command that makes one goes without them.
_NOT_THE_TEACHERS = ("stage=", "resume=", "temperature", "alpha", "annealing=", "objective", "control=")
_NOT_THE_TEACHERS += ("student.", "distill.", "model@student", "teacher.shuffle", "teacher.overlap", "hydra")


def sources(config: Mapping, overrides: Sequence[str] = ()) -> list[Path]:
    """Who teaches, each checked to be usable with the configured data: run directories, or one file of logits.

    Nobody where no objective needs a teacher, or peers learn from each other. `teacher.run=auto` is the newest
    completed teacher run with the configured teacher's fingerprint; otherwise a run directory, a folder of them, a
    sweep's name, or a list of such. Raises InputError where there is none, with the command that makes one, given the
    command line's `overrides`.
    """
    if config["stage"] != "cache" and (config["distill"]["peers"] or not choosing.need_teacher(config["objective"])):
        return []
    if config["teacher"]["logits"] is not None:
        return [file.checked(config["teacher"]["logits"])]
    given = config["teacher"]["run"]
    if given == "auto":
        return [_matching(config, overrides)]
    found = [run for one in ([given] if isinstance(given, str) else given) for run in _runs(config["outputs"], one)]
    for run in found:
        check(config, run)
    return [Path(run) for run in found]


def weights_of(source: Path) -> str:
    """The sha256 of what a source of teaching says everything from."""
    return files.sha256(source / WEIGHTS if source.is_dir() else source)


def described(source: Path) -> dict:
    """A source of teaching as a run's record has it."""
    said = {"run": str(source), "weights_sha256": weights_of(source), "identity": None}
    if source.is_dir():
        record = runs.read(source)
        said |= {"identity": record.get("identity"), "trained_on": overlap.trained_on(record)}
    return said


def _runs(outputs: str, given: str) -> list[str]:
    """The run directories that one entry of teacher.run means."""
    for folder in (Path(given), Path(outputs) / "sweeps" / given):
        if (folder / "run.json").exists():
            return [str(folder)]
        if found := sorted(folder.glob("*/run.json")):
            return [str(path.parent) for path in found]
    return [given]


def _matching(config: Mapping, overrides: Sequence[str]) -> Path:
    found = runs.find(config["outputs"], runs.identity(config, "teacher", datasets.fingerprint(config["data"])))
    if found is None:
        kept = [o for o in overrides if not o.lstrip("+~").startswith(_NOT_THE_TEACHERS)]
        command = shlex.join(["kdrun", "stage=teacher", *kept])
        raise InputError(
            f"teacher.run=auto: no completed teacher run below {config['outputs']} matches this config. "
            f"Make one with: {command}. Or give teacher.run=RUN_DIRECTORY."
        )
    if other := runs.other_code(runs.read(found)):
        log.info("teacher.run=auto: %s%s", found, other)
    return found


def check(config: Mapping, given: str, key: str = "teacher.run") -> None:
    """Raises InputError for a run, the value of `key`, that cannot teach with the configured data."""
    dataset_sha256 = datasets.fingerprint(config["data"])
    record = runs.read(given)
    if record["stage"] not in runs.NETWORKS:
        raise InputError(f"{key}: {given} is a {record['stage']} run. Give one of stage {', '.join(runs.NETWORKS)}.")
    if record["status"] != "completed":
        raise InputError(f"{key}: {given} is {record['status']}, not completed. Finish it or give another run.")
    if record.get("dataset_sha256") != dataset_sha256:
        raise InputError(
            f"{key}: {given} was trained on {record['config']['data']['name']} (sha256 "
            f"{str(record.get('dataset_sha256'))[:12]}), this config is for {config['data']['name']} "
            f"({dataset_sha256[:12]}). Give a teacher of the same dataset."
        )
    num_classes = datasets.load(config["data"]).num_classes
    if record["num_classes"] != num_classes:
        raise InputError(
            f"{key}: {given} tells {record['num_classes']} classes apart, this config's data has {num_classes}. "
            "Give a teacher with the same classes."
        )
    theirs, ours = record["config"]["data"]["image_size"], config["data"]["image_size"]
    if theirs != ours:
        raise InputError(
            f"{key}: {given} was trained on images of {theirs} pixels a side, data.image_size is {ours}. "
            f"Set data.image_size={theirs} or give another teacher."
        )
    damaged = runs.damaged(Path(given), record)
    if damaged:
        raise InputError(f"{key}: {given}: {', '.join(damaged)} is not what run.json says. Give another run.")


def model_of(run_dir: Path, which: str = "best") -> Mapping:
    """The model of a run's network, as its record has it. Raises InputError where that is of no network."""
    record, path = runs.read(run_dir), run_dir / "checkpoints" / f"{which}.weights.h5"
    if not path.is_file():
        raise InputError(f"{path} is not there, or no file. Give another run.")
    if wrong := records.no_network(record, path.stat().st_size):
        raise InputError(f"{run_dir / 'run.json'} is damaged, or not the record of a network: {wrong}.")
    try:
        models.features(record["model"])
    except Exception as error:  # whatever a model makes of its keys
        raise _no_network(run_dir, error) from error
    return record["model"]


def load(run_dir: Path, policy: str, which: str = "best"):
    """The network of a completed run with its `best` or `last` weights, frozen.

    Raises InputError where its record is of no network, or its weights are of another one.
    """
    keys, record = model_of(run_dir, which), runs.read(run_dir)
    try:
        model = models.build(keys, tuple(record["image_shape"]), record["num_classes"], record["seed"], policy)
    except Exception as error:  # whatever a model's own keys make of it
        raise _no_network(run_dir, error) from error
    load_weights(model, run_dir / "checkpoints" / f"{which}.weights.h5")
    model.trainable = False
    return model


def _no_network(run_dir: Path, error: Exception) -> InputError:
    said = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{run_dir}: no network can be made as run.json says ({said[:200]}). Give another run.")
