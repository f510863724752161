"""Every key of a config, each with its type and range. Neither TensorFlow nor NumPy in here: it answers at once.

A config is plain dictionaries, as they are hashed and recorded. The keys of a net, a data source, an objective, an
optimizer, a tracker or a stage are those of its function's signature, and mean what their owner says; see registry.
"""

import inspect
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Annotated, Any, TypedDict, cast, get_type_hints, is_typeddict

from kdrun import registry
from kdrun.config import rules
from kdrun.config.rules import Amount, Count, Fraction, Path, Paths, Positive, Rule, Temperature, integer, one_of
from kdrun.errors import InputError

Keys = Mapping[str, Any]  # of an owner: its `name`, and what its function's signature says


class Augment(TypedDict):
    """Of the images that a network learns from."""

    jitter: Annotated[int, integer(0, 64)]
    flip: bool


class Training(TypedDict):
    """How long a network is trained, and on how many images a step."""

    epochs: Count
    patience: Annotated[int | None, integer(1, optional=True)]
    batch_size: Count


class Role(Training):
    """What teacher and student each have of their own."""

    augment: Augment
    train_on_validation: bool
    model: Keys
    optimizer: Keys


class Teacher(Role):
    """The teacher, or those who are to teach."""

    run: Paths
    combine: Annotated[str, one_of("probabilities", "logits")]
    weights: Annotated[list[float] | None, rules.optional(rules.numbers(0))]
    logits: Annotated[str | None, rules.optional(rules.path)]
    overlap: Annotated[str, one_of("refuse", "allow")]
    shuffle: Annotated[str, one_of("none", "within_class", "all")]
    seed: Annotated[int, integer(0, 2**31 - 1)]
    cache: Annotated[str, rules.switch]
    cache_features: bool
    inference_batch_size: Count


class Student(Role):
    """The student, alone or distilled."""

    classifier: Annotated[str, one_of("own", "teacher")]


class Distill(Training):
    """How a student is distilled."""

    peers: Annotated[int, integer(0, 16)]
    mixup: Amount


class Data(TypedDict):
    """What all data sources have in common; a source's own keys stand beside these."""

    image_size: Annotated[int, integer(1, 4096)]
    validation_size: Count
    train_on_validation: bool
    train_size: Annotated[int | None, integer(1, optional=True)]
    test_size: Annotated[int | None, integer(1, optional=True)]
    train_fraction: Annotated[float, rules.number(0, 1, low_included=False)]
    include_classes: Annotated[list[int] | None, rules.optional(rules.integers(0))]
    exclude_classes: Annotated[list[int], rules.classes]
    augment: Augment


class Schedule(TypedDict):
    """What all optimizers have in common."""

    learning_rate: Positive
    schedule: Annotated[str, one_of("constant", "cosine")]
    warmup_epochs: Amount


class Weight(TypedDict):
    """What all objectives have in common; their functions do not get it."""

    weight: Amount
    weight_end: Annotated[float | None, rules.optional(rules.number(0))]
    warmup_epochs: Amount


class Checkpoint(TypedDict):
    """When training states are saved."""

    every_minutes: Positive


class Compare(TypedDict):
    """How runs are held against each other."""

    margin: Amount


class Tensorboard(TypedDict):
    """What curves are shown with."""

    histograms: bool


class Config(TypedDict):
    """All keys that every stage has; a stage's own stand beside these."""

    stage: str
    seed: Annotated[int, integer(0, 2**31 - 1)]
    epochs: Count
    patience: Annotated[int | None, integer(1, optional=True)]
    batch_size: Count
    temperature: Temperature
    temperature_end: Annotated[float | None, rules.optional(rules.temperature)]
    alpha: Fraction
    alpha_end: Annotated[float | None, rules.optional(rules.number(0, 1))]
    alpha_warmup_epochs: Amount
    annealing: Annotated[str, one_of("linear", "cosine")]
    precision: Annotated[str, one_of("auto", "float32", "mixed_bfloat16", "mixed_float16")]
    threads: Annotated[int | str, rules.auto_or(integer(1, 1024))]
    evaluation_batch_size: Count
    resume: Annotated[str | None, rules.optional(rules.path)]
    outputs: Path
    sweep: Annotated[str | None, rules.folder_name]
    cache_dir: Path
    reuse: bool
    plugins: Annotated[list[str], rules.files]
    measure_latency: bool
    data: Keys
    optimizer: Keys
    objective: Keys
    tracker: Keys
    teacher: Teacher
    student: Student
    distill: Distill
    checkpoint: Checkpoint
    compare: Compare
    tensorboard: Tensorboard


DATA = tuple(Data.__annotations__)
SCHEDULE = tuple(Schedule.__annotations__)
WEIGHT = tuple(Weight.__annotations__)


def load(given: Mapping) -> Config:
    """The config with its values checked one by one, as plain dictionaries.

    Raises InputError for a key that there is not, one that is missing, and a value that cannot be.
    """
    given = with_defaults(with_optimizers(given))
    known, values = keys(given), dict(flatten(given))
    if (key := unknown(given)) is not None:
        raise unknown_key(key, known)
    for key in known:
        if key not in values:
            raise _missing(key, given)
    checked = {key: known[key](key, value) for key, value in _in_order(values, known)}
    return cast(Config, nested({key: checked[key] for key in values}))


def unknown(given: Mapping) -> str | None:
    """The first of a config's dotted keys that there is not, with the names that it chooses; None where all are."""
    known = keys(given)
    return next((key for key, _ in flatten(with_optimizers(given)) if key not in known), None)


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
    found |= _several("objective", given.get("objective"), Weight) | _several("tracker", given.get("tracker"))
    if isinstance(given.get("objective"), Mapping) and "module" in given["objective"]:
        found["objective.module"] = rules.path
    if given.get("tracker") == {}:  # nobody is told
        found["tracker"] = rules.nothing
    return {key: rule for key, rule in found.items() if rule is not _GROUP}


def own_keys(entry: registry.Entry, prefix: str = "") -> dict[str, Rule]:
    """The rules of an entry's own keys, by its function's parameters. Raises InputError where a parameter
    is annotated with what no rule is known for."""
    found: dict[str, Rule] = {}
    for name, parameter in parameters(entry).items():
        annotation = _annotation(entry, parameter)
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
    """The parameters of an entry's function that are its keys: those after what kdrun gives it."""
    found = list(inspect.signature(entry.function).parameters.items())[entry.given :]
    return {name: each for name, each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}


def own(config: Mapping, entry: registry.Entry) -> dict[str, Any]:
    """The values of an entry's own keys in the mapping that has them."""
    return {name: config[name] for name in parameters(entry) if name in config}


def shared(config: Mapping) -> dict[str, Any]:
    """A config without the keys of its stage's own: for another stage that is a part of it."""
    return {key: value for key, value in config.items() if key in Config.__annotations__}


def for_role(config: Mapping, role: str | None) -> Config:
    """The config as one role's network sees it: the data with its augmentation, validation images trained on or not,
    and for the teacher all training images; None: of several networks, as it is."""
    if role is None:
        return cast(Config, dict(config))
    data = {**config["data"], **{key: config[role][key] for key in ("augment", "train_on_validation")}}
    if role == "teacher":
        data |= ALL_IMAGES
    return cast(Config, {**config, "data": data})


# the keys of data that choose among the students' training images, as they are where all are taken
ALL_IMAGES: dict[str, Any] = {"include_classes": None, "exclude_classes": [], "train_fraction": 1.0}


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
    """The config with keys that a file of the user's own has defaults for, and nobody has given."""
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
    defaults = {key: each.default for key, each in own.items() if each.default is not each.empty}
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


def _several(kind: str, given: Any, common: type | None = None) -> dict[str, Rule]:
    """The rules of a group that chooses several by their names."""
    found: dict[str, Rule] = {}
    for name in given if isinstance(given, Mapping) else ():
        if isinstance(given[name], Mapping):
            entry = _entry(kind, name, kind)
            of_one = {**(_leaves(common, f"{kind}.{name}.") if common else {}), **own_keys(entry, f"{kind}.{name}.")}
            if "layers" in given[name]:  # which every objective may have in its file of keys, and need not take
                of_one.setdefault(f"{kind}.{name}.layers", rules.names)
            found |= of_one or {f"{kind}.{name}": rules.nothing}
        elif common is None and registry.has(kind, name):
            found[f"{kind}.{name}"] = rules.nothing
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


def _annotation(entry: registry.Entry, parameter: inspect.Parameter) -> Any:
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        return annotation
    try:  # of a module with postponed annotations, whose others may name what is not loaded
        return eval(annotation, getattr(inspect.unwrap(entry.function), "__globals__", {}))
    except Exception as error:
        raise InputError(
            f"{entry.file}: {entry.name}, {parameter.name}: its annotation {annotation} is not known there ({error})."
        ) from error


def _missing(key: str, given: Mapping) -> InputError:
    group = key.rpartition(".")[0]
    owner: Any = given
    for part in group.split(".") if group else ():
        owner = owner.get(part, {}) if isinstance(owner, Mapping) else {}
    if isinstance(owner, Mapping) and isinstance(owner.get("name"), str):
        choice = f"model@{group}" if group.endswith(".model") else group
        return InputError(
            f"{key} is missing, which {owner['name']} has. Leave out ~{key}; and {group}.name cannot be set by hand: "
            f"write {choice}={owner['name']}."
        )
    return InputError(f"{key} was removed; it must stay. Leave out ~{key.split('.')[0]}.")


def unknown_key(key: str, known: Mapping) -> InputError:
    """The error for a key that is not there, with the nearest ones that are."""
    near = _nearest(key, known) or [k for k in known if k.startswith(f"{key}.")][:3]
    hint = f"Did you mean {', '.join(near)}?" if near else "See kdrun --cfg job for every key."
    if key == "objective.module":
        hint = "It goes with objective=own. Add that."
    return InputError(f"{key}: there is no such key. {hint}")


def _nearest(key: str, known: Mapping) -> list[str]:
    """Keys that may be meant: the same word in another place (student.alpha -> alpha), its letters (lr ->
    optimizer.learning_rate), or what is most like it, as a whole or by its last word; three at most."""
    word = key.split(".")[-1]
    of_word = [k for k in known if k.split(".")[-1] == word]
    of_word = of_word or [k for k in known if "".join(part[:1] for part in k.split(".")[-1].split("_")) == word]
    if of_word:
        return of_word[:3]
    likeness = {k: max(_likeness(key, k), _likeness(word, k.split(".")[-1])) for k in known}
    best = max(likeness.values(), default=0.0)
    near = sorted((k for k in known if likeness[k] >= max(0.6, best - 0.1)), key=lambda k: (-likeness[k], len(k)))
    return near[:3]


def _likeness(word: str, other: str) -> float:
    return SequenceMatcher(None, word, other).ratio()
