"""Names that a config may use, and the functions they stand for.

A dataset, model, optimizer, objective or stage is a function, a tracker a class, in a module of its group's package,
registered under a name. Modules are found by looking into the package, so that a new file is all that an entry needs.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

_PACKAGES = {
    "data": "kdrun.data",
    "model": "kdrun.models",
    "smallest_image_size": "kdrun.models",
    "features": "kdrun.models",
    "maps": "kdrun.models",
    "optimizer": "kdrun.optimizers",
    "objective": "kdrun.objectives",
    "stage": "kdrun.stages",
    "tracker": "kdrun.tracking",
}
_functions: dict[tuple[str, str], Callable] = {}


def register(group: str, name: str) -> Callable[[Callable], Callable]:
    """Decorator: make a function what `name` stands for in `group`."""

    def enter(function: Callable) -> Callable:
        _functions[group, name] = function
        return function

    return enter


def get(group: str, name: str) -> Callable:
    """The function registered as `name` in `group`. Raises KeyError for a name that no module registers."""
    if (group, name) not in _functions:
        package = import_module(_PACKAGES[group])
        modules = [module.name for module in iter_modules(package.__path__)]
        for module in sorted(modules, key=lambda module: module != name):  # its own first: no other is needed then
            if (group, name) not in _functions:
                import_module(f"{package.__name__}.{module}")
    return _functions[group, name]


def file_of(group: str, name: str) -> Path | None:
    """The file of the module that registers `name` in `group`, found without importing it; None where there is none."""
    if (group, name) in _functions:
        module = sys.modules.get(_functions[group, name].__module__)
        return Path(module.__file__) if getattr(module, "__file__", None) else None
    line = f'@register("{group}", "{name}")'
    for folder in import_module(_PACKAGES[group]).__path__:
        for path in sorted(Path(folder).glob("*.py")):
            if line in path.read_text():
                return path
    return None
