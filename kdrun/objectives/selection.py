"""Selection of objectives by a config: names, weights, needs. No TensorFlow in here.

In a config, `objective` maps each chosen objective's name to its keys; `module` names a file that registers one.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from kdrun import registry
from kdrun.config.keys import WEIGHT
from kdrun.config.schema import own
from kdrun.errors import InputError


def chosen(objective: Mapping) -> dict[str, Mapping]:
    """Each objective's keys, by its name."""
    return {name: keys for name, keys in objective.items() if isinstance(keys, Mapping)}


def functions(objective: Mapping) -> dict[str, Callable]:
    """The objectives by name, functions of a batch alone."""
    return {name: partial(entry.function, **own(keys, entry)) for name, keys, entry in _entries(objective)}


def weights(objective: Mapping) -> list[tuple[float, float | None, float]]:
    """Each one's weight, where it ends, and the epochs of its warm-up, in the same order."""
    return [tuple(keys[key] for key in WEIGHT) for keys in chosen(objective).values()]


def without_weights(objective: Mapping) -> dict:
    """What the compiled functions depend on: weights are their inputs."""
    return {
        name: {key: value for key, value in keys.items() if key not in WEIGHT} if isinstance(keys, Mapping) else keys
        for name, keys in objective.items()
    }


def need_teacher(objective: Mapping) -> bool:
    """Whether any of them does; one that is not known here, of somebody else's run, is taken to."""
    return any(
        not registry.has("objective", name) or registry.get("objective", name).needs_teacher
        for name in chosen(objective)
    )


def need_labels(objective: Mapping) -> bool:
    """Whether any of them does."""
    return any(entry.needs_labels for _, _, entry in _entries(objective))


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
    for name, keys, entry in _entries(objective):
        for layer in keys.get("layers", ()):
            ours, _, theirs = layer.partition(":")
            are_maps = {ours in student_maps, (theirs or ours) in teacher_maps}
            if entry.compares == "maps" and are_maps != {True}:
                raise InputError(
                    f"objective={name} compares maps, and layer {layer} is a vector. Name convolutional layers, or "
                    "take another objective."
                )
            if entry.compares == "one_kind" and len(are_maps) > 1:
                raise InputError(
                    f"objective={name}: layer {layer} is a map on one side and a vector on the other. Name two of one "
                    "kind."
                )


def check(objective: Mapping, num_classes: int) -> None:
    """Raises InputError for objectives that cannot be, or not with so many classes."""
    if not chosen(objective):
        raise InputError("objective must name at least one. Write objective=kd.")
    for name, _, entry in _entries(objective):
        if num_classes < entry.min_classes:
            raise InputError(
                f"objective={name} compares the classes other than the label's with each other; with {num_classes} "
                "classes there is one. Take objective=kd."
                if entry.is_shipped
                else f"objective={name} needs at least {entry.min_classes} classes, and there are {num_classes}."
            )


def are_shipped(objective: Mapping) -> bool:
    """Whether all of them come with kdrun."""
    return all(entry.is_shipped for _, _, entry in _entries(objective))


def are_to_be_tried(objective: Mapping) -> bool:
    """Whether it shows only when they are called that they fit a pair of nets: objectives on features, and those of a
    file of the user's own."""
    return bool(layers(objective)) or not are_shipped(objective)


def _entries(objective: Mapping) -> Iterator[tuple[str, Mapping, registry.Objective]]:
    for name, keys in chosen(objective).items():
        yield name, keys, registry.get("objective", name)
