"""Supervision of a student from its config: the objectives, and its teachers' outputs, cached or live."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from kdrun.data import datasets, mixing, preparation
from kdrun.data.preparation import Preparation
from kdrun.errors import InputError
from kdrun.models import build as models
from kdrun.models import surgery
from kdrun.objectives import selection
from kdrun.objectives.combining import combined
from kdrun.objectives.learned import Learned
from kdrun.runs import record as runs
from kdrun.runtime import precision
from kdrun.teachers import cache, checkpoint, foreign, outputs
from kdrun.teachers.sources import is_run, weights_of
from kdrun.training.supervision import (
    CachedTeacher,
    Decode,
    LiveTeachers,
    Peers,
    Supervision,
    TeacherSource,
    call_on_zeros,
    decoder,
    encode,
    live_teachers,
)

log = logging.getLogger(__name__)


def compile_key(config: Mapping, sources: Sequence[Path], dataset: datasets.Dataset, identity: Mapping) -> dict:
    """What the compiled functions of a supervised network depend on, as plain values; `identity` is the run's."""
    return {
        "objective": selection.without_weights(identity["objective"]),
        "outputs": [
            outputs.cache_key(config, each, dataset) if is_run(each) else {"file": weights_of(each)} for each in sources
        ],
        "cached": cache.wanted(config),
        "teachers": identity["teachers"],
        "cache_features": config["teacher"]["cache_features"],
        "mixed": mixing.is_on(config["distill"]),
        "peers": config["distill"]["peers"],
    }


def rehearse(config: Mapping, dataset: datasets.Dataset, teacher_model: Mapping, teacher_size: int) -> None:
    """Ask objectives on features, and those of the user's own, once: of untrained networks, on zeros.

    For stages that train the teacher first, which sees images of `teacher_size` pixels a side: InputError for what
    cannot fit together comes before that.
    """
    if not selection.are_to_be_tried(config["objective"]):
        return
    shapes = [(size, size, dataset.train.images.shape[3]) for size in (config["data"]["image_size"], teacher_size)]
    teacher = models.build(teacher_model, shapes[1], dataset.num_classes, 0, "float32")
    model = config["student"]["model"]
    if config["student"]["classifier"] == "teacher":
        model = {**model, "projection_units": surgery.classifier(teacher).kernel.shape[0]}
    found, layers = _without_teacher(config, model, models.features(teacher_model), dataset)
    source = live_teachers([teacher], [Preparation(teacher_size)], layers, _decoder(config, 1, layers))
    student = models.build(model, shapes[0], dataset.num_classes, 0, "float32")
    call_on_zeros(replace(found, source=source), student, Learned(0))


def _without_teacher(
    config: Mapping, model: Mapping, theirs: Mapping[str, str], dataset: datasets.Dataset
) -> tuple[Supervision, dict[str, str]]:
    """The objectives with what they are given of the student, and the teacher's layers, out of `theirs` by name, that
    they need."""
    ours = models.features(model)
    objective = selection.expanded(config["objective"], tuple(ours), tuple(theirs))
    named = [layer.partition(":") for layer in selection.layers(objective)]
    supervision = Supervision(
        objectives=selection.functions(objective),
        layers={name: ours[name] for name, _, _ in named},
        training_size=len(dataset.train.labels),
    )
    return supervision, {other or name: theirs[other or name] for name, _, other in named}


def supervision(
    config: Mapping, sources: Sequence[Path], dataset: datasets.Dataset, model: Mapping, sums: Sequence[str]
) -> Supervision:
    """What the student learns from, with its teachers asked already, or to be asked in the step.

    `sums` are those of the teachers' weights, as the run's record has them: what was read is to be just that. Raises
    InputError where it is not.
    """
    found, layers = _without_teacher(config, model, _features(config, sources, dataset), dataset)
    if peers := config["distill"]["peers"]:
        return replace(found, source=Peers(peers, _decoder(config, peers, layers)))
    if not sources:
        return found
    decode = _decoder(config, len(sources), layers)
    if cached := _cached(config, sources, dataset, layers):
        logits, features = cached
        source: TeacherSource = CachedTeacher(encode([each["train"] for each in logits], features), decode)
    else:
        networks, logits = zip(*(outputs.live(config, each, dataset) for each in sources), strict=True)
        source = _live(networks, sources, layers, decode)
    _check_unchanged(sources, sums)
    teacher_logits = {
        split: _combined(config["teacher"], [tf.constant(each[split]) for each in logits], 1.0)
        .numpy()
        .astype(np.float32)
        for split in ("validation", "test")
    }
    return replace(found, source=source, teacher_logits=teacher_logits)


def again(
    config: Mapping,
    sources: Sequence[Path],
    dataset: datasets.Dataset,
    model: Mapping,
    sums: Sequence[str],
    first: Supervision,
) -> Supervision:
    """What a copy of the student on another device learns from: the same as the first one, of whose live teachers it
    has copies of its own. See `supervision`."""
    _, layers = _without_teacher(config, model, _features(config, sources, dataset), dataset)
    networks = [checkpoint.load(each, precision.policy(config["precision"])) for each in sources]
    _check_unchanged(sources, sums)
    return replace(first, source=_live(networks, sources, layers, _decoder(config, len(sources), layers)))


def _live(networks: Sequence, sources: Sequence[Path], layers: Mapping[str, str], decode: Decode) -> LiveTeachers:
    return live_teachers(networks, [preparation.of_run(runs.read(each)) for each in sources], layers, decode)


def _check_unchanged(sources: Sequence[Path], sums: Sequence[str]) -> None:
    if [weights_of(each) for each in sources] != list(sums):
        raise InputError("The teacher's file was changed while kdrun was reading it. Start the run again.")


def _features(config: Mapping, sources: Sequence[Path], dataset: datasets.Dataset) -> Mapping[str, str]:
    """The layers of the one who teaches, by the name of what they give."""
    if len(sources) != 1 or not selection.layers(config["objective"]):
        return {}
    if is_run(sources[0]):
        return models.features(runs.read(sources[0])["model"])
    return {name: name for name in foreign.features(config, sources[0], dataset)}


def _cached(config: Mapping, sources: Sequence[Path], dataset: datasets.Dataset, layers: Mapping[str, str]):
    """Each source's logits by split, and the features of `layers`; None where teachers are to run live instead."""
    why = outputs.why_live(config, dataset)
    if cache.wanted(config) or not all(map(is_run, sources)):
        features: dict[str, np.ndarray] | None = {}
        if layers:
            why = "objectives on features; teacher.cache_features=true would keep them"
            are_kept = config["teacher"]["cache_features"] or not is_run(sources[0])
            features = outputs.cached_features(config, sources[0], dataset, layers) if are_kept else None
        if features is not None:
            logits = [outputs.cached(config, source, dataset) for source in sources]
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
