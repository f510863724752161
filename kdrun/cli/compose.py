"""Overrides become a composed config, by Hydra; plug-in files' names become choices like any other."""

import argparse
import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
import hydra.utils
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from kdrun import plugins, registry
from kdrun.config import rules
from kdrun.config.schema import LATER_OF_OPTIMIZER, parameters
from kdrun.errors import InputError

# Hydra 1.3 warns where it is not said whose defaults are meant, and 1.4 where it is
_DEFAULTS = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
# Hydra 1.4 wants to be told which classes a config may name: ours, of conf/hydra/hydra_logging/kdrun.yaml
_ALLOWS = getattr(hydra.utils, "execution_whitelist", lambda _: nullcontext())
CONFIG = "config"  # the name of the config that all begins with
_stored: list[tuple[str, str]] = []  # the choices that are of the current command's plug-ins
_BESIDE: dict[str, dict[str, Any]] = {  # what all of a kind have beside their own keys, as the shipped files have it
    "optimizer": {"learning_rate": 1e-3, "schedule": "constant", "warmup_epochs": 0.0, **LATER_OF_OPTIMIZER},
    "objective": {"weight": 1.0, "weight_end": None, "warmup_epochs": 0.0},
}


def config_dir() -> Path:
    """The folder of shipped config files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.with_name("conf")


@contextmanager
def composing(folder: Path | None = None) -> Iterator[None]:
    """While inside, Hydra composes the configs of a folder: by default kdrun's own."""
    with (
        _ALLOWS("kdrun.runtime.terminal.Lines"),
        hydra.initialize_config_dir(str(folder or config_dir()), **_DEFAULTS),
    ):
        yield


def parsed(words: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them; inside of `composing`, glob(*) among them, too. Raises HydraException."""
    known = GlobalHydra.instance()
    loader = known.config_loader() if known.is_initialized() else None
    return OverridesParser.create(config_loader=loader).parse_overrides(list(words))


def compose(overrides: Sequence[str], name: str = CONFIG) -> DictConfig:
    """The config of some overrides, with Hydra's own part. Raises what Hydra raises."""
    return hydra.compose(name, list(overrides), return_hydra_config=True)


def plain(composed: DictConfig) -> dict:
    """A composed config without Hydra's own part, resolved, as plain dictionaries."""
    keys: list[Any] = [key for key in composed if key != "hydra"]  # texts, to OmegaConf keys of any kind
    return dictionaries(OmegaConf.masked_copy(composed, keys), resolved=True)


def dictionaries(config: DictConfig | ListConfig, resolved: bool) -> dict:
    """A mapping of OmegaConf's as plain dictionaries; `resolved`: with interpolations replaced, and nothing missing."""
    found = OmegaConf.to_container(config, resolve=resolved, throw_on_missing=resolved)
    assert isinstance(found, dict)  # no list, which it may be to OmegaConf
    return found


def load_plugins(overrides: Sequence[str]) -> None:
    """Run the files that plugins=[...] names among overrides, and make choices of what they register.

    Those of an earlier command in this process are none any more. Raises InputError.
    """
    named = [word for word in overrides if word.lstrip("+").partition("=")[0] == "plugins"]
    paths: list[str] = []
    for word in named:
        (override,) = parsed([word])
        if override.is_sweep_override():
            raise InputError(f"{word}: plug-ins are the same for all jobs. Write plugins=[FILE,FILE].")
        given = override.value()
        paths = rules.files("plugins", [str(each) for each in given] if isinstance(given, list) else given)
    for kind, name in _stored:
        ConfigStore.instance().repo.get(kind, {}).pop(f"{name}.yaml", None)
    _stored.clear()
    plugins.forget_others(paths)
    plugins.load(paths)
    for path in paths:
        for kind, entry in registry.registered_by(Path(path)):
            _store(kind, entry)


def _store(kind: str, entry: registry.Entry) -> None:
    """Make a choice of a plug-in's entry; the defaults of its function's parameters are its keys' values."""
    own = {
        key: "???" if each.default is inspect.Parameter.empty else each.default
        for key, each in parameters(entry).items()
    }
    package = None  # the group's own
    node: dict[str, Any] = {"name": entry.name, **_BESIDE.get(kind, {}), **own}
    if kind == "data":
        node = {"defaults": ["mnist", "_self_"], **node}
    elif kind in ("objective", "tracker"):
        package, node = "_global_", {kind: {entry.name: {key: node[key] for key in node if key != "name"}}}
    elif kind == "stage":
        package, node = "_global_", {"stage": entry.name, **own}
    ConfigStore.instance().store(group=kind, name=entry.name, node=node, package=package, provider="plugins")
    _stored.append((kind, entry.name))


def config_folder(options: argparse.Namespace) -> tuple[list[str], list[str], Path | None]:
    """The user's own folder of configs: as flags, as what Hydra composes with it, and where the config that all begins
    with is in it, as the folder that comes first."""
    for flag in ("experimental_rerun", "config_path"):  # the one unpickles a file, the other leaves kdrun's config out
        if getattr(options, flag, None):
            raise InputError(f"--{flag.replace('_', '-')} is not for kdrun. Give overrides, or --config-dir.")
    if not options.config_dir:
        return [], [], None
    if not os.path.isdir(options.config_dir):
        raise InputError(f"--config-dir: {options.config_dir} is not a folder. Give one with config files.")
    flags, theirs = ["--config-dir", options.config_dir], Path(os.path.abspath(options.config_dir))
    name = f"{options.config_name or CONFIG}.yaml"
    if not (config_dir() / name).exists() and (theirs / name).exists():
        return [*flags, "--config-name", options.config_name], [f"hydra.searchpath=[file://{config_dir()}]"], theirs
    return flags, [f"hydra.searchpath=[file://{theirs}]"], None


def the_hydra() -> Any:
    """Hydra itself, inside of `composing`."""
    return GlobalHydra.instance().hydra
