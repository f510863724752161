"""A network that is asked for probabilities: what all of them have in common, and a finished run's. Importable without
TensorFlow."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdrun.data import inputs, preparation
from kdrun.data.rows import Images
from kdrun.data.store import Decoding
from kdrun.errors import InputError
from kdrun.evaluation import metrics
from kdrun.runs import record as runs
from kdrun.runs import run_json
from kdrun.storage import forms
from kdrun.teachers import checkpoint


class Predictor(NamedTuple):
    """A network that is asked what is on images. `class_names` are its classes in their order; `decoding` is how
    pictures become images for it; `at_once` how many of them it takes a call; `ask(images)`, uint8 [n, height, width,
    channels], not empty, are their probabilities, float32 [n, classes]; `size` is the only height and width that images
    may have, None: any."""

    class_names: list[str]
    decoding: Decoding
    at_once: int
    ask: Callable[[Images], np.ndarray]
    size: tuple[int, int] | None = None

    def __call__(self, images: Images) -> np.ndarray:
        """Probabilities, float32 [n, classes], of images uint8 [n, height, width, channels], perhaps none. Raises
        KdrunError where one is no finite number."""
        return self.ask(images) if len(images) else np.zeros((0, len(self.class_names)), np.float32)

    def of_files(self, paths: Sequence[str]) -> np.ndarray:
        """Probabilities, float32 [n, classes], of pictures in files. Raises InputError, which names all of them, for
        those that cannot be read."""
        broken, found = [], [np.zeros((0, len(self.class_names)), np.float32)]
        for block in inputs.blocks(inputs.of_files(paths, self.decoding), self.at_once):
            broken += [f"{block.names[place]!a} ({why})" for place, why in block.broken.items()]
            if not broken:
                found.append(self(block.images))
        if broken:
            raise InputError(f"{len(broken):,} of {len(paths):,} pictures cannot be read: {'; '.join(broken)}.")
        return np.concatenate(found)

    def of_array(self, images: np.ndarray) -> np.ndarray:
        """What a call gives, of images that somebody else has made. Raises InputError where they are none."""
        images = np.asarray(images)
        whole = images[..., np.newaxis] if images.ndim == 3 else images
        channels = self.decoding.channels
        if images.dtype != np.uint8 or whole.ndim != 4 or whole.shape[3] != channels or 0 in whole.shape[1:]:
            raise InputError(
                f"images are {images.dtype} {list(images.shape)}; they must be uint8 [n, height, width, {channels}], "
                "pixels from 0 to 255, or a list of files' names."
            )
        return self(whole)


def of_run(run_dir: Path) -> Predictor:
    """The best weights' network of a completed run, in the precision that it was trained in; it takes as many images a
    call as it did when it was measured, of any size.

    Raises InputError where the run's record is of no network, or its weights are of another one. Loads no TensorFlow
    itself: see runtime.tensorflow.
    """
    from kdrun.evaluation.inference import compiled_inference, logits
    from kdrun.models.preprocessing import images_at_once
    from kdrun.runtime import precision

    record = check(run_dir)
    precision.prepare_machine()
    model, shown = checkpoint.load(run_dir, record["precision"]), preparation.of_run(record)
    decoding = inputs.decoding_of(record)
    side = decoding.size or 1
    at_once = images_at_once(record["config"]["evaluation_batch_size"], (side, side, record["image_shape"][2]))

    @lru_cache(maxsize=1)
    def compiled(shape: tuple[int, int, int]) -> Callable:
        return compiled_inference(model, shape, at_once, shown)

    def ask(images: Images) -> np.ndarray:
        height, width, channels = images.shape[1:]
        said = metrics.check_finite(logits(compiled((height, width, channels)), images), f"by {run_dir}")
        return np.exp(metrics.log_softmax(said)).astype(np.float32)

    return Predictor(class_names(record), decoding, at_once, ask)


def class_names(record: Mapping) -> list[str]:
    """The classes that a run's network tells apart, in their order; numbers, of a run of before names were recorded."""
    return list(record.get("class_names") or map(str, range(record["num_classes"])))


def check(run_dir: Path) -> dict:
    """The record of a run whose network can be asked. Raises InputError where it cannot, or its files were changed."""
    record = runs.read(run_dir)
    if wrong := forms.problem(record, run_json.EVALUATED):
        raise InputError(f"run: {run_dir} is damaged, or not the record of a network: {wrong}.")
    checkpoint.model_of(run_dir)
    if changed := runs.damaged(run_dir, {"files": {}, **record}):
        raise InputError(f"run: {run_dir}: {', '.join(changed)} is not what run.json says. Give another run.")
    return record
