"""A data set of 384 + 64 images of 8x8 in four classes, and the overrides for nets that train on it in no time."""

from pathlib import Path

import numpy as np

TINY = ["data=npz", "data.image_size=8", "data.validation_size=64", "data.split=first", "batch_size=32", "epochs=1"]
TINY += ["optimizer=adam", "model@teacher.model=mlp", "model@student.model=mlp", "teacher.model.hidden_units=[16,16]"]
TINY += ["student.model.hidden_units=[8]", "measure_latency=false", "tensorboard.histograms=false"]


def write(path: Path, **arrays: np.ndarray) -> list[str]:
    """Write a data set, by default one whose labels take turns; the overrides that train on it."""
    np.savez(path, **(arrays or images()))
    return [*TINY, f"data.path={path}"]


def images() -> dict[str, np.ndarray]:
    """Of each image, the two rows of its label are brighter."""
    random, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 384), ("test", 64)):
        labels = np.arange(count) % 4
        x = random.integers(0, 200, (count, 8, 8), np.uint8)
        x[np.arange(count)[:, None], 2 * labels[:, None] + [0, 1]] += 55
        arrays |= {f"x_{split}": x, f"y_{split}": labels}
    return arrays
