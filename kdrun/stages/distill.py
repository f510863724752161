"""Distilling the teacher into the student."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from kdrun.stages.train import train_network
from kdrun.teachers import cache, checkpoint, outputs, overlap
from kdrun.training.job import AS_DRAWN, InitialWeights, SupervisionSpec
from kdrun.training.supervision import (
    CachedTeacher,
    Decode,
    Peers,
    Supervision,
    TeacherSource,
    call_on_zeros,
    decoder,
    encode,
    live_teachers,
)

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
        model, initial_weights = config["student"]["model"], AS_DRAWN
        if config["student"]["classifier"] == "teacher":
            classifier = models.classifier(checkpoint.load(sources[0], "float32")).get_weights()
            model = {**model, "projection_units": len(classifier[0])}
            weights = depends["teacher_weights"]
            initial_weights = InitialWeights(
                {"classifier": weights}, lambda made: made.get_layer("classifier").set_weights(classifier)
            )
        supervision = SupervisionSpec(
            compile_key={
                "objective": choosing.without_weights(depends["objective"]),
                "outputs": [_outputs_key(config, source, dataset) for source in sources],
                "cached": cache.wanted(config),
                "teachers": depends["teachers"],
                "cache_features": config["teacher"]["cache_features"],
                "peers": config["distill"]["peers"],
            },
            build=partial(_supervision, config, sources, dataset, model, depends["teacher_weights"]),
        )
        return train_network(config, run_dir, record, dataset, model, config["seed"], supervision, initial_weights)


def _outputs_key(config: Mapping, source: Path, dataset: datasets.Dataset) -> dict:
    return outputs.depends(config, source, dataset) if source.is_dir() else {"file": checkpoint.weights_of(source)}


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
    supervision, layers = _without_teacher(config, model, teacher_model, dataset)
    source = live_teachers([teacher], layers, _decoder(config, 1, layers))
    student = models.build(model, shape, dataset.num_classes, 0, "float32")
    call_on_zeros(replace(supervision, source=source), student, Learned(0))


def _without_teacher(
    config: Mapping, model: Mapping, teacher_model: Mapping | None, dataset: datasets.Dataset
) -> tuple[Supervision, dict[str, str]]:
    """The objectives with what they are given of the student, and the teacher's layers, by name, that they need."""
    ours, theirs = models.features(model), models.features(teacher_model) if teacher_model else {}
    objective = choosing.expanded(config["objective"], tuple(ours), tuple(theirs))
    named = [layer.partition(":") for layer in choosing.layers(objective)]
    supervision = Supervision(
        objectives=choosing.functions(objective),
        layers={name: ours[name] for name, _, _ in named},
        training_size=len(dataset.train.labels),
    )
    return supervision, {other or name: theirs[other or name] for name, _, other in named}


def _supervision(
    config: Mapping, sources: Sequence[Path], dataset: datasets.Dataset, model: Mapping, sums: Sequence[str]
) -> Supervision:
    """What the student learns from, with its teachers asked already, or to be asked in the step.

    `sums` are those of the teachers' weights, as the run's record has them: what was read is to be just that. Raises
    InputError where it is not.
    """
    teacher_model = runs.read(sources[0])["model"] if sources and sources[0].is_dir() else None
    supervision, layers = _without_teacher(config, model, teacher_model, dataset)
    if peers := config["distill"]["peers"]:
        return replace(supervision, source=Peers(peers, _decoder(config, peers, layers)))
    if not sources:
        return supervision
    decode = _decoder(config, len(sources), layers)
    if cached := _cached(config, sources, dataset, layers):
        logits, features = cached
        source: TeacherSource = CachedTeacher(encode([found["train"] for found in logits], features), decode)
    else:
        networks, logits = zip(*(outputs.live(config, each, dataset) for each in sources), strict=True)
        source = live_teachers(networks, layers, decode)
    if [checkpoint.weights_of(each) for each in sources] != list(sums):
        raise InputError("The teacher's file was changed while kdrun was reading it. Start the run again.")
    teacher_logits = {
        split: _combined(config["teacher"], [tf.constant(found[split]) for found in logits], 1.0)
        .numpy()
        .astype(np.float32)
        for split in ("validation", "test")
    }
    return replace(supervision, source=source, teacher_logits=teacher_logits)


def _cached(config: Mapping, sources: Sequence[Path], dataset: datasets.Dataset, layers: Mapping[str, str]):
    """Each source's logits by split, and the features of `layers`; None where teachers are to run live instead."""
    why = outputs.why_live(config, dataset)
    if cache.wanted(config) or sources[0].is_file():
        features = {}
        if layers:
            why = "objectives on features; teacher.cache_features=true would keep them"
            features = (
                outputs.kept_features(config, sources[0], dataset, layers)
                if config["teacher"]["cache_features"]
                else None
            )
        if features is not None:
            logits = [outputs.kept(config, source, dataset) for source in sources]
            if all(logits):
                return logits, features
    log.info("distill: the teacher runs beside the student: %s", why)
    return None


def _decoder(config: Mapping, count: int, layers: Mapping[str, str]) -> Decode:
    return decoder(partial(_combined, config["teacher"]), count, tuple(layers))


def _combined(teacher: Mapping, logits: Sequence[tf.Tensor], temperature: tf.Tensor | float) -> tf.Tensor:
    """One teacher's logits as they are; those of several, combined."""
    if len(logits) == 1:
        return logits[0]
    weights = np.array(teacher["weights"] or [1.0] * len(logits))
    return combined(tf.stack(logits, axis=1), temperature, weights / weights.sum(), teacher["combine"])
