"""Errors for keys that a config has and may not, or must have and has not; and what was meant."""

from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from kdrun.errors import InputError


def missing_key(key: str, given: Mapping) -> InputError:
    """The error for a key that is not in a config and must be."""
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


class UnknownKey(InputError):
    """A key that there is not; `key` is which."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


def unknown_key(key: str, known: Mapping) -> UnknownKey:
    """The error for a key that is not there, with the nearest ones that are."""
    near = sorted((k for k in known if k.startswith(f"{key}.")), key=len)[:3] or _nearest(key, known)
    hint = f"Did you mean {', '.join(near)}?" if near else "See kdrun --cfg job for every key."
    if key == "objective.module":
        hint = "It goes with objective=own. Add that."
    return UnknownKey(key, f"{key}: there is no such key. {hint}")


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
