"""What a config says of objectives: which ones, how they are weighed, what they need. No TensorFlow in here.

In a config, `objective` maps each chosen objective's name to its keys; `module` names a file that registers one.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib import util
from pathlib import Path

from kdrun.errors import InputError
from kdrun.registry import get

WITHOUT_TEACHER = ("label_smoothing", "teacher_free")
WEIGHTS = ("weight", "weight_end", "warmup_epochs")  # keys that every objective has; its function does not get them
_LABELLED = (*WITHOUT_TEACHER, "dkd", "nkd", "contrastive")
_OF_MAPS = ("attention", "review")
_OF_ONE_KIND = ("fitnet", "variational")
_THREE_CLASSES = ("dkd", "nkd")  # they compare the classes other than the label's with each other


def chosen(objective: Mapping) -> dict[str, Mapping]:
    """Each objective's keys, by its name."""
    return {name: keys for name, keys in objective.items() if isinstance(keys, Mapping)}


def functions(objective: Mapping) -> dict:
    """The objectives by name, functions of a batch alone."""
    load(objective)
    return {
        name: partial(get("objective", name), **{key: value for key, value in keys.items() if key not in WEIGHTS})
        for name, keys in chosen(objective).items()
    }


def weights(objective: Mapping) -> list[tuple[float, float | None, float]]:
    """Each one's weight, where it ends, and the epochs of its warm-up, in the same order."""
    return [tuple(keys[key] for key in WEIGHTS) for keys in chosen(objective).values()]


def without_weights(objective: Mapping) -> dict:
    """What the compiled functions depend on: weights are their inputs."""
    return {
        name: {key: value for key, value in keys.items() if key not in WEIGHTS} if isinstance(keys, Mapping) else keys
        for name, keys in objective.items()
    }


def need_teacher(objective: Mapping) -> bool:
    """Whether any of them does."""
    return any(name not in WITHOUT_TEACHER for name in chosen(objective))


def need_labels(objective: Mapping) -> bool:
    """Whether any of them does."""
    return any(name in _LABELLED for name in chosen(objective))


def layers(objective: Mapping) -> list[str]:
    """All layers that they name, each once."""
    return list(dict.fromkeys(layer for keys in chosen(objective).values() for layer in keys.get("layers", ())))


def expanded(objective: Mapping, student: Sequence[str], teacher: Sequence[str]) -> dict:
    """The objectives with `stages`, `middle` and `last` replaced by layers' names.

    `student` and `teacher` are the features that the two have, in order. Stages are paired from the first on, as many
    as both have. Raises InputError for a layer that is not there.
    """
    stages = [[name for name in names if name not in ("embedding", "projection")] for names in (student, teacher)]
    short = {}
    if all(stages):
        short = {
            "stages": list(zip(*stages, strict=False)),
            "middle": [tuple(names[len(names) // 2] for names in stages)],
            "last": [tuple(names[-1] for names in stages)],
        }

    def named(layer: str) -> list[str]:
        ours, _, theirs = layer.partition(":")
        found = short.get(layer) or [(ours, theirs or ours)]
        for whose, name, allowed in (("student", found[0][0], student), ("teacher", found[0][1], teacher)):
            if name not in allowed:
                raise InputError(
                    f"objective: the {whose} has no layer {name}. Allowed: {', '.join((*allowed, *short))}, and "
                    "student_layer:teacher_layer."
                )
        return [ours if ours == theirs else f"{ours}:{theirs}" for ours, theirs in found]

    return {
        name: {**keys, "layers": [one for layer in keys["layers"] for one in named(layer)]}
        if isinstance(keys, Mapping) and "layers" in keys
        else keys
        for name, keys in objective.items()
    }


def check_kinds(objective: Mapping, student_maps: Collection[str] | None, teacher_maps: Collection[str] | None) -> None:
    """Raises InputError where an objective, its layers `expanded`, is to compare features that it cannot.

    The maps are the features of each network that are maps; None: not known, and then seen when they are compared.
    """
    if student_maps is None or teacher_maps is None:
        return
    for name, keys in chosen(objective).items():
        for layer in keys.get("layers", ()):
            ours, _, theirs = layer.partition(":")
            are_maps = {ours in student_maps, (theirs or ours) in teacher_maps}
            if name in _OF_MAPS and are_maps != {True}:
                raise InputError(
                    f"objective={name} compares maps, and layer {layer} is a vector. Name convolutional layers, or "
                    "take another objective."
                )
            if name in _OF_ONE_KIND and len(are_maps) > 1:
                raise InputError(
                    f"objective={name}: layer {layer} is a map on one side and a vector on the other. Name two of one "
                    "kind."
                )


def check(objective: Mapping, num_classes: int) -> None:
    """Raises InputError for objectives that cannot be, or not with so many classes."""
    names = chosen(objective)
    if not names:
        raise InputError("objective must name at least one. Write objective=kd.")
    for name in names:
        if num_classes < 3 and name in _THREE_CLASSES:
            raise InputError(
                f"objective={name} compares the classes other than the label's with each other; with {num_classes} "
                "classes there is one. Take objective=kd."
            )
    if "module" in objective:
        _existing(objective["module"])


def load(objective: Mapping) -> None:
    """Run the file of the user's own that `module` names, if there is one: it registers an objective.

    Raises InputError where there is no such file, or it registers nothing under the chosen name.
    """
    path = objective.get("module")
    if path is None or str(Path(path).resolve()) in _loaded:
        return
    spec = util.spec_from_file_location(f"kdrun_objective_{len(_loaded)}", _existing(path))
    module = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"objective.module: {path} cannot be run: {type(error).__name__}: {error}.") from error
    for name in chosen(objective):
        try:
            get("objective", name)
        except KeyError as error:
            raise InputError(
                f'objective.module: {path} registers no objective {name}. Put @register("objective", "{name}") above '
                "its function."
            ) from error
    _loaded.add(str(Path(path).resolve()))


def _existing(path: str) -> str:
    if not Path(path).is_file():
        raise InputError(f"objective.module: {path} is not a file. Give a Python file that registers an objective.")
    return path


_loaded: set[str] = set()
