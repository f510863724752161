"""What a config may hold: every key's type and range. Neither TensorFlow nor NumPy in here, so that it answers at once.

Errors are InputErrors of one line: what, what was given, what is allowed. They come before a run directory is made.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from kdrun.errors import InputError

_FOLDER_NAME = re.compile(r"(?!\.)[\w.+=-]{1,100}", re.ASCII)
Rule = Callable[[str, Any], Any]  # (key, given) -> the value to use; raises InputError


def integer(least: int, most: int | None = None, optional: bool = False) -> Rule:
    """A whole number in a range; null where optional."""
    allowed = f"a whole number {f'of at least {least}' if most is None else f'from {least} to {most}'}"

    def check(key, given):
        if given is None and optional:
            return None
        whole = isinstance(given, int) and not isinstance(given, bool)
        if not whole or given < least or (most is not None and given > most):
            raise _refused(key, given, allowed + (" or null" if optional else ""), least if most is None else most)
        return given

    return check


def number(low: float, high: float = math.inf, low_included: bool = True, high_included: bool = True) -> Rule:
    """A finite number in a range; whole numbers become floats, so that 10 and 10.0 are one config."""
    allowed = f"a number {'of at least' if low_included else 'above'} {low:g}"
    if high < math.inf:
        allowed = f"a number from {low:g} to {high:g}" if high_included else f"a number from {low:g} to below {high:g}"

    def check(key, given):
        if isinstance(given, bool) or not isinstance(given, int | float) or not -1e300 < given < 1e300:
            raise _refused(key, given, allowed)
        inside = (given > low or (low_included and given == low)) and (
            given < high or (high_included and given == high)
        )
        if not inside:
            raise _refused(key, given, allowed)
        return float(given)

    return check


def integers(least: int) -> Rule:
    """A list, not empty, of whole numbers."""

    def check(key, given):
        whole = isinstance(given, list) and all(
            isinstance(n, int) and not isinstance(n, bool) and n >= least for n in given
        )
        if not whole or not given:
            raise _refused(key, given, f"a list of whole numbers of at least {least}, not empty", "[6,12]")
        return given

    return check


def classes(key: str, given: Any) -> list[int]:
    """A list of classes by number, perhaps empty."""
    return given if given == [] else integers(0)(key, given)


def numbers(low: float) -> Rule:
    """A list of finite numbers above a limit; each becomes a float."""

    def check(key, given):
        if not isinstance(given, list):
            raise _refused(key, given, f"a list of numbers above {low:g}", "[2,3]")
        return [number(low, low_included=False)(key, one) for one in given]

    return check


def temperatures(key: str, given: Any) -> list[float]:
    """A list of temperatures."""
    if not isinstance(given, list):
        raise _refused(key, given, "a list of temperatures", "[2,3]")
    return [temperature(key, one) for one in given]


def optional(rule: Rule) -> Rule:
    """What another rule allows, or null."""
    return lambda key, given: None if given is None else rule(key, given)


def auto_or(rule: Rule) -> Rule:
    """What another rule allows, or auto."""
    return lambda key, given: given if given == "auto" else rule(key, given)


def temperature(key: str, given: Any) -> float:
    """A temperature: float32 has no digits left for softer probabilities, or harder ones."""
    hint = " Matching logits is the limit for T to infinity: objective=logit_mse." if _above(given, 1e6) else ""
    try:
        return number(1e-6, 1e6)(key, given)
    except InputError as error:
        raise InputError(f"{error}{hint}") from error


def _above(given: Any, limit: float) -> bool:
    return isinstance(given, int | float) and given > limit


def path(key: str, given: Any) -> str:
    """The name of a file or folder; `~/` is the user's own folder."""
    return os.path.expanduser(text(key, given))


def paths(key: str, given: Any) -> str | list[str]:
    """The name of a file or folder, or a list of some."""
    return [path(key, one) for one in given] if isinstance(given, list) and given else path(key, given)


def boolean(key: str, given: Any) -> bool:
    """true or false."""
    if not isinstance(given, bool):
        raise _refused(key, given, "true or false", "true")
    return given


def text(key: str, given: Any) -> str:
    """A text that is not empty."""
    if not isinstance(given, str) or not given:
        raise _refused(key, given, "a text, not empty")
    return given


def names(key: str, given: Any) -> list[str]:
    """A list of texts, none of them empty."""
    if not isinstance(given, list):
        raise _refused(key, given, "a list of names", "[embedding]")
    return [text(key, one) for one in given]


def folder_name(key: str, given: Any) -> str | None:
    """A word that can be a folder's name, of at most 100 bytes, or null."""
    if given is not None and not (isinstance(given, str) and _FOLDER_NAME.fullmatch(given)):
        raise _refused(key, given, "at most 100 letters, digits and any of _.+=-, not beginning with a dot", "mine")
    return given


def switch(key: str, given: Any) -> str:
    """auto, on or off; YAML reads the last two as true and false."""
    named = {True: "on", False: "off"}.get(given, given) if isinstance(given, bool) else given
    return one_of("auto", "on", "off")(key, named)


def one_of(*names: str) -> Rule:
    """One of some names."""

    def check(key, given):
        if given not in names:
            raise _refused(
                key, given, f"one of {', '.join(names)}", (get_close_matches(str(given), names, 1) or names)[0]
            )
        return given

    return check


# Rules by the last part of a key: a name means the same thing wherever it stands. A key that is not here (of a model
# that somebody added, say) must be of its default's type.
RULES: dict[str, Rule] = {
    "seed": integer(0, 2**31 - 1),
    "threads": auto_or(integer(1, 1024)),
    "epochs": integer(1),
    "generations": integer(1, 100),
    "mixup": number(0),
    "peers": integer(0, 16),
    "batch_size": integer(1),
    "evaluation_batch_size": integer(1),
    "inference_batch_size": integer(1),
    "temperature": temperature,
    "temperature_end": optional(temperature),
    "alpha": number(0, 1),
    "alpha_end": optional(number(0, 1)),
    "alpha_warmup_epochs": number(0),
    "annealing": one_of("linear", "cosine"),
    "precision": one_of("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    "outputs": path,
    "reuse": boolean,
    "resume": optional(path),
    "every_minutes": number(0, low_included=False),
    "cache": switch,
    "cache_dir": path,
    "clusters": integer(2),
    "clear": boolean,
    "yes": boolean,
    "run": paths,
    "overlap": one_of("refuse", "allow"),
    "combine": one_of("probabilities", "logits"),
    "weights": optional(numbers(0)),
    "logits": optional(path),
    "shuffle": one_of("none", "within_class", "all"),
    "cache_features": boolean,
    "classifier": one_of("own", "teacher"),
    "runs": paths,
    "margin": number(0),
    "sweep": folder_name,
    "path": path,
    "image_size": integer(1, 4096),
    "validation_size": integer(1),
    "train_size": integer(1, optional=True),
    "test_size": integer(1, optional=True),
    "num_classes": integer(2, optional=True),
    "train_on_validation": boolean,
    "train_fraction": number(0, 1, low_included=False),
    "include_classes": optional(integers(0)),
    "exclude_classes": classes,
    "classes": integers(0),
    "patience": integer(1, optional=True),
    "max_norm": optional(number(0, low_included=False)),
    "jitter": integer(0, 64),
    "flip": boolean,
    "growth_rate": integer(1),
    "blocks": integers(1),
    "hidden_units": integers(1),
    "filters": integers(1),
    "input_dropout": number(0, 1, high_included=False),
    "hidden_dropout": number(0, 1, high_included=False),
    "learning_rate": number(0, low_included=False),
    "weight_decay": number(0),
    "momentum": number(0, 1, high_included=False),
    "beta_1": number(0, 1, high_included=False),
    "beta_2": number(0, 1, high_included=False),
    "epsilon": number(0, low_included=False),
    "rectify": boolean,
    "nesterov": boolean,
    "schedule": one_of("constant", "cosine"),
    "warmup_epochs": number(0),
    "weight": number(0),
    "weight_end": optional(number(0)),
    "scale_by_temperature_squared": boolean,
    "standardise_logits": boolean,
    "zero_mean": boolean,
    "target_weight": number(0),
    "non_target_weight": number(0),
    "inter_weight": number(0),
    "intra_weight": number(0),
    "temperatures": temperatures,
    "batch_weight": number(0),
    "class_weight": number(0),
    "smoothing": number(0, 1),
    "probability": number(0, 1, low_included=False, high_included=False),
    "soften": one_of("probabilities", "logits"),
    "student_temperature": optional(temperature),
    "layers": names,
    "distance_weight": number(0),
    "angle_weight": number(0),
    "gamma": number(0, low_included=False),
    "order": integer(1, 10),
    "dimensions": integer(1),
    "negatives": integer(1),
    "contrastive_temperature": number(0, low_included=False),
    "module": path,
    "histograms": boolean,
    "measure_latency": boolean,
}


def check(given: Mapping, reference: Mapping) -> dict:
    """The config with its values checked one by one, as plain dictionaries.

    `reference` is the same choice of groups with nothing overridden: it says which keys there are, and of what type.
    The stage and keys called `name` are their group's and cannot be set by hand.
    """
    known = dict(flatten(reference))
    values = dict(flatten(given))
    for key in values.keys() - known.keys():
        raise unknown_key(key, known)
    for key in known.keys() - values.keys():
        raise InputError(f"{key} was removed; it must stay. Leave out ~{key.split('.')[0]}.")
    for key, value in values.items():
        if not str(known[key]).startswith("${"):  # those that follow it are wrong because of it
            _value(key, value, known)
    return _checked(given, known, "")


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


def flatten(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty mapping is a leaf."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{key}.")
        else:
            yield key, value


def _checked(tree: Mapping, known: Mapping, prefix: str) -> dict:
    checked = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        nested = isinstance(value, Mapping) and value
        checked[name] = _checked(value, known, f"{key}.") if nested else _value(key, value, known)
    return checked


def _value(key: str, value: Any, known: Mapping) -> Any:
    group, _, name = key.rpartition(".")
    if name in ("name", "stage") and value != known[key]:
        group = group or name
        choice = f"model@{group}" if group.endswith(".model") else group
        raise InputError(f"{key} cannot be set by hand, got {value!r}: it is its group's. Write {choice}={value}.")
    return RULES.get(name, _like(known[key]))(key, value)


def _like(default: Any) -> Rule:
    if isinstance(default, bool):
        return boolean
    if isinstance(default, int):
        return integer(-(2**63))
    if isinstance(default, float):
        return number(-math.inf)
    if isinstance(default, Mapping):
        return _no_keys
    return text if isinstance(default, str) else lambda key, given: given


def _no_keys(key: str, given: Any) -> dict:
    """An empty mapping: of a choice that has no keys of its own."""
    if given != {}:
        raise _refused(key, given, "{}: it has no keys")
    return given


def _refused(key: str, given: Any, allowed: str, example: Any = None) -> InputError:
    shown = "null" if given is None else str(given).lower() if isinstance(given, bool) else repr(given)
    hint = "" if example is None else f" For example {key}={example}."
    return InputError(f"{key} must be {allowed}, got {shown}.{hint}")
