"""A run's test metrics, computed again from its weights; or its network, measured on other data."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kdrun.comparison import texts
from kdrun.config import rules
from kdrun.config.schema import ALL_IMAGES
from kdrun.data import datasets, preparation
from kdrun.errors import InputError, KdrunError
from kdrun.registry import register
from kdrun.runs import record as runs
from kdrun.runs import run_json
from kdrun.runs.recording import recording
from kdrun.stages import checks
from kdrun.stages.checks import OF_RUN
from kdrun.storage import forms

log = logging.getLogger(__name__)


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError for a run that cannot be measured, or not on these data."""
    record = checks.taken(config["run"])
    if config["data"]["name"] != OF_RUN:
        _check_other_data(config["data"], record, overrides)
        return
    checks.own_data_alone(config["data"], "evaluate", "Name other data with it: data=mnist or the like.", overrides)
    checks.sizes(record["config"]["data"])
    datasets.load(record["config"]["data"])


@register("stage", "evaluate", check=check)
def evaluate(config: Mapping, run_dir: Path, *, run: rules.RunDirectory) -> dict:
    """Rebuild the network of `run`, load its best and its last weights, and measure them on the test set.

    On the run's own data, KdrunError is raised when a metric differs from what its run.json says. Where the config has
    data of its own, these are measured on, and the run's record stays as it is.
    """
    from kdrun.evaluation import by_class, metrics
    from kdrun.evaluation.inference import compiled_inference, logits
    from kdrun.reports import classes, tables
    from kdrun.runtime import precision
    from kdrun.teachers import checkpoint

    evaluated = Path(run)
    theirs = runs.read(evaluated)
    of_run = config["data"]["name"] == OF_RUN
    data = theirs["config"]["data"] if of_run else {**config["data"], **ALL_IMAGES}
    dataset = datasets.load(data)
    sha256, names = dataset.sha256, _class_names(theirs, dataset)
    with recording(run_dir, config, evaluated=str(evaluated), dataset_sha256=sha256, class_names=names) as record:
        damaged = runs.damaged(evaluated, theirs)
        if damaged:
            raise KdrunError(f"{evaluated}: {', '.join(damaged)} is not what run.json says it was. Files were changed.")
        if wrong := forms.problem(theirs, run_json.EVALUATED):
            raise InputError(f"run: {evaluated} is damaged, or not the record of a network: {wrong}.")
        precision.prepare_machine()
        batch_size, shown = theirs["config"]["evaluation_batch_size"], preparation.of_run(theirs)
        found = {}
        for name in ("best", "last"):
            model = checkpoint.load(evaluated, theirs["precision"], name)
            infer = compiled_inference(model, dataset.test.images.shape[1:], batch_size, shown)
            of = f"on the test split, with the {name} weights"
            found[name] = metrics.check_finite(logits(infer, dataset.test.images), of)
        labels = dataset.test.labels
        measured = {name: by_class.evaluate(each, labels) for name, each in found.items()}
        record["results"] = {**measured, **by_class.recorded_confusion(found["best"], labels)}
        if of_run:
            _hold_against(theirs, measured, evaluated)
        else:
            log.info("evaluate: %s on %s (sha256 %s)", evaluated, data.get("path", data["name"]), sha256[:12])
            tables.networks([{"name": f"{name} weights", "test": test, "run": ""} for name, test in measured.items()])
            of_weights = {f"{name} weights": [np.argmax(each, axis=1)] for name, each in found.items()}
            test = classes.Tested(labels, of_weights, found["best"].shape[1])
            classes.show(classes.by_class(test, names))
        return record["results"]


def _class_names(theirs: Mapping, dataset: datasets.Dataset) -> list[str]:
    """Names of the classes that a run's network tells apart: its own, or, of a run of before runs had them, the
    data's."""
    if "class_names" in theirs:
        return theirs["class_names"]
    names, classes = dataset.class_names, theirs.get("num_classes", len(dataset.class_names))
    return [*map(str, names[:classes]), *map(str, range(len(names), classes))]


def _hold_against(theirs: Mapping, results: Mapping, evaluated: Path) -> None:
    """Raises KdrunError where measured results are not those of a run's record, as far as that has them."""
    for name, found in results.items():
        said = theirs["results"]["test"][name]
        different = [key for key in found if key in said and not _are_close(found[key], said[key])]
        for key in different:
            log.info("evaluate: %s weights, %s is %s, run.json says %s", name, key, found[key], said[key])
        if different:
            raise KdrunError(
                f"{evaluated}: the {name} weights do not give the test metrics of run.json "
                f"({', '.join(different)}). Record or data were changed, or this machine computes otherwise."
            )
        log.info(
            "evaluate: %s weights, accuracy %.4f, cross-entropy %.4f, as run.json says",
            name,
            found["accuracy"],
            found["cross_entropy"],
        )


def _are_close(found, said) -> bool:
    """Whether numbers, or lists of as many numbers and nulls, are the same to rounding."""
    found, said = (np.asarray(each, np.float64) for each in (found, said))
    return bool(np.isclose(found, said, rtol=1e-5, atol=1e-7, equal_nan=True).all())


def _check_other_data(data: Mapping, record: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where a run's network cannot be measured on these data."""
    theirs, shapes = record["config"]["data"], datasets.shapes(data)
    checks.size("test_size", datasets.test_count(data), len(datasets.whole(data).test.labels))
    sized = [word for word in overrides if word.lstrip("+~").startswith("data.image_size=")]
    if sized and data["image_size"] != theirs["image_size"]:
        raise InputError(f"{sized[0]}: the run's network sees images of {theirs['image_size']} pixels. Leave it out.")
    channels = shapes.test[3] if len(shapes.test) == 4 else 1
    if channels != record["image_shape"][2]:
        raise InputError(
            f"data={data['name']}: its images have {channels} channel(s), and the run's network sees "
            f"{record['image_shape'][2]}. Give images like those that it was trained on."
        )
    dataset = datasets.load({**data, **ALL_IMAGES})
    labels = dataset.test.labels
    if int(labels.max()) >= record["num_classes"]:
        raise InputError(
            f"data={data['name']}: its labels go up to {labels.max()}, and the run's network tells "
            f"{record['num_classes']} classes apart. Give data with the same classes."
        )
    _check_names(data["name"], [texts.one_line(str(name)) for name in dataset.class_names], record)


def _check_names(data: str, ours: Sequence[str], record: Mapping) -> None:
    """Raises InputError where a number is another class's in these data than in the run's, by the names of both."""
    theirs = [texts.one_line(name) for name in record.get("class_names", ())]
    if any(names == [str(number) for number in range(len(names))] for names in (ours, theirs)):
        return  # they have no names
    for number, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            raise InputError(
                f"data={data}: its class {number} is {texts.short(our, 40)}, and {texts.short(their, 40)} to the run's "
                "network. Give data with the same classes in the same order."
            )
