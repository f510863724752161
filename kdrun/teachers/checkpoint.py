"""A finished run as teacher: found, checked, and asked for its logits."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdrun import models, runs
from kdrun.data import datasets
from kdrun.errors import InputError

log = logging.getLogger(__name__)

WEIGHTS = "checkpoints/best.weights.h5"


# Overrides that a teacher does not depend on: the command that makes one goes without them.
_NOT_THE_TEACHERS = ("stage=", "resume=", "temperature=", "alpha=", "objective")
_NOT_THE_TEACHERS += ("student.", "distill.", "model@student", "hydra")


def locate(config: Mapping, overrides: Sequence[str] = ()) -> Path:
    """The run directory of the configured teacher, checked to be usable with the configured data.

    `teacher.run=auto` is the newest completed teacher run with the configured teacher's fingerprint. Raises InputError
    when there is none, with the command that makes one, given the command line's `overrides`.
    """
    given = config["teacher"]["run"]
    dataset_sha256 = datasets.fingerprint(config["data"])
    if given == "auto":
        found = runs.find(config["outputs"], runs.identity(config, "teacher", dataset_sha256))
        if found is None:
            kept = [o for o in overrides if not o.lstrip("+~").startswith(_NOT_THE_TEACHERS)]
            command = shlex.join(["kdrun", "stage=teacher", *kept])
            raise InputError(
                f"teacher.run=auto: no completed teacher run below {config['outputs']} matches this config. "
                f"Make one with: {command}. Or give teacher.run=RUN_DIRECTORY."
            )
        return found
    record = runs.read(given)
    if record["stage"] not in runs.TRAINING:
        raise InputError(
            f"teacher.run: {given} is a {record['stage']} run; a teacher is a teacher, student or distill run."
        )
    if record["status"] != "completed":
        raise InputError(f"teacher.run: {given} is {record['status']}, not completed. Finish it or give another run.")
    if record.get("dataset_sha256") != dataset_sha256:
        raise InputError(
            f"teacher.run: {given} was trained on {record['config']['data']['name']} (sha256 "
            f"{str(record.get('dataset_sha256'))[:12]}), this config is for {config['data']['name']} "
            f"({dataset_sha256[:12]}). Give a teacher of the same dataset."
        )
    num_classes = datasets.load(config["data"]).num_classes
    if record["num_classes"] != num_classes:
        raise InputError(
            f"teacher.run: {given} tells {record['num_classes']} classes apart, this config's data has {num_classes}. "
            "Give a teacher with the same classes."
        )
    theirs, ours = record["config"]["data"]["image_size"], config["data"]["image_size"]
    if theirs != ours:
        raise InputError(
            f"teacher.run: {given} was trained on images of {theirs} pixels a side, data.image_size is {ours}. "
            f"Set data.image_size={theirs} or give another teacher."
        )
    damaged = runs.damaged(Path(given), record)
    if damaged:
        raise InputError(f"teacher.run: {given}: {', '.join(damaged)} is not what run.json says. Give another run.")
    return Path(given)


def load(run_dir: Path, policy: str, which: str = "best"):
    """The network of a completed run with its `best` or `last` weights, frozen."""
    record = runs.read(run_dir)
    model = models.build(record["model"], tuple(record["image_shape"]), record["num_classes"], record["seed"], policy)
    model.load_weights(run_dir / "checkpoints" / f"{which}.weights.h5")
    model.trainable = False
    return model
