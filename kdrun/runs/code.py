"""Hashes of the code that a result comes from: modules' syntax trees, docstrings and comments left out.

Nothing is imported for it: a run's identity is asked for before TensorFlow is loaded.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


@lru_cache
def of_module(path: Path) -> str:
    """sha256 of a module, with what it imports, and so on, from its own package: what computes its numbers.

    The rest of kdrun is what identity.FORMAT and `of_package` are for.
    """
    used, to_read = {path}, [path]
    while to_read:
        imported = {file for name in _imports(_tree(to_read.pop())) if (file := _file(name)) and _computes(file, path)}
        to_read += imported - used
        used |= imported
    return _digest([_plain(_tree(each)) for each in sorted(used)])


@lru_cache
def of_package() -> str:
    """sha256 of all of kdrun's own code."""
    return _digest([[str(path.relative_to(_PACKAGE)), _plain(_tree(path))] for path in sorted(_PACKAGE.rglob("*.py"))])


def _computes(imported: Path, by: Path) -> bool:
    return imported.parent == by.parent


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kdrun"):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _file(module: str) -> Path | None:
    path = _PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    return path if path.is_file() else None


@lru_cache
def _tree(path: Path) -> ast.Module:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    return tree


def _plain(node) -> object:
    """A syntax tree as plain values that are the same under every version of Python: empty fields are left out."""
    if isinstance(node, ast.AST):
        fields = {name: _plain(value) for name, value in ast.iter_fields(node) if value not in (None, [])}
        return [type(node).__name__, fields]
    if isinstance(node, list):
        return [_plain(each) for each in node]
    return repr(node)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
