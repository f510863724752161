"""Errors of a command line in a line of our own: of its words, and of Hydra and OmegaConf."""

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue

from kdrun import registry
from kdrun.cli import offers
from kdrun.cli.hydra_keys import EXTRAS
from kdrun.commands import quoted
from kdrun.config.mistakes import SYNONYMS, UnknownKey, unknown_key
from kdrun.errors import InputError

_OF_A_ROLE = re.compile(r"(teacher|student)\.optimizer\.\w+=")


def readable(word: str, multirun: bool) -> str:
    """An override as Hydra can read it: in quotes, where its value holds what Hydra's grammar has no place for; a key
    of a role's own optimizer, which follows the common one unless it is set, as one that may be new.

    A folder's name with an é, a ~ or a = in it is meant as it stands. What begins like a list, a function or a quoted
    text is left alone, and so is everything that Hydra reads by itself.
    """
    if _OF_A_ROLE.match(word):
        word = f"++{word}"
    key, equals, value = word.partition("=")
    if key == "cluster" and "," in value and not multirun and value[0] not in "[{'\"":
        return f"{key}={quoted(value)}"  # a list of addresses; to Hydra it would be several values
    if not equals or not value or _reads(word) or value[0] in "=[{'\"" or "(" in value:
        return word
    parts = value.split(",") if multirun else [value]
    mended = f"{key}={','.join(part if _reads(f'key={part}') else quoted(part) for part in parts)}"
    return mended if _reads(mended) else word


def verbs(words: Sequence[str]) -> list[str]:
    """The words of a command line; `kdrun teacher` is `kdrun stage=teacher`."""
    first, *others = words or [""]
    return [f"stage={first}", *others] if first in offers.names("stage") else list(words)


@lru_cache
def _reads(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def unknown_flag(message: str) -> InputError:
    """What argparse says of a flag that there is not."""
    flag = re.search(r"(?<!\w)--?([A-Za-z_][\w.@/-]*)", message)
    hint = ""
    if flag:
        hint = f" Keys have no dashes: write {flag[1].replace('-', '_')}=VALUE."
    return InputError(f"{message[:1].upper()}{message[1:]}.{hint} Flags: kdrun --hydra-help.")


def unreadable(word: str) -> InputError:
    """What cannot be read as an override."""
    key, equals, value = word.partition("=")
    said = f"{word}: cannot be read as an override. A command line has key=value; lists go in brackets"
    if not equals:
        near = _choice_of(word)
        return InputError(f"{said}. Did you mean {near}?" if near else f"{said}.")
    meant = _reads(f"{key}={quoted(value)}")
    hint = f"; a text with odd characters has quotes inside the shell's: {_argument(key, value)}" if meant else ""
    return InputError(f"{said}{hint}.")


def _choice_of(word: str) -> str | None:
    """The choice that a word by itself is the name of, or nearly so."""
    offered = {name: f"{group}={name}" for group in reversed(_ALONE) for name in offers.names(group.partition("@")[0])}
    near = get_close_matches(word, offered, 1, 0.75)
    return offered[near[0]] if near else None


# groups whose names may be given by themselves by mistake; of those that have the same name, the first
_ALONE = ("experiment", "stage", "data", "optimizer", "objective", "model@student.model", "tracker")


def _argument(key: str, text: str) -> str:
    """A text as a word of a command line, quoted for Hydra and for the shell, as it is easiest to read."""
    word = f"{key}={quoted(text)}"
    return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'


def explained(error: Exception, arguments: Sequence[str]) -> InputError:
    """Hydra's and OmegaConf's errors in a line of our own."""
    if isinstance(error, MissingConfigException) and error.options:
        return _no_such_choice(error, arguments)
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    said = str(error)
    if missing := re.search(r"Could not load '([^']+)/([^'/]+)'", said):  # one of a list
        return _unknown_choice(missing[1], missing[2], arguments)
    instead = re.search(r"Could not override '([^']+)'\.\s*Did you mean to override ([^?]+)\?", said)
    if instead:
        return InputError(f"{instead[1]}: there is no such key. Did you mean {instead[2].strip()}?")
    if several := re.search(r"Ambiguous value for argument '([^=']+)=(.*?)'\n", said):
        key, value = several.groups()
        return InputError(
            f"{key}={value}: several values are for a sweep: add -m (--multirun). A list is {key}=[{value}]; one text "
            f"with commas in it has quotes inside the shell's: {_argument(key, value)}."
        )
    if group := re.search(r"Override (\S+?)@(\S+?)=.* config group '(.*)' does not exist", said):
        near = get_close_matches(f"{group[1]}@{group[2]}", offers.groups(), 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return InputError(f"{group[1]}@{group[2]}: there is no such group.{hint} See kdrun --help.")
    if unknown := re.search(r"Could not (override|append to config|delete from config)[^']*'([^'=]+)", said):
        return _no_such_key(unknown[2], unknown[1], arguments)
    cause = error.__cause__ or error
    if isinstance(cause, MissingMandatoryValue):
        text = str(getattr(cause, "full_key", None) or cause).strip()
        named = re.search(r"([\w.]+)(\[\d+\])*$", text)  # what is missing in a list is given with all of it
        key = named[1] if named else text
        return InputError(f"{key} must be given. Write {key}=VALUE.")
    return InputError(f"{' '.join(said.split())} See kdrun --help.")


def _no_such_choice(error: MissingConfigException, arguments: Sequence[str]) -> InputError:
    group, _, given = str(error.missing_cfg_file).rpartition("/")
    if group in ("hydra/launcher", "hydra/sweeper") and given in EXTRAS:
        return InputError(
            f"{group}={given} needs more packages: in kdrun's own folder, pip install '.[{EXTRAS[given]}]'"
        )
    for key, value in (word.lstrip("+").split("=", 1) for word in arguments if "=" in word):
        of_key = key.partition("@")[0]
        if f"{of_key}/{value}".strip("'\"") == error.missing_cfg_file:  # the group's name may be the longer one
            group, given = of_key, value
    return _unknown_choice(group, given, arguments, error.options or ())


def _unknown_choice(group: str, given: str, arguments: Sequence[str], options: Sequence[str] = ()) -> InputError:
    folders = [Path(after) for word, after in pairwise(arguments) if word == "--config-dir"]
    of_plugins = registry.plugged(group)
    allowed = sorted({*offers.names(group, folders), *of_plugins}) or sorted(options)
    near = get_close_matches(given, allowed, 1)
    hint = f" Did you mean {group}={near[0]}?" if near else ""
    return InputError(f"{group}={given}: there is no such {group}.{hint} Allowed: {', '.join(allowed)}.")


def _no_such_key(key: str, done: str, arguments: Sequence[str]) -> InputError:
    key = key.lstrip("+")
    known = offers.keys(arguments)
    if key in known and done == "append to config":
        return InputError(f"+{key}: {key} is there already. Write {key}=VALUE, without the +.")
    if key in known and done == "delete from config":
        return InputError(f"~{key}: {key} is a key of every run and cannot be taken out. Leave out ~{key}.")
    for meant in (key, *SYNONYMS.get(key.split(".")[-1].lower(), ())):
        if meant not in known and (choices := offers.elsewhere(meant)):
            instead = "It" if meant == key else f"Did you mean {meant}? It"
            which, add = ("one of ", "one of them") if len(choices) > 1 else ("", "that")
            goes = f"{instead} goes with {which}{', '.join(choices)}. Add {add}."
            return UnknownKey(key, f"{key}: there is no such key here. {goes}")
    return unknown_key(key, [*known, *offers.groups()])
