"""A run as a notebook takes it: its config, record, metrics and predictions, and on demand its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun.runs import predictions
from kdrun.runs import record as runs

if TYPE_CHECKING:
    import pandas as pd

    from kdrun.teachers.predictor import Predictor


class LoadedRun:
    """A run directory, read when something of it is asked for. Each property raises InputError where that is damaged,
    or not there."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.record: dict[str, Any] = runs.read(self.path)

    def __repr__(self) -> str:
        return f"<{self.record['stage']} run {self.path}, {self.record['status']}>"

    @property
    def config(self) -> Mapping[str, Any]:
        """All keys of its config, as nested dictionaries."""
        return self.record["config"]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row for each epoch and split, as in metrics.jsonl."""
        from kdrun.comparison import gathering  # and with it pandas, for who asks

        return gathering.curves(self.path)

    @cached_property
    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels, int [n], and the best weights' logits, float32 [n, classes], on the test set."""
        return predictions.read(self.path)

    def network(self, which: str = "best") -> Any:
        """The tf_keras.Model with its `best` or `last` weights, frozen, in float32: from images as `prepared` makes
        them to logits float32 [batch, classes].

        Loads TensorFlow. A net of a file of your own must be registered first: kdrun.load_run(path, plugins=[FILE]).
        """
        from kdrun.runtime import tensorflow
        from kdrun.teachers import checkpoint

        runs.check_leaves_network(self.record, str(self.path))
        tensorflow.load_tensorflow()
        return checkpoint.load(self.path, "float32", which)

    def predict(self, images: np.ndarray | str | Path | Sequence[str | Path]) -> np.ndarray:
        """Probabilities, float32 [n, classes], in the order of `record["class_names"]`; every row's sum is 1.

        `images` are uint8 [n, height, width, channels], pixels from 0 to 255, of any size and of as many channels as
        the network was trained on ([n, height, width] where that is one); or a list of the names of pictures' files,
        which are read as data=folder reads them (turned, grey or colour, transparent on white, made as large as the
        training images). By the best weights. Loads TensorFlow.

        Raises InputError for a run without a good network, for an array of another kind, and for pictures that cannot
        be read, with all their names; Diverged where a probability is no finite number. A net of a file of your own
        must be registered first: kdrun.load_run(path, plugins=[FILE]).
        """
        named = [images] if isinstance(images, str | Path) else images
        if not isinstance(named, np.ndarray) and all(isinstance(each, str | Path) for each in named):
            return self._predictor.of_files([str(path) for path in named])
        return self._predictor.of_array(np.asarray(images))

    @cached_property
    def _predictor(self) -> Predictor:
        from kdrun.runtime import tensorflow
        from kdrun.teachers import predictor

        runs.check_leaves_network(self.record, str(self.path))
        tensorflow.load_tensorflow()
        return predictor.of_run(self.path)

    def prepared(self, images: np.ndarray) -> Any:
        """Images, uint8 [n, height, width, channels], as the network was shown them: resized, scaled to [0, 1] and
        normalised, float32. Loads TensorFlow."""
        from kdrun.runtime import tensorflow
        from kdrun.teachers import checkpoint

        tensorflow.load_tensorflow()
        return checkpoint.prepared(self.path, images)
