"""A shift of some classes' biases, chosen on validation: for a student that saw none of them, or nothing else."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from kdrun.config import rules
from kdrun.data import datasets, preparation
from kdrun.errors import InputError
from kdrun.evaluation import by_class, metrics
from kdrun.registry import register
from kdrun.runs import predictions, run_json
from kdrun.runs import record as runs
from kdrun.runs.recording import recording
from kdrun.stages import checks
from kdrun.storage import files, forms

log = logging.getLogger(__name__)


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError for a run whose network cannot be taken, and for classes whose biases cannot be shifted."""
    record = checks.taken(config["run"])
    checks.own_data_alone(config["data"], "adjust_bias", "Leave it out.", overrides)
    checks.sizes(record["config"]["data"])
    _check_classes(config, record, datasets.load(record["config"]["data"]))


@register("stage", "adjust_bias", check=check, leaves_network=True)
def adjust_bias(
    config: Mapping, run_dir: Path, *, run: rules.RunDirectory, classes: Annotated[list[int], rules.integers(0)]
) -> dict:
    """Shift the biases of `classes` of the run `run` by one number, the one with the fewest validation errors, and keep
    the network with it in a run directory of its own, which can be evaluated, and can teach.

    As in section 3 of arXiv 1503.02531, whose shifts were chosen on the test set.
    """
    from kdrun.evaluation.inference import compiled_inference, logits
    from kdrun.models import surgery
    from kdrun.models.weights import save_weights
    from kdrun.runtime import precision
    from kdrun.teachers import checkpoint, sources

    def said(split: str) -> np.ndarray:
        """The network's logits of a split's images, float32 [n, C]."""
        return metrics.check_finite(logits(infer, getattr(dataset, split).images), f"on the {split} split")

    source = Path(run)
    theirs = runs.read(source)
    if wrong := forms.problem(theirs, run_json.ADJUSTED):
        raise InputError(f"run: {source} is damaged, or not the record of a network: {wrong}.")
    config = {**config, "data": theirs["config"]["data"]}  # which the result is of, and is evaluated on
    dataset = datasets.load(theirs["config"]["data"], theirs["seed"])
    facts = {"seed": theirs["seed"], "dataset_sha256": dataset.sha256, "adjusted": sources.described(config, source)}
    with recording(run_dir, config, **facts) as record:
        shapes = ("image_shape", "raw_shape")
        kept = ("model", *shapes, "num_classes", "class_names", "precision", "parameters", "multiply_adds")
        record |= {key: theirs[key] for key in kept if key in theirs} | preparation.recorded(preparation.of_run(theirs))
        precision.prepare_machine()
        model = checkpoint.load(source, theirs["precision"])
        infer = compiled_inference(
            model, dataset.test.images.shape[1:], config["evaluation_batch_size"], preparation.of_run(theirs)
        )
        before = {split: said(split) for split in ("validation", "test")}
        shift = best_shift(before["validation"], dataset.validation.labels, classes)
        surgery.classifier(model).bias.assign_add(shift * np.isin(np.arange(dataset.num_classes), classes))
        after = {split: said(split) for split in before}
        for folder in ("checkpoints", "predictions"):
            (run_dir / folder).mkdir(exist_ok=True)
        names = [*(f"checkpoints/{name}.weights.h5" for name in ("best", "last")), "predictions/test.npz"]
        for name in names[:2]:
            save_weights(model, run_dir / name)
        predictions.write(run_dir / names[2], dataset.test.labels, after["test"], after["test"])
        record["files"] = {name: files.sha256(run_dir / name) for name in names}
        trained = ("steps", "training_seconds", "seconds_to_first_step", "images_per_second")
        record["results"] = {"shift": shift, "classes": classes, **{key: theirs["results"][key] for key in trained}}
        for split in before:
            labels = getattr(dataset, split).labels
            found = {
                "before": _measured(before[split], labels, classes),
                "best": _measured(after[split], labels, classes),
            }
            record["results"][split] = {**found, "last": found["best"]}
            if split == "test":
                record["results"][split] |= by_class.recorded_confusion(after[split], labels)
            log.info(
                "adjust_bias: shift %+.3f, %s errors %d -> %d of %d, accuracy on %s %.4f -> %.4f",
                *(shift, split, found["before"]["errors"], found["best"]["errors"], len(labels), classes),
                *(found["before"]["accuracy_of_classes"], found["best"]["accuracy_of_classes"]),
            )
        if theirs["config"]["data"].get("train_on_validation"):
            log.warning("adjust_bias: %s was trained on the validation images, by which the shift was chosen", source)
        return record["results"]


def best_shift(logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> float:
    """The number which, added to the logits [n, C] of `classes`, gives the fewest errors; of several, the middle one.

    Exact: the number of errors only changes where a shift makes one of `classes` overtake all others for an image.
    """
    z, named = np.asarray(logits, np.float64), np.isin(np.arange(logits.shape[1]), classes)
    among, beside = np.where(named, z, -np.inf), np.where(named, -np.inf, z)
    margins = beside.max(axis=1) - among.max(axis=1)  # shifts above it let one of `classes` win
    right_among, right_beside = among.argmax(axis=1) == labels, beside.argmax(axis=1) == labels
    order = np.argsort(margins)
    edges = np.concatenate([[margins[order[0]] - 1.0], margins[order], [margins[order[-1]] + 1.0]])
    shifts = (edges[:-1] + edges[1:]) / 2
    right = np.concatenate([[0], np.cumsum(right_among[order])])
    right = right + np.concatenate([np.cumsum(right_beside[order][::-1])[::-1], [0]])
    right = np.where(np.diff(edges) > 0, right, -1)  # between equal margins there is no shift
    best = shifts[right == right.max()]
    return float(best[len(best) // 2])


def _measured(logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> dict:
    of_classes = np.isin(labels, classes)
    right = logits.argmax(axis=1) == labels
    return {
        **by_class.evaluate(logits, labels),
        "errors_of_classes": int(np.count_nonzero(of_classes & ~right)),
        "accuracy_of_classes": float(right[of_classes].mean()),
    }


def _check_classes(config: Mapping, record: Mapping, dataset: datasets.Dataset) -> None:
    classes, num_classes = config["classes"], record["num_classes"]
    if changed := runs.damaged(Path(config["run"]), record):
        raise InputError(f"run: {config['run']}: {', '.join(changed)} is not what run.json says. Give another run.")
    if max(classes) >= num_classes or set(classes) == set(range(num_classes)):
        raise InputError(
            f"classes={classes}: one number is added to their biases, and to none of the others. Give some of 0 to "
            f"{num_classes - 1}, not all."
        )
    for split in ("validation", "test"):
        if not set(classes) & set(getattr(dataset, split).labels.tolist()):
            raise InputError(f"classes={classes}: no {split} image of {config['run']} is of these. Give others.")
