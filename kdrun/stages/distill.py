"""Distilling the teacher into the student."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from kdrun import files, runs
from kdrun.data import datasets
from kdrun.recording import recording
from kdrun.registry import get, register
from kdrun.stages.supervised import Teaching, train_network
from kdrun.teachers import answers, checkpoint
from kdrun.training import precision
from kdrun.training.network import Teacher

log = logging.getLogger(__name__)


@register("stage", "distill")
def distill(config: Mapping, run_dir: Path) -> dict:
    """Train the student on the labels and on what the teacher says."""
    teacher_dir = checkpoint.locate(config)
    dataset = datasets.load(config["data"])
    teacher_weights = files.sha256(teacher_dir / checkpoint.WEIGHTS)
    facts = {
        "seed": config["seed"],
        "dataset_sha256": dataset.sha256,
        "teacher": {
            "run": str(teacher_dir),
            "weights_sha256": teacher_weights,
            "identity": runs.read(teacher_dir).get("identity"),
        },
    }
    depends = runs.identity(config, "distill", dataset.sha256, teacher_weights)
    with recording(run_dir, config, depends, **facts) as record:
        precision.prepare_machine()
        teaching = Teaching(
            depends={
                "objective": config["objective"],
                "logits": answers.depends(config, teacher_dir, dataset),
                "kept": answers.are_kept(config),
            },
            make=partial(_teacher, config, teacher_dir, dataset),
        )
        return train_network(config, run_dir, record, dataset, config["student"]["model"], config["seed"], teaching)


def _teacher(config: Mapping, teacher_dir: Path, dataset: datasets.Dataset) -> Teacher:
    keys = {key: value for key, value in config["objective"].items() if key != "name"}
    objective = partial(get("objective", config["objective"]["name"]), **keys)
    logits = None
    if answers.are_kept(config):
        logits = answers.kept(config, teacher_dir, dataset)
    else:
        log.info("distill: the teacher runs beside the student: %s", answers.why_live(config, dataset))
    if logits:
        return Teacher(objective, ask=None, **logits)
    model, logits = answers.live(config, teacher_dir, dataset)
    return Teacher(objective, train=None, ask=partial(model, training=False), **logits)
