"""Weights that a network begins with, of a finished run or of a file, and which of its own it keeps as they are.

Importable without TensorFlow.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.config.schema import flatten
from kdrun.data import datasets
from kdrun.errors import InputError
from kdrun.models import build as models
from kdrun.models import weights
from kdrun.runs import identity
from kdrun.runs import record as runs
from kdrun.teachers import checkpoint, overlap, sources

if TYPE_CHECKING:
    from kdrun.training.job import InitialWeights


def check(config: Mapping, role: str, dataset: datasets.Dataset) -> None:
    """Raises InputError where a role's net, which sees `dataset`, cannot begin with what it is given, or be frozen so
    far."""
    own, key = config[role], f"{role}.initial_weights"
    if own["initial_weights"] is not None:
        file = identity.weights_file(key, own["initial_weights"])
        run = _run_of(file)
        if run is None:
            weights.check(file)
        else:
            checkpoint.model_of(run, file.name.removesuffix(".weights.h5"))
            _check_run(config, role, run, dataset)
    elif own["new_learning_rate"] is not None:
        raise InputError(
            f"{role}.new_learning_rate={own['new_learning_rate']:g} is of what {key} has no weights for. Give {key}, "
            f"or set {role}.optimizer.learning_rate."
        )
    found = list(models.features(own["model"]))
    if isinstance(own["freeze"], int) and own["freeze"] > len(found):
        raise InputError(
            f"{role}.freeze={own['freeze']}: {own['model']['name']} has {len(found)} features, {', '.join(found)}. "
            f"Give at most {len(found)}, or a layer's name."
        )


def facts(config: Mapping, role: str) -> dict[str, Any]:
    """What a run's record says of the weights that a role's net began with; nothing where they were drawn."""
    given = config[role]["initial_weights"]
    if given is None:
        return {}
    file = identity.weights_file(f"{role}.initial_weights", given)
    run = _run_of(file)
    said: dict[str, Any] = {"run": str(given), "weights_sha256": sources.weights_of(file), "identity": None}
    if run:
        said |= {"identity": runs.read(run).get("identity"), "trained_on": sources.learned_from(config, run)}
    return {"initial_weights": said}


def of_role(config: Mapping, role: str) -> "InitialWeights":
    """The weights that a role's net begins with, and which of them are trained. Loads TensorFlow.

    Raises InputError, when a net is given them, where they are of another net, there is no such layer, or nothing would
    be left to train.
    """
    from kdrun.models import surgery
    from kdrun.training.job import AS_DRAWN, InitialWeights

    own = config[role]
    given, freeze, rate = own["initial_weights"], own["freeze"], own["new_learning_rate"]
    if given is None and freeze is None:
        return AS_DRAWN
    factor = 1.0 if rate is None else rate / own["optimizer"]["learning_rate"]

    def assign(model) -> str:
        said = "" if given is None else _begin(model, role, given, rate)
        if freeze is not None:
            surgery.freeze(model, _layer(model, own["model"], f"{role}.freeze", freeze))
        if not model.trainable_variables:
            raise InputError(f"{role}.freeze={freeze} leaves nothing to train. Freeze less.")
        return said

    def factors(model) -> list[float]:
        new = {variable.ref() for variable in surgery.classifier(model).trainable_variables}
        return [factor if variable.ref() in new else 1.0 for variable in model.trainable_variables]

    key = {**identity.of_initial_weights(config, role), "factor": factor}
    return InitialWeights(key, assign, factors if factor != 1.0 else None)


def _begin(model, role: str, given: str, new_rate: float | None) -> str:
    """Give a net the weights of a run or a file; returns which these are, for the log."""
    key = f"{role}.initial_weights"
    classes = weights.load_matching(model, identity.weights_file(key, given))
    if classes is not None:
        return f"{key}, all but the classifier: {classes} classes there, {model.output.shape[-1]} here"
    if new_rate is not None:
        raise InputError(_nothing_new(role, given))
    return f"{key}, all of them"


def _run_of(file: Path) -> Path | None:
    """The run directory that a file of weights is in; None of any other file."""
    run = file.absolute().parent.parent
    return run if file.parent.name == "checkpoints" and (run / "run.json").is_file() else None


def _check_run(config: Mapping, role: str, run: Path, dataset: datasets.Dataset) -> None:
    """Raises InputError for a run whose network is damaged, not completed, or another one than the role's."""
    given, key = config[role]["initial_weights"], f"{role}.initial_weights"
    record = runs.read(run)
    runs.check_leaves_network(record, f"{key}: {given}")
    if record["status"] != "completed":
        raise InputError(f"{key}: {given} is {record['status']}, not completed. Finish it or give another run.")
    if damaged := runs.damaged(run, record):
        raise InputError(f"{key}: {given}: {', '.join(damaged)} is not what run.json says. Give another run.")
    theirs, ours = dict(flatten(record["model"])), dict(flatten(config[role]["model"]))
    theirs["channels"], ours["channels"] = record["image_shape"][2], dataset.train.images.shape[3]
    missing = "not there"
    differ = [name for name in {**ours, **theirs} if ours.get(name, missing) != theirs.get(name, missing)]
    if differ:
        said = ", ".join(
            f"{name} is {theirs.get(name, missing)}, here {ours.get(name, missing)}" for name in differ[:3]
        )
        raise InputError(f"{key}: {given} is of another net: {said}. Give {role}.model as it is there, or another run.")
    if config[role]["new_learning_rate"] is not None and record["num_classes"] == dataset.num_classes:
        raise InputError(_nothing_new(role, given))
    overlap.check(config, sources.learned_from(config, run), f"{key}: {given}")


def _nothing_new(role: str, given: str) -> str:
    return (
        f"{role}.new_learning_rate: {given} tells as many classes apart as there are here, so all weights are its own "
        f"and none are new. Leave it out, or set {role}.optimizer.learning_rate."
    )


def _layer(model, keys: Mapping, key: str, freeze: int | str) -> str:
    """The layer up to which a net is to be frozen: its first features, a feature or a layer by name."""
    found = models.features(keys)
    if isinstance(freeze, int):
        return list(found.values())[freeze - 1]
    names = [layer.name for layer in model.layers]
    name = found.get(freeze, freeze)
    if name not in names:
        near = get_close_matches(freeze, [*found, *names], 1)
        raise InputError(
            f"{key}={freeze}: {keys['name']} has no such layer.{f' Did you mean {near[0]}?' if near else ''} Its "
            f"features are {', '.join(found)}."
        )
    return name
