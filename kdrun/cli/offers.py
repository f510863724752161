"""What a command line can set: the names that a group of configs offers, and the keys that there are."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from kdrun import registry
from kdrun.cli.compose import CONFIG, composing, config_dir, dictionaries
from kdrun.config import schema
from kdrun.config.rules import Rule
from kdrun.errors import InputError


def groups() -> list[str]:
    """The groups that a command line chooses from, as the head of config.yaml has them."""
    defaults = OmegaConf.load(config_dir() / f"{CONFIG}.yaml").defaults
    named = [str(next(iter(each))) for each in defaults if not isinstance(each, str)]
    return [name for name in named if not name.startswith("override ")]


def names(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """What a group of configs offers, in folders below it, too: names as a command line has them."""
    found = [(path, root / group) for root in (config_dir(), *folders) for path in (root / group).rglob("*.yaml")]
    return sorted({path.relative_to(root).with_suffix("").as_posix() for path, root in found})


def keys(arguments: Sequence[str]) -> dict[str, Rule]:
    """The keys that there are with the choices that a command line makes."""
    groups = [word for word in arguments if "=" in word and (config_dir() / word.split("=")[0].split("@")[0]).is_dir()]
    chosen = [word for word in groups if not word.startswith("hydra/")]
    without_presets = [word for word in chosen if not word.startswith(("experiment=", "control="))]
    for kept in (chosen, without_presets):  # a preset may be what does not go together with the rest
        with suppress(HydraException, InputError), composing():
            return dict(schema.keys(dictionaries(hydra.compose(CONFIG, kept), resolved=False)))
    return {}  # a second mistake, in a choice of groups


def elsewhere(key: str) -> dict[str, Rule]:
    """The choices with which there is a key that is not there now, each with its rule."""
    places = [("stage", "stage", ""), ("data", "data", "data."), ("optimizer", "optimizer", "optimizer.")]
    places += [("model", f"model@{role}.model", f"{role}.model.") for role in ("student", "teacher")]
    places += [("objective", "objective", "objective.{}.")]
    found: dict[str, Rule] = {}
    for kind, group, prefix in places:
        for name in registry.names(kind):
            of_name = prefix.format(name)
            if key.startswith(of_name) and name in names(kind):
                rule = schema.own_keys(registry.get(kind, name), of_name).get(key)
                found |= {f"{group}={name}": rule} if rule else {}
    return found
