"""Files of the user's own that register nets, objectives and the like: run once, before a config is checked.

They are code, and run because the command line names them.
"""

import sys
from collections.abc import Iterable
from importlib import util
from pathlib import Path

from kdrun import registry
from kdrun.errors import InputError
from kdrun.runtime import tensorflow
from kdrun.storage import files

_loaded: dict[Path, str] = {}  # sha256 by file


def load(paths: Iterable[str], key: str = "plugins") -> None:
    """Run files, the value of `key`, each once as long as it stays the same. Raises InputError where one cannot be run,
    or registers nothing."""
    for given in paths:
        path = Path(given).resolve()
        if not path.is_file():
            raise InputError(f"{key}: {given} is not a file. Give a Python file that registers something.")
        sha256 = files.sha256(path)
        if _loaded.get(path) != sha256:
            registry.forget(path)
            _run(path, given, key)
            _loaded[path] = sha256


def are_loaded(paths: Iterable[str]) -> bool:
    """Whether all of these files have been run."""
    return all(Path(path).resolve() in _loaded for path in paths)


def forget_others(paths: Iterable[str]) -> None:
    """Take out what other files have registered: a name is a file's that this command names, or nobody's."""
    named = {Path(path).resolve() for path in paths}
    for path in _loaded.keys() - named:
        registry.forget(path)
        del _loaded[path]


def _run(path: Path, given: str, key: str) -> None:
    name = f"kdrun_plugin_{path.stem}_{len(sys.modules)}"
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{key}: {given} is no Python file. Its name must end with .py.")
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # where a class is looked for
    try:
        with tensorflow.quiet():
            spec.loader.exec_module(module)
    except InputError as error:
        raise InputError(f"{key}: {given}: {error}") from error
    except Exception as error:  # whatever is wrong in it
        line, text = registry.place_and_text(error, path)
        raise InputError(f"{key}: {given} cannot be run: {text}{line}.") from error
    if not any(registry.registered_by(path)):
        raise InputError(
            f'{key}: {given} registers nothing. Put @register("model", "NAME") or the like above a function of it.'
        )
