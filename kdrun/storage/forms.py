"""Plain values, as JSON has them, held against the form that they must have: nothing that somebody else may have
written is used before.

A form is a type; None; a function that says whether a value is right; a tuple of forms, one of which it must have; a
list of one form, which each of a list's values must have; or a mapping of forms by key. A key that ends with "?" may be
missing, and `str` as a key stands for every key that is not named. Other keys are let pass.
"""

import re
from collections.abc import Mapping
from datetime import datetime

_TYPES = {str: "text", dict: "mapping"}
_SHOWN = 40  # characters of a wrong value


def problem(value, form, name: str = "") -> str | None:
    """What is wrong with a value, in one line that calls it `name`; None where it has the form."""
    if isinstance(form, Mapping):
        return _of_mapping(value, form, name)
    if isinstance(form, list):
        if not isinstance(value, list):
            return _wrong(value, "a list", name)
        found = (problem(each, form[0], f"{name}[{place}]") for place, each in enumerate(value))
        return next(filter(None, found), None)
    if isinstance(form, tuple):
        if any(problem(value, each) is None for each in form):
            return None
        # the last one says it best: None and the like stand before it
        return problem(value, form[-1], name)
    right = value is None if form is None else isinstance(value, form) if isinstance(form, type) else form(value)
    wanted = _TYPES.get(form) or getattr(form, "__name__", "null").replace("_", " ")
    return None if right else _wrong(value, wanted, name)


def _of_mapping(value, form: Mapping, name: str) -> str | None:
    if not isinstance(value, Mapping):
        return _wrong(value, "a mapping", name)
    named = {key.removesuffix("?"): (each, key.endswith("?")) for key, each in form.items() if key is not str}
    for key, (each, optional) in named.items():
        here = f"{name}.{key}" if name else key
        if key not in value:
            if not optional:
                return f"it lacks {here}"
        elif found := problem(value[key], each, here):
            return found
    for key in value.keys() - named.keys() if str in form else ():
        if found := problem(value[key], form[str], f"{name}[{_shown(key)}]"):
            return found
    return None


def _wrong(value, wanted: str, name: str) -> str:
    return f"{name or 'it'} is {_shown(value)}, which is no {wanted.removeprefix('a ')}"


def _shown(value) -> str:
    shown = ascii(value)  # in which no control character is left
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def whole(value) -> bool:
    """A whole number that any computer takes."""
    return type(value) is int and abs(value) < 2**63


def count(value) -> bool:
    """How many of something there are, at most as many as a float counts exactly."""
    return type(value) is int and 0 <= value < 2**53


def number(value) -> bool:
    """A finite number, far from where float64 ends."""
    return type(value) in (int, float) and -1e300 < value < 1e300


def amount(value) -> bool:
    """A finite number of at least 0."""
    return number(value) and value >= 0


def positive(value) -> bool:
    """A finite number above 0."""
    return number(value) and value > 0


def fraction(value) -> bool:
    """A number from 0 to 1."""
    return number(value) and 0 <= value <= 1


def flag(value) -> bool:
    """true or false."""
    return type(value) is bool


def word(value) -> bool:
    """A name as kdrun's own parts have."""
    return isinstance(value, str) and bool(re.fullmatch(r"[\w.-]{1,100}", value, re.ASCII))


def sha256(value) -> bool:
    """A sum as hashlib writes it."""
    return isinstance(value, str) and bool(re.fullmatch(r"[0-9a-f]{64}", value))


def moment(value) -> bool:
    """A date and time with its offset from UTC, as ISO 8601 has it."""
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def plain_name(value) -> bool:
    """The name of a file in a folder, not a way out of it."""
    return isinstance(value, str) and bool(value) and value not in (".", "..") and not set(value) & set("/\\\0")
