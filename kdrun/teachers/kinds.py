"""What somebody else's file or folder is: by what is in it, not by its name. Nothing in it is loaded or run.

A run of kdrun and a file of logits are two kinds more, beside those of other tools' networks.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

from kdrun.storage import files

RUN, LOGITS = "run", "logits"


class Format(NamedTuple):
    """Networks of other tools: what they are called, the module here that loads them, and the packages that run them,
    whose versions answers depend on."""

    name: str
    module: str
    packages: tuple[str, ...]
    extra: str = ""  # of kdrun, which installs them; empty: kdrun needs them itself


FOREIGN = {
    "keras": Format("a Keras model", "kdrun.teachers.keras_file", ("keras", "tensorflow")),
    "saved_model": Format("a SavedModel", "kdrun.teachers.saved_model", ("tensorflow",)),
    "litert": Format("a LiteRT model", "kdrun.teachers.litert_file", ("ai-edge-litert",), "litert"),
    "onnx": Format("an ONNX model", "kdrun.teachers.onnx_file", ("onnxruntime",), "onnx"),
}
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_NPY = b"\x93NUMPY"
_ONNX_FIELDS = {0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72}  # protobuf's tags of what may follow ir_version
_TORCH = "PyTorch, which is code: export it to ONNX, with torch.onnx.export(..., external_data=False)"


def of(path: Path) -> str:
    """Its kind: run, logits, a key of FOREIGN; or `unknown`, and after a colon what it is, where that is known.

    Raises OSError where it cannot be read.
    """
    if path.is_dir():
        held = {RUN: "run.json", "saved_model": "saved_model.pb"}
        return next((kind for kind, name in held.items() if (path / name).exists()), "unknown")
    with files.open_regular(path) as file:
        head = file.read(64)
    if head.startswith(_HDF5):
        return "keras"
    if head.startswith(_ZIP):
        return _of_zip(path)
    if head[:1] == b"\x08" and head[1:2] < b"\x40" and head[2:3] and head[2] in _ONNX_FIELDS:
        return "onnx"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"unknown: a pickle, of {_TORCH}"
    if head[4:8] == b"TFL3":
        return "litert"
    return "unknown: a single array" if head.startswith(_NPY) else "unknown"


def is_foreign(path: Path) -> bool:
    """Whether it is the network of another tool."""
    try:
        return of(path) in FOREIGN
    except OSError:
        return False


def _of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return "unknown: a zip archive that is damaged, or cut short"
    if {"config.json", "metadata.json"} <= set(names):
        return "keras"
    if any(name.endswith("data.pkl") for name in names):
        return f"unknown: of {_TORCH}"
    return LOGITS if names and all(name.endswith(".npy") for name in names) else "unknown: a zip archive"
