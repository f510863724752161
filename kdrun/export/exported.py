"""An exported file that is asked: found, held against what it says of itself, and run. No TensorFlow in here."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdrun.data.rows import Images
from kdrun.data.store import Decoding
from kdrun.errors import InputError, KdrunError
from kdrun.evaluation import metrics
from kdrun.export import asking, facts, formats
from kdrun.export.formats import FORMATS
from kdrun.runtime import parallel, progress
from kdrun.teachers.logits_file import logarithm
from kdrun.teachers.predictor import Predictor


class Exported(NamedTuple):
    """A file, or a SavedModel's folder, and what it says of itself; see export.facts."""

    path: Path
    facts: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int] | None:
        """The only height and width of images that it takes; None: any."""
        height, width, _ = self.facts["input"]
        return None if height is None else (height, width)

    @property
    def decoding(self) -> Decoding:
        """How pictures become images for it: of the one size that it takes, or as large as in training."""
        kept = self.facts["decoding"]
        is_square = self.size is not None and self.size[0] == self.size[1]
        return Decoding(kept["channels"], self.facts["input"][0] if is_square else kept["size"], kept["resize"])


def found(given: str) -> Exported:
    """What `file` names: an exported file, or an export's directory with one in it, whole as it was written, and of a
    format that can be run here. Raises InputError where it does not."""
    path = _place(given)
    said, kind = facts.read(path), formats.of_file(path)
    assert kind is not None  # else it has no facts
    formats.check_packages(kind, FORMATS[kind].run_by, f"file: {path} is run by")
    return Exported(path, said)


def _place(given: str) -> Path:
    path = Path(given)
    if not os.path.lexists(path):
        raise InputError(f"file: there is no {given}. Give what stage=export has written.")
    if not os.path.isdir(path) or formats.of_file(path) is not None:
        return path
    try:
        names = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
    except OSError as error:
        raise InputError(f"file: {given} cannot be read ({error.strerror or error}). Give another file.") from error
    held = [name for name in names if formats.of_file(path / name) is not None]
    if len(held) > 1:
        raise InputError(f"file: {given} holds {', '.join(held)}. Name one of them: file={path / held[0]}")
    return path / held[0] if held else path


@contextmanager
def predictor(exported: Exported, threads: int) -> Iterator[Predictor]:
    """While inside, a file that is asked for probabilities as a run is; it is run in a process of its own, with so many
    threads. Raises InputError where it cannot be run."""
    with asking.asked(exported.path, exported.facts["quantize"], threads) as runtime:

        def ask(images: Images) -> np.ndarray:
            said = _checked(runtime.outputs(np.asarray(images)), exported)
            return said if _gives_probabilities(exported) else np.exp(metrics.log_softmax(said)).astype(np.float32)

        names = list(exported.facts["class_names"])
        yield Predictor(names, exported.decoding, asking.AT_ONCE, ask, exported.size)


def threads(given: int | str) -> int:
    """How many threads a file is run with: so many, or, for auto, one in a job beside others, else one a core."""
    if isinstance(given, int):
        return given
    return 1 if progress.is_elsewhere() else parallel.cores()


def logits(exported: Exported, images: Images, threads: int) -> np.ndarray:
    """What it says of images, not empty, uint8 [n, height, width, channels]: logits, floats [n, classes]; of
    probabilities their logarithm. Raises InputError where it cannot be run."""
    with asking.asked(exported.path, exported.facts["quantize"], threads) as runtime:
        said = _checked(asking.of_all(runtime.outputs, images, "evaluating"), exported)
    return logarithm(said) if _gives_probabilities(exported) else said


def _gives_probabilities(exported: Exported) -> bool:
    return exported.facts["output"] == "probabilities"


def _checked(outputs: np.ndarray, exported: Exported) -> np.ndarray:
    """Outputs, [n, classes], as they are. Raises KdrunError where they are not of its classes, or no finite numbers."""
    classes = len(exported.facts["class_names"])
    if outputs.shape[1] != classes:
        raise KdrunError(
            f"file: {exported.path} gives {outputs.shape[1]} numbers of an image, and names {classes} classes. Export "
            "it again."
        )
    if not np.isfinite(outputs).all():
        raise KdrunError(f"file: {exported.path}: what it says of some images is not finite. Export it otherwise.")
    return outputs
