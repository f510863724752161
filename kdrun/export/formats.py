"""What a network is exported as: formats, how their weights are kept, what each needs. No TensorFlow in here."""

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from kdrun.errors import InputError

# how weights are kept: as they are, as half floats, as int8 that floats are made of, and all of the network in int8
QUANTIZE = ("none", "float16", "dynamic", "int8")


class Format(NamedTuple):
    """A kind of file: its suffix, empty for a folder; which of QUANTIZE it can be; the packages that run it and those
    that make it, beside TensorFlow, and kdrun's extra that brings them."""

    suffix: str
    quantize: tuple[str, ...]
    run_by: tuple[str, ...] = ()
    made_by: tuple[str, ...] = ()
    extra: str = ""


FORMATS = {
    "saved_model": Format("", ("none",)),
    "litert": Format(".tflite", QUANTIZE, ("ai-edge-litert",), (), "litert"),
    "onnx": Format(".onnx", QUANTIZE, ("onnxruntime",), ("onnx", "tf2onnx"), "onnx"),
}


class Target(NamedTuple):
    """One file, or folder, that is to be made."""

    format: str
    quantize: str

    @property
    def name(self) -> str:
        """What it is called in an export's directory."""
        if self.format == "saved_model":
            return "saved_model"
        return f"model{'' if self.quantize == 'none' else '_' + self.quantize}{FORMATS[self.format].suffix}"


def targets(formats: Sequence[str], quantize: Sequence[str]) -> list[Target]:
    """What is asked for: each format in each way that it has. Raises InputError where one has none of them, or what
    makes it is not installed."""
    found = []
    for name in formats:
        ways = [way for way in quantize if way in FORMATS[name].quantize]
        if not ways:
            raise InputError(
                f"export.quantize={list(quantize)}: {name} has none of these. Add "
                f"{' or '.join(FORMATS[name].quantize)}, or leave {name} out of export.format."
            )
        check_packages(
            name, FORMATS[name].made_by + FORMATS[name].run_by, f"export.format: {name} is made and checked by"
        )
        found += [Target(name, way) for way in ways]
    return found


def check_packages(name: str, packages: Sequence[str], said: str) -> None:
    """Raises InputError, which begins with `said`, where one of the packages of a format is not installed."""
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError as error:
            raise InputError(f"{said} {package}. Install it: pip install 'kdrun[{FORMATS[name].extra}]'") from error


def of_file(path: Path) -> str | None:
    """The format of a file or folder, by its name; None where it is none of them."""
    if os.path.isdir(path):  # false for what cannot be looked at, where pathlib has errors
        return "saved_model" if os.path.exists(path / "saved_model.pb") else None
    return next((name for name, each in FORMATS.items() if each.suffix and path.suffix == each.suffix), None)
