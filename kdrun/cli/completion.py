"""What a shell's TAB offers: words that complete the last one of a command line. No plug-in is run for it.

The scripts beside this file ask `kdrun --complete SHELL ...` and hand the answer, a candidate a line, to their shell.
"""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kdrun.cli import hydra_keys, offers
from kdrun.cli.compose import config_dir
from kdrun.config import rules
from kdrun.errors import InputError

SHELLS = ("bash", "zsh", "fish")
_FLAGS: dict[str, tuple[str, ...]] = {  # those of a command line, with the words that may follow them
    "--help": (),
    "--version": (),
    "--completion": SHELLS,
    "--cfg": ("job", "hydra", "all"),
    "--package": (),
    "--resolve": (),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--multirun": (),
    "-m": (),
    "--config-dir": (rules.FOLDER,),
    "--config-name": (),
    "--hydra-help": (),
}
_HYDRAS = ("hydra.run.dir", "hydra.sweep.dir", "hydra/launcher", "hydra/sweeper")
_SPECIAL = re.compile(r"([\s\"'\\$`!&;|<>()*?#{}])")  # to bash, outside of quotes
_ENDS_HERE = "\0"


def script(shell: str) -> str:
    """What a shell is to run so that TAB completes kdrun's lines. Raises InputError for one that is not known."""
    if shell not in SHELLS:
        raise InputError(f"--completion must name a shell, one of {', '.join(SHELLS)}, got {shell!r}.")
    return Path(__file__).with_name(f"completion.{shell}").read_text().rstrip()


def answer(asked: Sequence[str]) -> str:
    """A candidate a line. Asked are a shell's name and the words of a command line after `kdrun` up to the cursor; of
    bash the line itself, and how much of it bash will replace."""
    shell, *given = asked or [""]
    if shell == "bash":
        return "\n".join(_of_bash(*given[:2]))
    *words, current = given or [""]
    if shell == "fish":  # which hands its last word on as it stands
        *_, current = _split(current)[0]
    return "\n".join(candidates(words, current))


def _of_bash(line: str = "", replaced: str = "") -> Iterator[str]:
    """Candidates as bash takes them: without what is left of the part that it replaces, which begins anew at each = and
    the like; quoted, unless a quote is open."""
    words, is_open = _split(line)
    *before, current = words[1:] or [""]  # the first one is kdrun itself
    part = _split(replaced)[0][-1]
    kept = len(current) - len(part) if current.endswith(part) else 0
    for each in candidates(before, current):
        yield each[kept:] if is_open else _SPECIAL.sub(r"\\\1", each[kept:])


def _split(line: str) -> tuple[list[str], bool]:
    """The words of a line that ends in the middle of one, perhaps of nothing yet; whether a quote is open there."""
    for quote in ("", "'", '"'):
        with suppress(ValueError):
            *words, last = shlex.split(line + _ENDS_HERE + quote)
            return [*words, last.removesuffix(_ENDS_HERE)], bool(quote)
    return [""], False


def candidates(words: Sequence[str], current: str) -> list[str]:
    """Words that may stand in place of `current`, which they begin with, after other words of a command line."""
    if current.startswith("-"):
        flag, equals, value = current.partition("=")
        if equals:
            return [f"{flag}={each}" for each in _completed(_FLAGS.get(flag, ()), value)]
        return [flag for flag in _FLAGS if flag.startswith(current)]
    if words and _FLAGS.get(words[-1]):
        return _completed(_FLAGS[words[-1]], current)
    try:
        return _of_value(words, current) if "=" in current else _of_name(words, current)
    except (HydraException, OmegaConfBaseException, YAMLError, InputError, OSError):
        return []  # there is nothing to be said above a line that is being written


def _of_name(words: Sequence[str], current: str) -> list[str]:
    """Stages, where none is named yet; groups; keys, as far as the next dot."""
    plus, name = _parted(current)
    stages = [] if plus or any(_is_override(word) for word in words) else offers.names("stage")
    keys = [*_keys(words), *offers.groups(), *_HYDRAS]
    found = {_as_far_as_the_dot(key, name) for key in keys if key.startswith(name) and not key.endswith(".name")}
    return [each for each in stages if each.startswith(name)] + sorted(plus + each for each in found)


def _as_far_as_the_dot(key: str, begun: str) -> str:
    rest = key[len(begun) :]
    before, dot, _ = rest.partition(".")
    return f"{begun}{before}." if dot and "@" not in key else f"{key}="


def _of_value(words: Sequence[str], current: str) -> list[str]:
    """Names of a group, words that a key's rule allows, files and folders; of a list, or a sweep's values, the last."""
    name, _, value = current.partition("=")
    key = _parted(name)[1]
    is_several = value.startswith("[") or any(word in ("-m", "--multirun") for word in words)
    before = re.match(r".*[\[,]|", value)[0] if is_several else ""  # type: ignore[index]  # it matches the empty text
    group = key.partition("@")[0]
    if key in ("hydra/launcher", "hydra/sweeper"):
        offered: Sequence[str] = ("basic", *hydra_keys.EXTRAS)
    elif (config_dir() / group).is_dir():
        offered = offers.names(group, _folders(words))
    elif key in _HYDRAS:
        offered = (rules.FOLDER,)
    else:
        known = _keys(words)
        there = [known[key]] if key in known else offers.elsewhere(key).values()  # its stage may be yet to be named
        offered = next(filter(None, map(rules.offers, there)), ())
    return [f"{name}={before}{each}" for each in _completed(offered, value.removeprefix(before))]


def _completed(offered: Sequence[str], begun: str) -> list[str]:
    found = [each for each in offered if each.startswith(begun) and each not in (rules.PATH, rules.FOLDER)]
    if rules.PATH in offered or rules.FOLDER in offered:
        found += _paths(begun, rules.PATH not in offered)
    return found


def _paths(begun: str, folders_alone: bool) -> list[str]:
    """Files and folders, these with a slash; what is hidden only where its dot is written."""
    folder, slash, start = begun.rpartition("/")
    found = []
    with os.scandir(os.path.expanduser(folder + slash) or ".") as entries:
        for entry in entries:
            is_shown = entry.name.startswith(start) and (start or not entry.name.startswith("."))
            if is_shown and (entry.is_dir() or not folders_alone):
                found.append(f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}")
    return sorted(found)


def _parted(name: str) -> tuple[str, str]:
    """The pluses that a key may have before it, and the key."""
    key = name.lstrip("+")
    return name[: len(name) - len(key)], key


def _is_override(word: str) -> bool:
    return not word.startswith("-")


def _keys(words: Sequence[str]) -> dict[str, rules.Rule]:
    """The keys that there are with the choices of a line so far."""
    stage = [f"stage={word}" for word in words[:1] if word in offers.names("stage")]
    return offers.keys([*stage, *words]) or offers.keys(stage) or offers.keys([])


def _folders(words: Sequence[str]) -> list[Path]:
    apart = [after for word, after in pairwise(words) if word == "--config-dir"]
    return [Path(os.path.expanduser(each)) for each in apart]
