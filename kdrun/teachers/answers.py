"""How a student hears its teacher: from the cache, or live beside it."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache as once
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import Progress

from kdrun import files, runs
from kdrun.data import batches
from kdrun.data.datasets import Dataset
from kdrun.errors import KdrunError
from kdrun.teachers import cache, checkpoint
from kdrun.training import network, precision, preprocessing
from kdrun.training.inference import compiled_inference

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


def are_kept(config: Mapping) -> bool:
    """Whether the configured distil run reads its teacher's logits from the cache; see conf/config.yaml."""
    asked = config["teacher"]["cache"]
    return asked == "on" or (asked == "auto" and _views(config) == 1)


def why_live(config: Mapping, dataset: Dataset) -> str:
    """The reason that they are not kept, for the log."""
    if config["teacher"]["cache"] == "off":
        return "teacher.cache=off"
    room = files.readable(cache.size(_shapes(config, dataset)))
    return (
        f"augmentation shows it {_views(config)} views of each image; teacher.cache=on would keep its logits of all "
        f"({room}), after {_views(config)} passes over the training set"
    )


def kept(config: Mapping, teacher_dir: Path, dataset: Dataset) -> dict[str, np.ndarray] | None:
    """The teacher's logits by split, from the cache, which is filled if it has to be.

    train is float32 [views, n, classes], validation and test are [n, classes]. Where the cache cannot be written,
    None, with a warning, for teacher.cache=auto; KdrunError for on.
    """
    folder, shapes = Path(config["cache_dir"]), _shapes(config, dataset)
    console = Console()
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            ask = partial(_ask, once(partial(_teacher, config, teacher_dir, dataset)), config, dataset, bar)
            return cache.obtain(folder, depends(config, teacher_dir, dataset), shapes, ask)
    except OSError as error:
        problem = f"{folder} cannot take the teacher's logits, {files.readable(cache.size(shapes))} ({error.strerror})."
        if config["teacher"]["cache"] == "auto":
            log.warning("teacher cache: %s Going on without it", problem)
            return None
        raise KdrunError(f"{problem} Make room, set cache_dir to another folder, or teacher.cache=off.") from error


def live(config: Mapping, teacher_dir: Path, dataset: Dataset):
    """The teacher itself, frozen, and its logits by split for validation and test, float32 [n, classes]."""
    model, infer = _teacher(config, teacher_dir, dataset)
    unchanged = batches.unchanged_view(config["data"]["augment"]["jitter"])
    splits = {"validation": dataset.validation.images, "test": dataset.test.images}
    return model, {split: np.concatenate(list(infer(images, unchanged))) for split, images in splits.items()}


def depends(config: Mapping, teacher_dir: Path, dataset: Dataset) -> dict:
    """Everything that the teacher's logits depend on, as plain values."""
    record = runs.read(teacher_dir)
    return {
        "format": cache.FORMAT,
        "weights_sha256": files.sha256(teacher_dir / checkpoint.WEIGHTS),
        "model": record["model"],
        "num_classes": record["num_classes"],
        "dataset_sha256": dataset.sha256,
        "splits": {split: len(getattr(dataset, split).labels) for split in SPLITS},
        "preprocessing": preprocessing.described(config["data"]["image_size"]),
        "augment": config["data"]["augment"],
        "precision": precision.policy(config["precision"]),
        "inference_batch_size": config["teacher"]["inference_batch_size"],
        "device": "GPU" if tf.config.list_physical_devices("GPU") else "CPU",
        "tensorflow": version("tensorflow"),
    }


def _ask(load: Callable, config: Mapping, dataset: Dataset, bar: Progress, split: str) -> Iterator[np.ndarray]:
    _, infer = load()
    images = getattr(dataset, split).images
    views = range(_views(config)) if split == "train" else [batches.unchanged_view(config["data"]["augment"]["jitter"])]
    task = bar.add_task(f"asking the teacher: {split}", total=len(views) * len(images))
    for view in views:
        for block in infer(images, view):
            bar.advance(task, len(block))
            yield block


def _teacher(config: Mapping, teacher_dir: Path, dataset: Dataset):
    """The teacher's network, frozen, and its inference on any view of the dataset's images."""
    network.release()  # the one trained last would only take room beside it
    model = checkpoint.load(teacher_dir, precision.policy(config["precision"]))
    data = config["data"]
    infer = compiled_inference(
        model,
        dataset.test.images.shape[1:],
        config["teacher"]["inference_batch_size"],
        data["image_size"],
        data["augment"]["jitter"],
        data["augment"]["flip"],
    )
    return model, infer


def _views(config: Mapping) -> int:
    return batches.view_count(**config["data"]["augment"])


def _shapes(config: Mapping, dataset: Dataset) -> dict[str, tuple[int, ...]]:
    n, classes = {split: len(getattr(dataset, split).labels) for split in SPLITS}, dataset.num_classes
    return {
        "train": (_views(config), n["train"], classes),
        "validation": (n["validation"], classes),
        "test": (n["test"], classes),
    }
