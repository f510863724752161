"""A config held against the rules of its keys. Neither TensorFlow nor NumPy in here: it answers at once.

A config is plain dictionaries, as they are hashed and recorded. The keys of a net, a data source, an objective, an
optimizer, a tracker or a stage are those of its function's signature, and mean what their owner says; see registry.
"""

import inspect
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Unpack, cast, get_args, get_origin, get_type_hints, is_typeddict

from kdrun import registry
from kdrun.config import rules
from kdrun.config.keys import Config, Data, Keys, Schedule, Weight
from kdrun.config.mistakes import missing_key, unknown_key
from kdrun.config.rules import Rule, one_of
from kdrun.errors import InputError


def load(given: Mapping) -> Config:
    """The config with its values checked one by one, as plain dictionaries.

    Raises UnknownKey for a key that there is not, InputError for one that is missing, and a value that cannot be.
    """
    given = with_defaults(with_optimizers(with_arms(given)))
    known, values = keys(given), dict(flatten(given))
    for key in values:
        if key not in known:
            raise unknown_key(key, known)
    for key in known:
        if key not in values:
            raise missing_key(key, given)
    checked = {key: known[key](key, value) for key, value in _in_order(values, known)}
    return cast(Config, nested({key: checked[key] for key in values}))


def keys(given: Mapping) -> dict[str, Rule]:
    """The rules of all dotted keys that a config has with the names that it chooses. Raises InputError for a name that
    there is not."""
    given = with_optimizers(given)
    if not given.get("objective"):
        raise InputError("objective must name at least one. Write objective=kd.")
    stage = given.get("stage")
    entry = _entry("stage", stage, "stage")
    found = _leaves(Config, "") | {"stage": one_of(entry.name)}
    if entry.is_part:
        raise InputError(f"stage={stage} is a part of another stage, and not run by itself.")
    found |= own_keys(entry)
    found |= _owned("data", given.get("data"), "data", Data)
    found |= _owned("optimizer", given.get("optimizer"), "optimizer", Schedule)
    for role in ("teacher", "student"):
        of_role = given.get(role)
        if not isinstance(of_role, Mapping):
            continue
        found |= _owned("model", of_role.get("model"), f"{role}.model")
        found |= _owned("optimizer", of_role.get("optimizer"), f"{role}.optimizer", Schedule)
    if isinstance(given.get("controls"), Mapping):
        found |= _controls(given)
    for kind, rules_of in (("objective", _objectives), ("tracker", _trackers)):
        if isinstance(given.get(kind), Mapping):
            found |= rules_of(given[kind])
    return {key: rule for key, rule in found.items() if rule is not _GROUP}


def own_keys(entry: registry.Entry, prefix: str = "") -> dict[str, Rule]:
    """The rules of an entry's own keys, by its function's parameters. Raises InputError where a parameter
    is annotated with what no rule is known for."""
    found: dict[str, Rule] = {}
    for name, parameter in parameters(entry).items():
        annotation = annotation_of(entry, parameter)
        if is_typeddict(annotation):
            found |= _leaves(annotation, f"{prefix}{name}.")
        elif annotation is parameter.empty:
            found[prefix + name] = (
                rules.anything if parameter.default is parameter.empty else rules.like(parameter.default)
            )
        else:
            try:
                found[prefix + name] = rules.of_annotation(annotation)
            except TypeError as error:
                raise InputError(f"{entry.file}: {entry.name}, {name}: {error}.") from error
    return found


def parameters(entry: registry.Entry) -> dict[str, inspect.Parameter]:
    """The parameters of an entry's function that are its keys: those after what kdrun gives it, and those of a
    TypedDict that several entries share, `**keys: Unpack[...]`."""
    found: dict[str, inspect.Parameter] = {}
    for name, each in list(inspect.signature(entry.function).parameters.items())[entry.given :]:
        if each.kind is each.VAR_KEYWORD and get_origin(each.annotation) is Unpack:
            for key, annotation in get_type_hints(get_args(each.annotation)[0], include_extras=True).items():
                found[key] = inspect.Parameter(key, each.KEYWORD_ONLY, annotation=annotation)
        elif each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            found[name] = each
    return found


def own(config: Mapping, entry: registry.Entry) -> dict[str, Any]:
    """The values of an entry's own keys in the mapping that has them."""
    return {name: config[name] for name in parameters(entry) if name in config}


def shared(config: Mapping) -> dict[str, Any]:
    """A config without the keys of its stage's own: for another stage that is a part of it."""
    return {key: value for key, value in config.items() if key in Config.__annotations__}


def for_role(config: Mapping, role: str | None) -> Config:
    """The config as one role's network sees it: the data with its image size and augmentation, validation images
    trained on or not, and for the teacher all training images; None: of several networks, as it is."""
    if role is None:
        return cast(Config, dict(config))
    data = {**config["data"], **{key: config[role][key] for key in _OF_ROLES}}
    if role == "teacher":
        data |= {**ALL_IMAGES, "transfer": None}
    return cast(Config, {**config, "data": data})


_OF_ROLES = ("image_size", "normalise", "augment", "train_on_validation")  # keys of data that each role has its own of

# the keys of data that choose among the students' training images, as they are where all are taken
ALL_IMAGES: dict[str, Any] = {"include_classes": None, "exclude_classes": [], "train_fraction": 1.0}


# keys that came when there were runs already, as these had them: where they are so, no identity has them
_LATER: dict[str, Any] = {"normalise": "none"}
_LATER_OF_AUGMENT: dict[str, Any] = {
    "resized_crop": 1.0,
    "colour": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
    "cutout": 0.0,
    "views": None,
    "seed": 0,
}


LATER_OF_OPTIMIZER: dict[str, Any] = {"decay": "all", "coupled": False, "clip_norm": None, "ema": None}
LATER_OF_OPTIMIZER |= {"step_epochs": None, "step_factor": 0.1}
LATER_OF_TRAINING: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
_LATER_OF_ROLES = {"initial_weights": None, "freeze": None, "new_learning_rate": None, **LATER_OF_TRAINING}
LATER_OF_STUDENT: dict[str, Any] = {"quantize": None}
_LATER_OF_TEACHER: dict[str, Any] = {
    "file": None,
    "input": {"size": None, "channels": None, "layout": None, "scale": None, "mean": 0.0, "std": 1.0},
    "classes": None,
    "weak": "refuse",
    "time_limit": 300.0,
}
_LATER_OF_DATA: dict[str, Any] = {
    **{"split": "first", "split_seed": 0, "on_device": "auto"},
    **{"transfer": None, "transfer_store": "outputs/.cache/images"},
}
LATER_OF_ALL: dict[str, Any] = {
    **{"devices": 1, "sync_batch_norm": False},
    **{"cluster": None, "task": None, "cluster_timeout": 300.0},
}


def depended_on(data: Mapping) -> dict:
    """What of data, as a role's network sees them, a result depends on, as identities have it."""
    found = {**data, "augment": _without(data["augment"], _LATER_OF_AUGMENT)}
    return _without(found, _LATER)


def depended_on_optimizer(optimizer: Mapping) -> dict:
    """What of a role's optimizer a result depends on, as identities have it."""
    return _without(optimizer, LATER_OF_OPTIMIZER)


def _without(given: Mapping, later: Mapping) -> dict:
    return {key: value for key, value in given.items() if key not in later or value != later[key]}


def with_later_keys(config: Mapping) -> dict:
    """A recorded config, with the keys that it lacks because they came later."""
    leaves, later = dict(flatten(config)), {**_LATER, "augment": _LATER_OF_AUGMENT}
    role = {**later, **_LATER_OF_ROLES, "image_size": leaves["data.image_size"], "optimizer": LATER_OF_OPTIMIZER}
    of_data = {**later, **_LATER_OF_DATA}
    of_all = {**LATER_OF_ALL, "data": of_data, "optimizer": LATER_OF_OPTIMIZER, "distill": LATER_OF_TRAINING}
    missing = flatten({**of_all, "teacher": {**role, **_LATER_OF_TEACHER}, "student": {**role, **LATER_OF_STUDENT}})
    return nested({**leaves, **{key: value for key, value in missing if key not in leaves}})


def flatten(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty mapping is a leaf."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{key}.")
        else:
            yield key, value


def nested(leaves: Mapping[str, Any]) -> dict:
    """What `flatten` has flattened."""
    tree: dict = {}
    for key, value in leaves.items():
        *path, last = key.split(".")
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch[last] = value
    return tree


def with_arms(given: Mapping) -> Mapping:
    """The config; of a stage that trains one student, over several seeds: of the stage that it is an arm of."""
    stage = given.get("stage")
    if not isinstance(stage, str) or not registry.has("stage", stage):
        return given
    whole = registry.get("stage", stage).arm_of
    asked = given.get("seeds") is not None or given.get("teachers") is not None or given.get("controls")
    return {**given, "stage": whole, "arms": [stage]} if whole and asked else given


# the keys of several jobs, as they are in the config of one
ONE_JOB: dict[str, Any] = {"workers": 1, "seeds": None, "teachers": None, "controls": {}}


def overlaid(config: Mapping, control: Mapping) -> dict:
    """The config with what a control changes; its objectives are instead of others, not beside them."""
    found = dict(config)
    for key, value in control.items():
        is_group = isinstance(value, Mapping) and isinstance(found.get(key), Mapping) and key != "objective"
        found[key] = overlaid(found[key], value) if is_group else value
    return found


def with_optimizers(given: Mapping) -> dict:
    """The config with each role's optimizer, which is the common one but for the keys that are its own."""
    common, found = given.get("optimizer"), dict(given)
    for role in ("teacher", "student"):
        of_role = given.get(role)
        if isinstance(of_role, Mapping) and isinstance(common, Mapping):
            its_own = of_role.get("optimizer") or {}
            whole = its_own if "name" in its_own else {**common, **its_own}
            found[role] = {**of_role, "optimizer": whole}
    return found


def with_defaults(given: Mapping) -> dict:
    """The config with keys that nobody has given: that a file of the user's own has defaults for, and those of
    optimizers that came when there were files of users' own that choose one."""
    found: dict[str, Any] = dict(given)
    for kind in {"data", "optimizer"} & given.keys():
        found[kind] = _defaults(kind, given[kind])
    for role in ("teacher", "student"):
        if isinstance(of_role := given.get(role), Mapping):
            own = {kind: _defaults(kind, of_role[kind]) for kind in ("model", "optimizer") if kind in of_role}
            found[role] = {**of_role, **own}
    for kind in ("objective", "tracker"):
        if isinstance(chosen := given.get(kind), Mapping):
            found[kind] = {name: _defaults(kind, keys, name) for name, keys in chosen.items()}
    return found


def _defaults(kind: str, keys: Any, name: str | None = None) -> Any:
    name = name or (keys.get("name") if isinstance(keys, Mapping) else None)
    if not isinstance(keys, Mapping) or not isinstance(name, str) or not registry.has(kind, name):
        return keys
    entry = registry.get(kind, name)
    own = {} if entry.is_shipped else parameters(entry)
    defaults = dict(LATER_OF_OPTIMIZER) if kind == "optimizer" else {}
    defaults |= {key: each.default for key, each in own.items() if each.default is not each.empty}
    return {**{key: list(each) if isinstance(each, tuple) else each for key, each in defaults.items()}, **keys}


def _in_order(values: Mapping, known: Mapping) -> Iterator[tuple[str, Any]]:
    """What other keys may follow first, so that what is wrong is said of the key that was given."""
    place = {key: number for number, key in enumerate(known)}
    return iter(sorted(values.items(), key=lambda item: (_rank(item[0]), place[item[0]])))


def _rank(key: str) -> int:
    return 0 if "." not in key else 1 if key.startswith(("data.", "optimizer.")) else 2


def _owned(kind: str, given: Any, prefix: str, common: type | None = None) -> dict[str, Rule]:
    if not isinstance(given, Mapping) or "name" not in given:
        return {f"{prefix}.name": rules.text}
    entry = _entry(kind, given["name"], prefix)
    found = _leaves(common, f"{prefix}.") if common else {}
    return {f"{prefix}.name": one_of(entry.name), **found, **own_keys(entry, f"{prefix}.")}


def _objectives(given: Any) -> dict[str, Rule]:
    """The rules of the objectives that are chosen, by their names."""
    found: dict[str, Rule] = {"objective.module": rules.path} if "module" in given else {}
    for name, own in given.items():
        if isinstance(own, Mapping):
            prefix = f"objective.{name}."
            found |= _leaves(Weight, prefix) | own_keys(_entry("objective", name, "objective"), prefix)
            if "layers" in own:  # which conf/objective/own.yaml has, whether the user's function takes it or not
                found.setdefault(f"{prefix}layers", rules.names)
    return found


def _controls(given: Mapping) -> dict[str, Rule]:
    """The rules of what controls change: those of the keys that they change."""
    found: dict[str, Rule] = {} if given["controls"] else {"controls": rules.nothing}
    for name, control in given["controls"].items():
        if isinstance(control, Mapping):
            of_control = keys({**overlaid(given, control), "controls": {}})
            found |= {f"controls.{name}.{key}": of_control[key] for key, _ in flatten(control) if key in of_control}
    return found


def _trackers(given: Any) -> dict[str, Rule]:
    """The rules of the trackers that are chosen, by their names; perhaps of none."""
    found: dict[str, Rule] = {} if given else {"tracker": rules.nothing}
    for name in given:
        if isinstance(given[name], Mapping) or registry.has("tracker", name):
            own = own_keys(_entry("tracker", name, "tracker"), f"tracker.{name}.")
            found |= own or {f"tracker.{name}": rules.nothing}
    return found


def _entry(kind: str, name: Any, key: str) -> Any:
    if not isinstance(name, str):
        raise InputError(f"{key} must be a name, got {name!r}.")
    try:
        return registry.get(kind, name)
    except InputError as error:
        raise InputError(f"{key}={name}: {error}") from error


def _group(key: str, given: Any) -> Any:  # the keys in it have the rules
    return given


_GROUP: Rule = _group


@lru_cache
def _leaves(cls: Any, prefix: str) -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for name, annotation in get_type_hints(cls, include_extras=True).items():
        if is_typeddict(annotation):
            found |= _leaves(annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = _GROUP if annotation == Keys else rules.of_annotation(annotation)
    return found


def annotation_of(entry: registry.Entry, parameter: inspect.Parameter) -> Any:
    """What a parameter of an entry's function is annotated with, as a value. Raises InputError where its module does
    not know a name in it."""
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        return annotation
    try:  # of a module with postponed annotations, whose others may name what is not loaded
        return eval(annotation, getattr(inspect.unwrap(entry.function), "__globals__", {}))
    except Exception as error:
        raise InputError(
            f"{entry.file}: {entry.name}, {parameter.name}: its annotation {annotation} is not known there ({error})."
        ) from error
