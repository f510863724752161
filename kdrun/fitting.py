"""What of a config must fit together, and with the files that it names. No TensorFlow in here."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdrun import models, runs
from kdrun.data import datasets
from kdrun.errors import InputError
from kdrun.teachers import checkpoint


def check(config: Mapping, overrides: Sequence[str] = ()) -> None:
    """What must fit together: data and its files, sizes, models, the teacher's or evaluated run, the outputs folder.

    `overrides` are the command line's, for the command that an error recommends.
    """
    stage = config["stage"]
    if stage == "cache" and config["cache"]["clear"]:
        pass  # about what is there, whatever it was made from
    elif stage == "evaluate":
        record = runs.read(config["run"])
        _check_evaluated(config["run"], record)
        _training_size(record["config"]["data"])
        datasets.load(record["config"]["data"])
    else:
        training_size = _training_size(config["data"])
        _check_augmentation(config["data"])
        for role in runs.TRAINING if stage == "pipeline" else {stage} & set(runs.TRAINING):
            _check_role(config, role, training_size)
        if config["optimizer"].get("nesterov") and not config["optimizer"]["momentum"]:
            raise InputError("optimizer.nesterov=true needs momentum, got 0. Set optimizer.momentum=0.9 or the like.")
        datasets.load(config["data"])
        if stage in ("distill", "cache") or (stage == "pipeline" and config["teacher"]["run"] != "auto"):
            checkpoint.locate(config, overrides)
        if stage == "cache" or config["teacher"]["cache"] == "on":
            runs.check_writable("cache_dir", Path(config["cache_dir"]))
    runs.check_writable("outputs", Path(config["outputs"]) / stage)


def _training_size(data: Mapping) -> int:
    """How many images the training split has; raises InputError where the sizes of splits are not to be had."""
    shapes = datasets.shapes(data)
    rest = shapes.train[0] - data["validation_size"]
    if rest < 1:
        raise InputError(
            f"data.validation_size={data['validation_size']} leaves no training images: {data['name']} has "
            f"{shapes.train[0]}. It must be below {shapes.train[0]}."
        )
    for key, most in (("train_size", rest), ("test_size", shapes.test[0])):
        if data[key] is not None and data[key] > most:
            raise InputError(
                f"data.{key}={data[key]} is more than there are: {most}. Give at most {most}, or null for all."
            )
    return data["train_size"] or rest


def _check_augmentation(data: Mapping) -> None:
    height, width = datasets.shapes(data).train[1:3]
    if data["augment"]["jitter"] >= min(height, width):
        raise InputError(
            f"data.augment.jitter={data['augment']['jitter']} would shift images of {height}x{width} pixels out of "
            f"sight. It must be below {min(height, width)}."
        )


def _check_role(config: Mapping, role: str, training_size: int) -> None:
    """What a role trains must fit the data. Distilling trains the student's model."""
    epochs, batch_size = config[role]["epochs"], config[role]["batch_size"]
    if batch_size > training_size:
        raise InputError(
            f"{role}.batch_size={batch_size} is larger than the training split of {training_size} images. "
            f"Give at most {training_size}."
        )
    if config["optimizer"]["warmup_epochs"] > epochs:
        raise InputError(
            f"optimizer.warmup_epochs={config['optimizer']['warmup_epochs']:g} is more than {role}.epochs={epochs}. "
            "Give at most that."
        )
    owner = "teacher" if role == "teacher" else "student"
    smallest = models.smallest_image_size(config[owner]["model"])
    if config["data"]["image_size"] < smallest:
        raise InputError(
            f"data.image_size={config['data']['image_size']} is too small for {owner}.model="
            f"{config[owner]['model']['name']}: its last pooling would have nothing to pool. "
            f"Set data.image_size={smallest} or more."
        )


def _check_evaluated(run: str, record: Mapping) -> None:
    if record["stage"] not in runs.TRAINING:
        raise InputError(f"run: {run} is a {record['stage']} run; evaluate takes a teacher, student or distill run.")
    if record["status"] != "completed":
        raise InputError(f"run: {run} is {record['status']}, not completed. Give a completed run.")
