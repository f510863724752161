"""What is wrong with a command line, in a line of our own: its words, and Hydra's and OmegaConf's errors."""

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from kdrun.cli.hydra_keys import EXTRAS
from kdrun.commands import quoted
from kdrun.config import schema as config
from kdrun.errors import InputError


def config_dir() -> Path:
    """The folder of shipped config files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.with_name("conf")


def readable(word: str, multirun: bool) -> str:
    """An override as Hydra can read it: in quotes, where its value holds what Hydra's grammar has no place for.

    A folder's name with an é, a ~ or a = in it is meant as it stands. What begins like a list, a function or a quoted
    text is left alone, and so is everything that Hydra reads by itself.
    """
    key, equals, value = word.partition("=")
    if not equals or not value or _reads(word) or value[0] in "=[{'\"" or "(" in value:
        return word
    parts = value.split(",") if multirun else [value]
    mended = f"{key}={','.join(part if _reads(f'key={part}') else quoted(part) for part in parts)}"
    return mended if _reads(mended) else word


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
        for group in ("experiment", "stage"):
            if key in choices(group):
                return InputError(f"{said}. Did you mean {group}={key}?")
        return InputError(f"{said}.")
    meant = _reads(f"{key}={quoted(value)}")
    hint = f"; a text with odd characters has quotes inside the shell's: {_argument(key, value)}" if meant else ""
    return InputError(f"{said}{hint}.")


def _argument(key: str, text: str) -> str:
    """A text as a word of a command line, quoted for Hydra and for the shell, as it is easiest to read."""
    word = f"{key}={quoted(text)}"
    return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'


def choices(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """What a group of configs offers, in folders below it, too: names as a command line has them."""
    found = [(path, root / group) for root in (config_dir(), *folders) for path in (root / group).rglob("*.yaml")]
    return sorted({path.relative_to(root).with_suffix("").as_posix() for path, root in found})


def reference(chosen: Sequence[str]) -> dict:
    """The config of some choices of groups with nothing else set, as it stands in the files."""
    kept = [choice for choice in chosen if not choice.startswith(("hydra/", "experiment=", "control="))]
    return OmegaConf.to_container(hydra.compose("config", kept), resolve=False)


def explained(error: Exception, arguments: Sequence[str]) -> InputError:
    """Hydra's and OmegaConf's errors in a line of our own."""
    if isinstance(error, MissingConfigException) and error.options:
        return _no_such_choice(error, arguments)
    if isinstance(error, OverrideParseException):
        return unreadable(error.override)
    said = str(error)
    instead = re.search(r"Could not override '([^']+)'\.\s*Did you mean to override ([^?]+)\?", said)
    if instead:
        return InputError(f"{instead[1]}: there is no such key. Did you mean {instead[2].strip()}?")
    if several := re.search(r"Ambiguous value for argument '([^=']+)=(.*?)'\n", said):
        key, value = several.groups()
        return InputError(
            f"{key}={value}: several values are for a sweep: add -m (--multirun). A list is {key}=[{value}]; one text "
            f"with commas in it has quotes inside the shell's: {_argument(key, value)}."
        )
    if unknown := re.search(r"Could not (override|append to config|delete from config)[^']*'([^'=]+)", said):
        return _no_such_key(unknown[2], unknown[1], arguments)
    cause = error.__cause__ or error
    if isinstance(cause, MissingMandatoryValue):
        key = re.search(r"[\w.]+$", str(getattr(cause, "full_key", None) or cause).strip())[0]
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
    folders = [Path(after) for word, after in pairwise(arguments) if word == "--config-dir"]
    allowed = choices(group, folders) or sorted(error.options)
    near = get_close_matches(given, allowed, 1)
    hint = f" Did you mean {group}={near[0]}?" if near else ""
    return InputError(f"{group}={given}: there is no such {group}.{hint} Allowed: {', '.join(allowed)}.")


def _no_such_key(key: str, done: str, arguments: Sequence[str]) -> InputError:
    groups = [a for a in arguments if "=" in a and (config_dir() / a.split("=")[0].split("@")[0]).is_dir()]
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            known = dict(config.flatten(reference(groups)))
    except HydraException:  # a second mistake, in a choice of groups
        known = {}
    if key in known and done == "append to config":
        return InputError(f"+{key}: {key} is there already. Write {key}=VALUE, without the +.")
    if key in known and done == "delete from config":
        return InputError(f"~{key}: {key} is a key of every run and cannot be taken out. Leave out ~{key}.")
    return config.unknown_key(key, known)
