"""Rules that a key's value must follow: (key, given) -> the value to use, or InputError.

For `Annotated[int, integer(1)]`, beside the key. Errors are of one line: what, what was given, what is allowed.
"""

import math
import os
import re
import types
import typing
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal
from weakref import WeakKeyDictionary

from kdrun.errors import InputError

_FOLDER_NAME = re.compile(r"(?!\.)[\w.+=-]{1,100}", re.ASCII)
Rule = Callable[[str, Any], Any]
PATH, FOLDER = "path/", "folder/"  # among what is offered: any file or folder; a folder alone
_offers: WeakKeyDictionary[Rule, tuple[str, ...]] = WeakKeyDictionary()


def offers(rule: Rule) -> tuple[str, ...]:
    """The few words that a rule allows, for a shell to complete; PATH or FOLDER among them. Empty for all others."""
    return _offers.get(rule, ())


def _offering(*words: str) -> Callable[[Rule], Rule]:
    def note(rule: Rule) -> Rule:
        _offers[rule] = words
        return rule

    return note


def integer(least: int, most: int | None = None, optional: bool = False) -> Rule:
    """A whole number in a range; null where optional."""
    allowed = f"a whole number {f'of at least {least}' if most is None else f'from {least} to {most}'}"
    if least == -(2**63):
        allowed = "a whole number"

    def check(key: str, given: Any) -> int | None:
        if given is None and optional:
            return None
        whole = isinstance(given, int) and not isinstance(given, bool)
        if not whole or given < least or (most is not None and given > most):
            raise _refused(key, given, allowed + (" or null" if optional else ""), least if most is None else most)
        return given

    return check


def number(low: float, high: float = math.inf, low_included: bool = True, high_included: bool = True) -> Rule:
    """A finite number in a range; whole numbers become floats, so that 10 and 10.0 are one config."""
    allowed = f"a number {'of at least' if low_included else 'above'} {low:g}" if low > -math.inf else "a number"
    if high < math.inf:
        allowed = f"a number from {low:g} to {high:g}" if high_included else f"a number from {low:g} to below {high:g}"

    def check(key: str, given: Any) -> float:
        if isinstance(given, bool) or not isinstance(given, int | float) or not -1e300 < given < 1e300:
            raise _refused(key, given, allowed)
        inside = (given > low or (low_included and given == low)) and (
            given < high or (high_included and given == high)
        )
        if not inside:
            raise _refused(key, given, allowed)
        return float(given)

    return check


def part(key: str, given: Any) -> float:
    """A number above 0 and up to 1; null is 1, the whole."""
    return 1.0 if given is None else number(0, 1, low_included=False)(key, given)


def side(key: str, given: Any) -> float:
    """A side in whole pixels, or, below 1, as a part of the image's."""
    found = number(0, 4096)(key, given)
    if found > 1 and found != int(found):
        raise _refused(key, given, "a whole number of pixels, or a part of the image's side below 1", 8)
    return found


@_offering("none", "dataset", "imagenet")
def normalisation(key: str, given: Any) -> str | list[list[float]]:
    """none, dataset, imagenet, or two lists: means and standard deviations of one channel or three."""
    if not isinstance(given, list):
        return one_of("none", "dataset", "imagenet")(key, given)
    if len(given) != 2 or not all(isinstance(each, list) and len(each) in (1, 3) for each in given):
        raise _refused(key, given, "two lists of one number or of three, means and deviations", "[[0.5],[0.25]]")
    mean, std = given
    if len(mean) != len(std):
        raise _refused(key, given, "as many means as deviations", "[[0.5],[0.25]]")
    return [[number(-math.inf)(key, each) for each in mean], numbers(0)(key, std)]


def integers(least: int) -> Rule:
    """A list, not empty, of whole numbers."""

    def check(key: str, given: Any) -> list[int]:
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

    def check(key: str, given: Any) -> list[float]:
        if not isinstance(given, list):
            raise _refused(key, given, f"a list of numbers above {low:g}", "[2,3]")
        return [number(low, low_included=False)(key, one) for one in given]

    return check


def number_or_name(key: str, given: Any) -> int | str | None:
    """A whole number of at least 1, a name, or null."""
    if isinstance(given, int) and not isinstance(given, bool):
        return integer(1)(key, given)
    return None if given is None else text(key, given)


def of_channels(low: float) -> Rule:
    """A finite number above a limit, or a list of one of each channel."""
    one = number(low, low_included=False)

    def check(key: str, given: Any) -> float | list[float]:
        if not isinstance(given, list):
            return one(key, given)
        if len(given) not in (1, 3):
            raise _refused(key, given, "one number, or a list of one for each channel", "[0.5,0.5,0.5]")
        return [one(key, each) for each in given]

    return check


@_offering("grey", "rgb", "bgr")
def channels(key: str, given: Any) -> str:
    """What channels images have, in their order: grey (or 1), rgb (or 3), bgr."""
    return one_of("grey", "rgb", "bgr")(key, {1: "grey", 3: "rgb"}.get(given, given) if type(given) is int else given)


@_offering(PATH)
def outputs(key: str, given: Any) -> str | list[int] | list[str]:
    """Which outputs of a network are our classes: their numbers, or the names of all outputs, or a file of these."""
    if isinstance(given, str):
        return path(key, given)
    of_names = isinstance(given, list) and given and all(isinstance(each, str) for each in given)
    found = names(key, given) if of_names else integers(0)(key, given)
    if len(set(found)) < len(found):
        raise _refused(key, given, "a list without the same twice", "[2,0,1]")
    return found


def temperatures(key: str, given: Any) -> list[float]:
    """A list of temperatures."""
    if not isinstance(given, list):
        raise _refused(key, given, "a list of temperatures", "[2,3]")
    return [temperature(key, one) for one in given]


def optional(rule: Rule) -> Rule:
    """What another rule allows, or null."""
    words = offers(rule)
    null = ("null",) if words and not {PATH, FOLDER} & {*words} else ()
    return _offering(*words, *null)(lambda key, given: None if given is None else rule(key, given))


def auto_or(rule: Rule) -> Rule:
    """What another rule allows, or auto."""
    return _offering("auto", *offers(rule))(lambda key, given: given if given == "auto" else rule(key, given))


def temperature(key: str, given: Any) -> float:
    """A temperature: float32 has no digits left for softer probabilities, or harder ones."""
    hint = " Matching logits is the limit for T to infinity: objective=logit_mse." if _above(given, 1e6) else ""
    try:
        return number(1e-6, 1e6)(key, given)
    except InputError as error:
        raise InputError(f"{error}{hint}") from error


def _above(given: Any, limit: float) -> bool:
    return isinstance(given, int | float) and given > limit


@_offering(PATH)
def path(key: str, given: Any) -> str:
    """The name of a file or folder; `~/` is the user's own folder."""
    return os.path.expanduser(text(key, given))


@_offering(PATH)
def paths(key: str, given: Any) -> str | list[str]:
    """The name of a file or folder, or a list of some."""
    return [path(key, one) for one in given] if isinstance(given, list) and given else path(key, given)


@_offering(FOLDER)
def run_directory(key: str, given: Any) -> str:
    """The name of one run directory."""
    found = paths(key, given)
    if isinstance(found, list):
        raise _refused(key, found, "one run directory")
    return found


@_offering(PATH)
def files(key: str, given: Any) -> list[str]:
    """A list of files' names, perhaps empty."""
    return [path(key, one) for one in listed(key, given)]


@_offering("true", "false")
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


@_offering("auto", "on", "off")
def switch(key: str, given: Any) -> str:
    """auto, on or off; YAML reads the last two as true and false."""
    named = {True: "on", False: "off"}.get(given, given) if isinstance(given, bool) else given
    return one_of("auto", "on", "off")(key, named)


def one_of(*names: str | int) -> Rule:
    """One of some names, or numbers."""
    words = {str(name): name for name in names}

    @_offering(*words)
    def check(key: str, given: Any) -> str | int:
        if not any(given == name and type(given) is type(name) for name in names):  # 1 is neither true nor 1.0
            nearest = get_close_matches(str(given), words, 1) or [*words]
            raise _refused(key, given, f"one of {', '.join(words)}", words[nearest[0]])
        return given

    return check


def size(key: str, given: Any) -> int | float | None:
    """How many of some images: a whole number, a fraction of them between 0 and 1, or null."""
    if isinstance(given, float) and 0 < given < 1:
        return given
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise _refused(key, given, "a whole number of at least 1, a fraction between 0 and 1, or null", 1000)
    return given


def some_of(*names: str, empty: bool = False) -> Rule:
    """A list of some names, each once; not empty, unless it may be `empty`."""

    @_offering(*names)
    def check(key: str, given: Any) -> list[str]:
        listed_ = isinstance(given, list) and (given or empty) and all(name in names for name in given)
        if not listed_ or len(set(given)) < len(given):
            raise _refused(key, given, f"a list of some of {', '.join(names)}, each once", f"[{names[0]}]")
        return given

    return check


def seeds(key: str, given: Any) -> int | list[int] | None:
    """How many seeds, or a list of them, each once; null: the one of `seed`."""
    if isinstance(given, list):
        for one in integers(0)(key, given):
            integer(0, 2**31 - 1)(key, one)
        if len(set(given)) < len(given):
            raise _refused(key, given, "a list of seeds, each once", "[0,1,2]")
        return given
    return integer(1, 1000, optional=True)(key, given)


@_offering("seeds")
def teachers(key: str, given: Any) -> int | str | None:
    """How many teachers; `seeds`: one for each of the students' seeds; null: one."""
    return given if given == "seeds" else integer(1, 100, optional=True)(key, given)


def nothing(key: str, given: Any) -> Any:
    """A mapping without keys."""
    if given:
        raise _refused(key, given, "without keys of its own")
    return given


def anything(key: str, given: Any) -> Any:
    """Whatever it is."""
    return given


def like(default: Any) -> Rule:
    """What is of a default's type."""
    if isinstance(default, bool):
        return boolean
    if isinstance(default, int):
        return integer(-(2**63))
    if isinstance(default, float):
        return number(-math.inf)
    return text if isinstance(default, str) else anything


def of_annotation(annotation: Any) -> Rule:
    """The rule that a parameter's or field's annotation stands for: the one in Annotated, else what is of that type.

    Raises TypeError for a type that there is no rule for.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        rule = next((each for each in inner[1:] if callable(each)), None)
        return rule or of_annotation(inner[0])
    if origin is Literal:
        return one_of(*inner)
    if origin in (typing.Union, types.UnionType) and type(None) in inner:
        of_value = [each for each in inner if each is not type(None)]
        if len(of_value) == 1:
            return optional(of_annotation(of_value[0]))
    simple = {bool: boolean, int: integer(-(2**63)), float: number(-math.inf), str: text, Any: anything}
    if annotation in simple:
        return simple[annotation]
    if origin in (list, Sequence):
        return every(of_annotation(inner[0])) if inner else listed
    if annotation is list:
        return listed
    raise TypeError(f"there is no rule for {annotation}: annotate with int, float, bool, str, list[...], or Annotated")


def listed(key: str, given: Any) -> list:
    """A list."""
    if not isinstance(given, list):
        raise _refused(key, given, "a list", "[1,2]")
    return given


def every(rule: Rule) -> Rule:
    """A list, of whose values each follows another rule."""
    return _offering(*offers(rule))(lambda key, given: [rule(key, each) for each in listed(key, given)])


def _refused(key: str, given: Any, allowed: str, example: Any = None) -> InputError:
    shown = "null" if given is None else str(given).lower() if isinstance(given, bool) else repr(given)
    hint = "" if example is None else f" For example {key}={example}."
    return InputError(f"{key} must be {allowed}, got {shown}.{hint}")


# types with their rules, for what is common among keys
Count = Annotated[int, integer(1)]
Counts = Annotated[list[int], integers(1)]
Amount = Annotated[float, number(0)]
Positive = Annotated[float, number(0, low_included=False)]
Fraction = Annotated[float, number(0, 1)]
Rate = Annotated[float, number(0, 1, high_included=False)]
Size = Annotated[int | float | None, size]
Temperature = Annotated[float, temperature]
Path = Annotated[str, path]
Paths = Annotated[str | list[str], paths]
RunDirectory = Annotated[str, run_directory]
PathOrNone = Annotated[str | None, optional(path)]
RunDirectoryOrNone = Annotated[str | None, optional(run_directory)]
Layers = Annotated[list[str], names]
