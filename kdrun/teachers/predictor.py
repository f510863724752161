"""A finished run's network, asked for probabilities. Importable without TensorFlow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdrun.data import inputs, preparation
from kdrun.data.rows import Images
from kdrun.errors import InputError
from kdrun.evaluation import metrics
from kdrun.runs import record as runs
from kdrun.runs import run_json
from kdrun.storage import forms
from kdrun.teachers import checkpoint


class Predictor:
    """The best weights' network of a completed run, in the precision that it was trained in: from images to
    probabilities. `class_names` are its classes in their order, `decoding` is how pictures become images for it, and
    `at_once` how many of them it takes a call, as it did when it was measured.

    Raises InputError where the run's record is of no network, or its weights are of another one. Loads no TensorFlow
    itself: see runtime.tensorflow.
    """

    def __init__(self, run_dir: Path):
        from kdrun.models.preprocessing import images_at_once
        from kdrun.runtime import precision

        record = check(run_dir)
        precision.prepare_machine()
        self._run_dir, self._preparation = run_dir, preparation.of_run(record)
        self._model = checkpoint.load(run_dir, record["precision"])
        self._infer: tuple = ((), None)
        classes = range(record["num_classes"])
        self.class_names: list[str] = record.get("class_names") or [str(number) for number in classes]
        self.decoding = inputs.decoding_of(record)
        side = self.decoding.size or 1
        self.at_once = images_at_once(record["config"]["evaluation_batch_size"], (side, side, record["image_shape"][2]))

    def __call__(self, images: Images) -> np.ndarray:
        """Probabilities, float32 [n, classes], of images uint8 [n, height, width, channels] of any size. Raises
        Diverged where one is no finite number."""
        from kdrun.evaluation.inference import compiled_inference, logits

        if not len(images):
            return np.zeros((0, len(self.class_names)), np.float32)
        shape = tuple(images.shape[1:])
        if self._infer[0] != shape:
            self._infer = (shape, compiled_inference(self._model, shape, self.at_once, self._preparation))
        said = metrics.check_finite(logits(self._infer[1], images), f"by {self._run_dir}")
        return np.exp(metrics.log_softmax(said)).astype(np.float32)

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


def check(run_dir: Path) -> dict:
    """The record of a run whose network can be asked. Raises InputError where it cannot, or its files were changed."""
    record = runs.read(run_dir)
    if wrong := forms.problem(record, run_json.EVALUATED):
        raise InputError(f"run: {run_dir} is damaged, or not the record of a network: {wrong}.")
    checkpoint.model_of(run_dir)
    if changed := runs.damaged(run_dir, {"files": {}, **record}):
        raise InputError(f"run: {run_dir}: {', '.join(changed)} is not what run.json says. Give another run.")
    return record
