"""A data set of 384 + 64 images of 8x8 in four classes, and the overrides for nets that train on it in no time."""

from pathlib import Path

import numpy as np

SPLITS = {"train": 320, "validation": 64, "test": 64}
TINY = ["data=npz", "data.image_size=8", "data.validation_size=64", "batch_size=32", "epochs=1", "optimizer=adam"]
TINY += ["model@teacher.model=mlp", "model@student.model=mlp", "teacher.model.hidden_units=[16,16]"]
TINY += ["student.model.hidden_units=[8]", "measure_latency=false", "tensorboard.histograms=false"]


def write(path: Path, seed: int = 0) -> list[str]:
    """Write the data set; the overrides that train on it. Of each image, the two rows of its label are brightened."""
    random, arrays = np.random.default_rng(seed), {}
    for split, count in (("train", 384), ("test", 64)):
        labels = random.integers(4, size=count)
        images = random.integers(0, 200, (count, 8, 8), np.uint8)
        images[np.arange(count)[:, None], 2 * labels[:, None] + [0, 1]] += 55
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    np.savez(path, **arrays)
    return [*TINY, f"data.path={path}"]
