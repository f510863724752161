"""A run's test metrics, computed again from its weights; or its network measured on other data, or an exported file."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdrun.comparison import texts
from kdrun.config import rules
from kdrun.config.schema import ALL_IMAGES
from kdrun.data import datasets, preparation
from kdrun.errors import InputError, KdrunError
from kdrun.export import exported
from kdrun.export.exported import Exported
from kdrun.export.facts import SUM
from kdrun.registry import register
from kdrun.runs import record as runs
from kdrun.runs import run_json
from kdrun.runs.recording import recording
from kdrun.stages import checks
from kdrun.stages.checks import OF_RUN
from kdrun.storage import forms

log = logging.getLogger(__name__)


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError for a run, or a file, that cannot be measured, or not on these data."""
    checks.one_network(config["run"], config["file"])
    if config["file"] is not None:
        found = exported.found(config["file"])
        if config["data"]["name"] == OF_RUN:
            raise InputError("data must be given: an exported file has none of its own. Write data=mnist or the like.")
        _check_other_data(config["data"], _of_file(found), overrides)
        return
    record = checks.taken(config["run"])
    if config["data"]["name"] != OF_RUN:
        _check_other_data(config["data"], _of_run(record), overrides)
        return
    checks.own_data_alone(config["data"], "evaluate", "Name other data with it: data=mnist or the like.", overrides)
    checks.sizes(record["config"]["data"])
    datasets.load(record["config"]["data"])


@register("stage", "evaluate", check=check, needs_tensorflow=lambda config: config["file"] is None)
def evaluate(config: Mapping, run_dir: Path, *, run: rules.RunDirectoryOrNone, file: rules.PathOrNone) -> dict:
    """Measure a network on the test set: of `run`, rebuilt, with its best and its last weights, or `file`, which
    stage=export has made, in its own runtime.

    On a run's own data, KdrunError is raised when a metric differs from what its run.json says. Where the config has
    data of its own, these are measured on, and the run's record stays as it is.
    """
    if file is not None:
        return _evaluate_file(config, run_dir, exported.found(file))
    assert run is not None  # of both, one is given
    return _evaluate_run(config, run_dir, Path(run))


def _evaluate_run(config: Mapping, run_dir: Path, evaluated: Path) -> dict:
    from kdrun.evaluation import by_class, metrics
    from kdrun.evaluation.inference import compiled_inference, logits
    from kdrun.runtime import precision
    from kdrun.teachers import checkpoint

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
            _say(evaluated, data, sha256)
            _show({f"{name} weights": each for name, each in found.items()}, labels, names)
        return record["results"]


def _evaluate_file(config: Mapping, run_dir: Path, found: Exported) -> dict:
    from kdrun.evaluation import by_class

    dataset = datasets.load({**config["data"], **ALL_IMAGES})
    names, threads = list(found.facts["class_names"]), exported.threads(config["threads"])
    facts = {"evaluated": str(found.path), "threads": threads, SUM: found.facts[SUM]}
    with recording(run_dir, config, dataset_sha256=dataset.sha256, class_names=names, **facts) as record:
        labels, logits = dataset.test.labels, exported.logits(found, dataset.test.images, threads)
        measured = by_class.evaluate(logits, labels)
        record["results"] = {"file": measured, **by_class.recorded_confusion(logits, labels)}
        _say(found.path, config["data"], dataset.sha256)
        _show({"file": logits}, labels, names)
        return record["results"]


def _say(evaluated: Path, data: Mapping, sha256: str) -> None:
    log.info("evaluate: %s on %s (sha256 %s)", evaluated, data.get("path") or data["name"], sha256[:12])


def _show(logits: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]) -> None:
    """Log what networks, by name, are worth, by all and by class: floats [n, classes] of each, and labels, int [n]."""
    from kdrun.evaluation import by_class
    from kdrun.reports import classes, tables

    tables.networks([{"name": name, "test": by_class.evaluate(z, labels), "run": ""} for name, z in logits.items()])
    predicted = {name: [np.argmax(z, axis=1)] for name, z in logits.items()}
    num_classes = next(iter(logits.values())).shape[1]
    classes.show(classes.by_class(classes.Tested(labels, predicted, num_classes), names))


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


class _Network(NamedTuple):
    """What a network and the data that it is measured on must have in common: pixels a side that it sees, the shape of
    images that it takes, height and width None where these may be any, its classes, and their names, if it has some;
    and whose it is."""

    image_size: int
    shape: tuple[int | None, int | None, int]
    num_classes: int
    class_names: Sequence[str]
    whose: str


def _of_run(record: Mapping) -> _Network:
    size, shape = record["config"]["data"]["image_size"], (None, None, record["image_shape"][2])
    return _Network(size, shape, record["num_classes"], record.get("class_names", ()), "run")


def _of_file(found: Exported) -> _Network:
    size, names = found.facts["preprocessing"]["image_size"], found.facts["class_names"]
    height, width, channels = found.facts["input"]
    return _Network(size, (height, width, channels), len(names), names, "file")


def _check_other_data(data: Mapping, network: _Network, overrides: Sequence[str]) -> None:
    """Raises InputError where a network cannot be measured on these data."""
    shapes, whose = datasets.shapes(data), f"the {network.whose}'s network"
    checks.size("test_size", datasets.test_count(data), len(datasets.whole(data).test.labels))
    sized = [word for word in overrides if word.lstrip("+~").startswith("data.image_size=")]
    if sized and data["image_size"] != network.image_size:
        raise InputError(f"{sized[0]}: {whose} sees images of {network.image_size} pixels. Leave it out.")
    height, width, channels = shapes.test[1:] if len(shapes.test) == 4 else (*shapes.test[1:], 1)
    if channels != network.shape[2]:
        raise InputError(
            f"data={data['name']}: its images have {channels} channel(s), and {whose} sees {network.shape[2]}. Give "
            "images like those that it was trained on."
        )
    if network.shape[0] is not None and network.shape[:2] != (height, width):
        raise InputError(
            f"data={data['name']}: its images are of {height}x{width} pixels, and {whose} takes those of "
            f"{network.shape[0]}x{network.shape[1]} alone. Give such images; a run, or a SavedModel, takes any size."
        )
    dataset = datasets.load({**data, **ALL_IMAGES})
    labels = dataset.test.labels
    if int(labels.max()) >= network.num_classes:
        raise InputError(
            f"data={data['name']}: its labels go up to {labels.max()}, and {whose} tells {network.num_classes} classes "
            "apart. Give data with the same classes."
        )
    _check_names(data["name"], [texts.one_line(str(name)) for name in dataset.class_names], network)


def _check_names(data: str, ours: Sequence[str], network: _Network) -> None:
    """Raises InputError where a number is another class's in these data than to a network, by the names of both."""
    theirs = [texts.one_line(name) for name in network.class_names]
    if any(names == [str(number) for number in range(len(names))] for names in (ours, theirs)):
        return  # they have no names
    for number, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            raise InputError(
                f"data={data}: its class {number} is {texts.short(our, 40)}, and {texts.short(their, 40)} to the "
                f"{network.whose}'s network. Give data with the same classes in the same order."
            )
