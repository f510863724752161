"""Distilling the teacher into the student."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import tensorflow as tf

from kdrun import runs
from kdrun.data import batches, datasets
from kdrun.registry import get, register
from kdrun.stages.supervised import settings_of, train_network
from kdrun.teachers import checkpoint
from kdrun.training import loop, precision

log = logging.getLogger(__name__)


@register("stage", "distill")
def distill(config: Mapping, run_dir: Path) -> dict:
    """Train the student on the labels and on what the teacher says."""
    teacher_dir = checkpoint.locate(config)
    dataset = datasets.load(config["data"])
    teacher_weights = runs.sha256(teacher_dir / checkpoint.WEIGHTS)
    facts = {
        "seed": config["seed"],
        "fingerprint": runs.fingerprint(runs.identity(config, "distill", dataset.sha256, teacher_weights)),
        "dataset_sha256": dataset.sha256,
        "teacher": {"run": str(teacher_dir), "weights_sha256": teacher_weights},
    }
    with runs.recording(run_dir, config, **facts) as record:
        precision.prepare_machine()
        teacher = _teacher(config, teacher_dir, dataset)
        return train_network(config, run_dir, record, dataset, config["student"]["model"], config["seed"], teacher)


def _teacher(config: Mapping, teacher_dir: Path, dataset: datasets.Dataset) -> loop.Teacher:
    settings = settings_of(config, config["seed"])
    model = checkpoint.load(teacher_dir, precision.policy(config["precision"]))
    infer = loop.compiled_inference(model, dataset.test.images.shape[1:], settings)
    if batches.view_count(settings.jitter, settings.flip) == 1:
        log.info("distill: asking the teacher %s once for its logits", teacher_dir)
        # what the teacher says of an image never changes, so it is asked once, and not kept beside the student
        answers = tf.constant(infer(dataset.train.images))

        def ask(images, indices):
            return tf.gather(answers, indices)
    else:
        log.info(
            "distill: the teacher %s sees the student's augmented views, so it runs beside the student", teacher_dir
        )

        def ask(images, indices):
            return model(images, training=False)

    keys = {key: value for key, value in config["objective"].items() if key != "name"}
    return loop.Teacher(
        ask=ask,
        objective=partial(get("objective", config["objective"]["name"]), **keys),
        temperature=config["temperature"],
        alpha=config["alpha"],
        validation=infer(dataset.validation.images),
        test=infer(dataset.test.images),
    )
