"""Distilling the teacher into the student."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from kdrun.data import datasets
from kdrun.errors import InputError
from kdrun.models import build as models
from kdrun.objectives import selection as choosing
from kdrun.objectives.combining import combined
from kdrun.objectives.learned import Learned
from kdrun.registry import register
from kdrun.runs import record as runs
from kdrun.runs.recording import recording
from kdrun.runtime import precision
from kdrun.stages.train import Start, Taught, train_network
from kdrun.teachers import cache, checkpoint, overlap
from kdrun.teachers import outputs as answers
from kdrun.training.network import Teaching, ask_once

log = logging.getLogger(__name__)


@register("stage", "distill")
def distill(config: Mapping, run_dir: Path) -> dict:
    """Train the student on the labels and on what the teacher says, or on the labels under other objectives."""
    sources = checkpoint.sources(config)
    dataset = datasets.load(config["data"], config["seed"])
    teachers = [checkpoint.described(source) for source in sources]
    facts = {"seed": config["seed"], "dataset_sha256": dataset.sha256, "teachers": teachers}
    if seen := overlap.count(config, [each for teacher in teachers for each in teacher.get("trained_on", ())]):
        facts["overlap"] = seen
        log.warning("distill: the teacher has trained on %s of the student's validation images", f"{seen:,}")
    depends = runs.identity(config, "distill", dataset.sha256, [checkpoint.weights_of(source) for source in sources])
    with recording(run_dir, config, depends, **facts) as record:
        precision.prepare_machine()
        model, start = config["student"]["model"], None
        if config["student"]["classifier"] == "teacher":
            classifier = models.classifier(checkpoint.load(sources[0], "float32")).get_weights()
            model = {**model, "projection_units": len(classifier[0])}
            weights = depends["teacher_weights"]
            start = Start({"classifier": weights}, lambda made: made.get_layer("classifier").set_weights(classifier))
        taught = Taught(
            depends={
                "objective": choosing.without_weights(depends["objective"]),
                "answers": [_answers_depend(config, source, dataset) for source in sources],
                "kept": cache.wanted(config),
                "teachers": depends["teachers"],
                "cache_features": config["teacher"]["cache_features"],
                "mixed": bool(config["distill"]["mixup"]),
                "peers": config["distill"]["peers"],
            },
            make=partial(_teaching, config, sources, dataset, model, depends["teacher_weights"]),
        )
        return train_network(config, run_dir, record, dataset, model, config["seed"], taught, start)


def _answers_depend(config: Mapping, source: Path, dataset: datasets.Dataset) -> dict:
    return answers.depends(config, source, dataset) if source.is_dir() else {"file": checkpoint.weights_of(source)}


def rehearse(config: Mapping, dataset: datasets.Dataset, teacher_model: Mapping) -> None:
    """Ask objectives on features, and those of the user's own, once: of untrained networks, on zeros.

    For stages that train the teacher first: InputError for what cannot fit together comes before that.
    """
    if not choosing.layers(config["objective"]) and "module" not in config["objective"]:
        return
    size = config["data"]["image_size"]
    shape = (size, size, dataset.train.images.shape[3])
    teacher = models.build(teacher_model, shape, dataset.num_classes, 0, "float32")
    model = config["student"]["model"]
    if config["student"]["classifier"] == "teacher":
        model = {**model, "projection_units": models.classifier(teacher).kernel.shape[0]}
    parts, layers, told = _objectives(config, model, teacher_model, 1, dataset)
    nobody = {"kept": {}, "validation": None, "test": None}
    student = models.build(model, shape, dataset.num_classes, 0, "float32")
    ask_once(student, Teaching(**parts, **nobody, ask=_asked([teacher], layers), told=told), Learned(0))


def _objectives(config: Mapping, model: Mapping, teacher_model: Mapping | None, count: int, dataset: datasets.Dataset):
    """Of a Teaching: what is asked of the student; the teacher's layers that this needs; how answers are read."""
    ours, theirs = models.features(model), models.features(teacher_model) if teacher_model else {}
    objective = choosing.expanded(config["objective"], tuple(ours), tuple(theirs))
    named = [layer.partition(":") for layer in choosing.layers(objective)]
    teacher_layers = {other or name: theirs[other or name] for name, _, other in named}
    parts = {
        "objectives": choosing.functions(objective),
        "layers": {name: ours[name] for name, _, _ in named},
        "training_size": len(dataset.train.labels),
    }
    combine = partial(_combined, config["teacher"], count)

    def told(given, temperature):
        logits = combine([given[f"logits/{k}"] for k in range(count)], temperature) if count else None
        return logits, {name: given[name] for name in teacher_layers}

    return parts, teacher_layers, told


def _teaching(
    config: Mapping, sources: Sequence[Path], dataset: datasets.Dataset, model: Mapping, sums: Sequence[str]
) -> Teaching:
    """What the student learns from, with its teachers asked already, or made to be asked in the step.

    `sums` are those of the teachers' weights, as the run's record has them: what was read is to be just that.
    """
    teacher_model = runs.read(sources[0])["model"] if sources and sources[0].is_dir() else None
    count = config["distill"]["peers"] or len(sources)
    parts, teacher_layers, told = _objectives(config, model, teacher_model, count, dataset)
    if not sources:
        nobody = {"kept": {}, "ask": None, "validation": None, "test": None}
        return Teaching(**parts, **nobody, told=told, peers=config["distill"]["peers"])

    kept = _kept(config, sources, dataset, teacher_layers)
    if kept:
        logits, features = kept
        kept = {f"logits/{k}": found["train"] for k, found in enumerate(logits)} | features
        ask = None
    else:
        networks, logits = zip(*(answers.live(config, source, dataset) for source in sources), strict=True)
        kept, ask = {}, _asked(networks, teacher_layers)
    combine = partial(_combined, config["teacher"], count)
    if [checkpoint.weights_of(source) for source in sources] != list(sums):
        raise InputError("The teacher's file was changed while kdrun was reading it. Start the run again.")
    splits = {
        split: combine([tf.constant(found[split]) for found in logits], 1.0).numpy().astype(np.float32)
        for split in ("validation", "test")
    }
    return Teaching(**parts, kept=kept, ask=ask, told=told, **splits)


def _kept(config: Mapping, sources: Sequence[Path], dataset: datasets.Dataset, layers: Mapping[str, str]):
    """Each source's logits by split, and the features of `layers`; None where teachers are to run live instead."""
    why = answers.why_live(config, dataset)
    if cache.wanted(config) or sources[0].is_file():
        features = {}
        if layers:
            why = "objectives on features; teacher.cache_features=true would keep them"
            features = (
                answers.kept_features(config, sources[0], dataset, layers)
                if config["teacher"]["cache_features"]
                else None
            )
        if features is not None:
            logits = [answers.kept(config, source, dataset) for source in sources]
            if all(logits):
                return logits, features
    log.info("distill: the teacher runs beside the student: %s", why)
    return None


def _asked(networks: Sequence, layers: Mapping[str, str]):
    """A function from prepared images to the answers of networks, and the first one's features."""
    first = models.with_features(networks[0], layers) if layers else None

    def ask(images):
        logits, features = first(images, training=False) if first else (networks[0](images, training=False), {})
        others = [network(images, training=False) for network in networks[1:]]
        found = {f"logits/{k}": each for k, each in enumerate([logits, *others])} | features
        return {name: tf.stop_gradient(each) for name, each in found.items()}

    return ask


def _combined(teacher: Mapping, count: int, logits: Sequence[tf.Tensor], temperature: tf.Tensor) -> tf.Tensor:
    """One teacher's logits as they are; those of several, combined."""
    if count == 1:
        return logits[0]
    weights = np.array(teacher["weights"] or [1.0] * count)
    return combined(tf.stack(logits, axis=1), temperature, weights / weights.sum(), teacher["combine"])
