"""What an exported file says of itself, inside of it, where its format has room for more, and how a change is seen.

The facts are plain values: class names, what the input is, what was done to pixels, of which run it is. One of them is
a sha256 over the others and all the rest of the file; and `attached`, done again when they are read, must give the same
bytes. So a file that is damaged, cut short or put together of two is known,
wherever it has been copied to. No runtime is needed to read them.

- LiteRT: a zip archive behind the network, as TensorFlow Lite's metadata has it: labels.txt, kdrun.json.
- ONNX: an entry `kdrun` of the model's metadata.
- SavedModel: `assets.extra/`, which TensorFlow keeps free for others: labels.txt, kdrun.json.
"""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrun.config.keys import MOST_PIXELS
from kdrun.data.pictures import RESIZES
from kdrun.errors import InputError
from kdrun.export import formats
from kdrun.storage import files, forms, manifest

FORMAT = 1  # raise when facts mean something else
_LARGEST = 1 << 31  # bytes of a file
_NAME, _LABELS, _FOLDER = "kdrun.json", "labels.txt", "assets.extra"
SUM = "content_sha256"
# what is raised of bytes that are none of ours: by json, zipfile, and by what is looked for in them
_NONE_OF_OURS: tuple[type[Exception], ...] = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    EOFError,
    RuntimeError,
    OverflowError,
)
_NONE_OF_OURS += (struct.error, zlib.error, zipfile.BadZipFile)
_ENTRY = b"\x0a\x05kdrun\x12"  # of ONNX: key, field 1, "kdrun", then the value, field 2
_METADATA = b"\x72"  # field 14 of ONNX' ModelProto
_FACTS = {
    "format": forms.count,
    "class_names": [str],
    "input": [(None, forms.count)],  # height and width, None: any, and channels
    "output": forms.word,
    "quantize": forms.word,
    "decoding": {"channels": forms.count, "size": forms.count, "resize": forms.word},
    "preprocessing": {"image_size": forms.count},
}


def labels(class_names: Sequence[str]) -> bytes:
    """A line for each class, in order."""
    return "".join(f"{' '.join(name.split())}\n" for name in class_names).encode(errors="replace")


def attached(kind: str, content: bytes, facts: Mapping[str, Any]) -> bytes:
    """A file of a format with its facts: LiteRT or ONNX."""
    text = _text(_sealed(facts, hashlib.sha256(content).hexdigest()))
    if kind == "onnx":
        entry = _ENTRY + _varint(len(text)) + text
        return content + _METADATA + _varint(len(entry)) + entry
    memory = io.BytesIO(content)
    with zipfile.ZipFile(memory, "a", zipfile.ZIP_STORED) as archive:
        for name, inside in ((_LABELS, labels(facts["class_names"])), (_NAME, text)):
            archive.writestr(zipfile.ZipInfo(name), inside)  # of no date
    return memory.getvalue()


def attach_to_folder(folder: Path, facts: Mapping[str, Any]) -> None:
    """Put a SavedModel's facts into it."""
    extra = folder / _FOLDER
    extra.mkdir()
    files.write_bytes(extra / _LABELS, labels(facts["class_names"]))
    files.write_bytes(extra / _NAME, _text(_sealed(facts, _sum_of(folder))))


def read(path: Path) -> dict[str, Any]:
    """The facts of an exported file or folder. Raises InputError where it has none, or is not what was exported."""
    kind = formats.of_file(path)
    if kind is None:
        raise InputError(
            f"file: {path} is no exported network. Give what stage=export has written: a .tflite or .onnx file, or the "
            "folder of a SavedModel."
        )
    try:
        found = _of_folder(path) if kind == "saved_model" else _of_file(kind, files.read(path, _LARGEST))
        wrong = forms.problem(found, _FACTS) or _odd(found)
    except OSError as error:
        raise InputError(f"file: {path} cannot be read ({error.strerror or error}). Give another file.") from error
    except _NONE_OF_OURS as error:
        raise InputError(
            f"file: {path} was not written by kdrun's stage=export, or is damaged: what it should say of itself cannot "
            f"be read. Export it again."
        ) from error
    if wrong:
        raise InputError(f"file: {path} is damaged, or of another kdrun: {wrong}. Export it again.")
    return found


def _odd(facts: Mapping[str, Any]) -> str | None:
    if facts["format"] != FORMAT:
        return f"it is of format {facts['format']}, this kdrun reads {FORMAT}"
    input_, decoding = facts["input"], facts["decoding"]
    if len(input_) != 3 or input_[2] not in (1, 3) or 0 in input_ or (input_[0] is None) != (input_[1] is None):
        return "its input is none of images"
    if not facts["class_names"]:
        return "it names no classes"
    if decoding["channels"] != input_[2] or not 1 <= decoding["size"] <= MOST_PIXELS:
        return "how pictures are decoded is not for its input"
    if facts["output"] not in ("probabilities", "logits") or decoding["resize"] not in RESIZES:
        return "its output, or how pictures are resized, is unknown"
    return None


def _of_file(kind: str, content: bytes) -> dict[str, Any]:
    if kind == "onnx":
        start = content.rindex(_ENTRY)
        length, begin = _read_varint(content, start + len(_ENTRY))
        facts = json.loads(content[begin : begin + length])
        entry = len(_ENTRY) + len(_varint(length)) + length
        rest = content[: start - len(_METADATA) - len(_varint(entry))]
    else:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            facts = json.loads(archive.read(_NAME))
            rest = content[: min(each.header_offset for each in archive.infolist())]
    if attached(kind, rest, facts) != content:
        raise ValueError("it is not what was written")
    return facts


def _of_folder(folder: Path) -> dict[str, Any]:
    extra = folder / _FOLDER
    content = files.read(extra / _NAME)
    facts = json.loads(content)
    is_whole = {each.name for each in extra.iterdir()} == {_NAME, _LABELS} and _text(facts) == content
    is_whole = is_whole and files.read(extra / _LABELS) == labels(facts["class_names"])
    if not is_whole or facts != _sealed(facts, _sum_of(folder)):
        raise ValueError("it is not what was written")
    return facts


def _sum_of(folder: Path) -> str:
    """Of all that is in a SavedModel, its facts left out."""
    held = sorted(path for path in folder.rglob("*") if not path.is_dir() and path.parent != folder / _FOLDER)
    return manifest.digest({str(path.relative_to(folder)): files.sha256(path) for path in held})


def _sealed(facts: Mapping[str, Any], content: str) -> dict[str, Any]:
    """The facts with a sum over all that a file is: themselves, and the rest, of which `content` is the sha256."""
    said = {key: value for key, value in facts.items() if key != SUM}
    return {**said, SUM: manifest.digest({"facts": said, "content": content})}


def _text(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True).encode()


def _varint(number: int) -> bytes:
    """A whole number as protobuf writes it: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _read_varint(content: bytes, start: int) -> tuple[int, int]:
    """A whole number that begins at `start`, and where it has ended."""
    number = 0
    for place in range(start, start + 5):
        number |= (content[place] & 127) << 7 * (place - start)
        if content[place] < 128:
            return number, place + 1
    raise ValueError("no length")
