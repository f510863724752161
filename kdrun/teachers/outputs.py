"""Teacher outputs for a student: from the cache, from a file, or live beside it."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache as once
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.progress import Progress

from kdrun.config.keys import DATA
from kdrun.config.schema import ALL_IMAGES, depended_on
from kdrun.data import augmentation, mixing, preparation
from kdrun.data.augmentation import Augmentation
from kdrun.data.datasets import Dataset
from kdrun.data.rows import Images
from kdrun.errors import KdrunError
from kdrun.evaluation import metrics
from kdrun.evaluation.inference import Infer, compiled_inference
from kdrun.models import build as models
from kdrun.models import preprocessing, surgery
from kdrun.models.augmentation import augment
from kdrun.runs import identity
from kdrun.runs import record as runs
from kdrun.runtime import devices, precision, rendezvous, terminal
from kdrun.runtime.tensorflow import device_names
from kdrun.storage import files
from kdrun.teachers import cache, checkpoint, foreign, kinds, logits_file, sharing
from kdrun.training import network

log = logging.getLogger(__name__)

SPLITS = logits_file.SPLITS


def why_live(config: Mapping, dataset: Dataset) -> str:
    """The reason that they are not kept, for the log."""
    if config["teacher"]["cache"] == "off":
        return "teacher.cache=off"
    if mixing.is_on(config["distill"]):
        return "no two mixed images are alike"
    if not augmentation.of(config["data"]).is_finite:
        return "augmentation shows it ever other views; data.augment.views=K would show K of each image, which are kept"
    room = files.readable(cache.size(_shapes(config, dataset)))
    return (
        f"augmentation shows it {_views(config)} views of each image; teacher.cache=on would keep its logits of all "
        f"({room}), after {_views(config)} passes over the training set"
    )


def cached(config: Mapping, source: Path, dataset: Dataset) -> dict[str, np.ndarray] | None:
    """A teacher's logits by split: a file's, or a run's from the cache, which is filled if it has to be.

    train is float32 [views, n, classes], validation and test are [n, classes]. Where the cache cannot be written,
    None, with a warning, for teacher.cache=auto; KdrunError for on.
    """
    if kinds.is_foreign(source):
        key = foreign.cache_key(config, source, dataset)
        with ExitStack() as stack:
            load = partial(_foreign, _opened(stack, config, source, dataset), config, source, dataset)
            return _cached(_kept(config), dataset, _shapes(config, dataset), key, load)
    if source.is_file():
        found = logits_file.logits(source, dataset)
        return {**found, "train": found["train"][np.newaxis]}
    load = partial(_teachers, config, source, dataset)
    return _cached(config, dataset, _shapes(config, dataset), cache_key(config, source, dataset), load)


def cached_features(
    config: Mapping, source: Path, dataset: Dataset, layers: Mapping[str, str]
) -> dict[str, np.ndarray] | None:
    """A teacher's features on the training set by name, float32 [views, n, ...], from the cache, filled if need be.

    None, with a warning, where there is no room for a run's. `layers` are the layers by name.
    """
    folder, found = Path(config["cache_dir"]), {}
    views, n = _views(config), len(dataset.train.labels)
    of_images = _feature_shapes(config, source, dataset, layers)
    shapes = {name: {"train": (views, n, *shape)} for name, shape in of_images.items()}
    is_foreign = kinds.is_foreign(source)
    key = foreign.cache_key(config, source, dataset) if is_foreign else cache_key(config, source, dataset)
    missing = [name for name, layer in layers.items() if not cache.is_there(folder, {**key, "layer": layer})]
    needed, free = sum(cache.size(shapes[name]) for name in missing), files.free(folder)
    log.info(
        "teacher cache: features of %s take %s",
        ", ".join(layers),
        files.readable(sum(map(cache.size, shapes.values()))),
    )
    if sharing.is_short(needed > free, rendezvous.current()):
        if is_foreign:
            raise KdrunError(f"{folder} has {files.readable(free)} free, too few. Set cache_dir to another folder.")
        log.warning("teacher cache: %s are free in %s, too few. The teacher runs live", files.readable(free), folder)
        return None
    with ExitStack() as stack:
        opened = _opened(stack, config, source, dataset)
        for name, layer in layers.items():
            load = partial(_teachers, config, source, dataset, layer)
            if is_foreign:
                load = partial(_foreign, opened, config, source, dataset, layer)
            how = _kept(config) if is_foreign else config
            cached = _cached(how, dataset, shapes[name], {**key, "layer": layer}, load)
            if cached is None:
                return None
            found[name] = cached["train"]
    return found


def _opened(stack: ExitStack, config: Mapping, source: Path, dataset: Dataset) -> Callable[[], foreign.Ask]:
    """What starts the process of another tool's network, when it is first called; it ends with the stack."""
    return once(lambda: stack.enter_context(foreign.asked(config, source, dataset)))


def _kept(config: Mapping) -> dict:
    """A config whose teacher's outputs are kept in any case, since there is nothing else to go on with."""
    return {**config, "teacher": {**config["teacher"], "cache": "on"}}


def _feature_shapes(
    config: Mapping, source: Path, dataset: Dataset, layers: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's output for one image, by name."""
    if kinds.is_foreign(source):
        shapes = foreign.features(config, source, dataset)
        return {name: shapes[layer] for name, layer in layers.items()}
    record = runs.read(source)
    network_ = models.build(record["model"], tuple(record["image_shape"]), record["num_classes"], 0, "float32")
    return {name: tuple(network_.get_layer(layer).output.shape[1:]) for name, layer in layers.items()}


def _cached(
    config: Mapping, dataset: Dataset, shapes: cache.Shapes, key: Mapping, load: Callable[[], list[dict]]
) -> dict[str, np.ndarray] | None:
    """What is cached under a key; `load` is for the case that it has to be asked: see `_teachers`."""
    folder = Path(config["cache_dir"])
    try:
        with Progress(console=terminal.canvas(), transient=True, disable=not terminal.is_animated()) as bar:
            ask = partial(_ask, once(load), config, dataset, bar)
            return sharing.obtain(folder, key, shapes, ask, rendezvous.current())
    except OSError as error:
        problem = (
            f"{folder} cannot take the teacher's answers, {files.readable(cache.size(shapes))} ({error.strerror})."
        )
        if config["teacher"]["cache"] == "auto":
            log.warning("teacher cache: %s Going on without it", problem)
            return None
        raise KdrunError(f"{problem} Make room, set cache_dir to another folder, or teacher.cache=off.") from error


def live(config: Mapping, teacher_dir: Path, dataset: Dataset):
    """The teacher itself, frozen, and its logits by split for validation and test, float32 [n, classes]."""
    model, infer = _teacher(config, teacher_dir, dataset)
    splits = {"validation": dataset.validation.images, "test": dataset.test.images}
    found = {split: np.concatenate(list(infer[split](images))) for split, images in splits.items()}
    for split, logits in found.items():
        metrics.check_finite(logits, f"on the {split} split, by the teacher {teacher_dir}")
    return model, found


def cache_key(config: Mapping, teacher_dir: Path, dataset: Dataset) -> dict:
    """Everything that the teacher's logits depend on, as plain values."""
    record = runs.read(teacher_dir)
    own = {key: value for key, value in identity.of_data(config["data"]).items() if key not in DATA}
    shown, channels = preparation.of_run(record), dataset.test.images.shape[3]
    return {
        "format": cache.FORMAT,
        "weights_sha256": files.sha256(teacher_dir / checkpoint.WEIGHTS),
        "model": record["model"],
        "code": identity.code_of("model", record["model"]["name"]),
        "num_classes": record["num_classes"],
        "dataset_sha256": dataset.sha256,
        "splits": {split: len(getattr(dataset, split).labels) for split in SPLITS},
        "train_on_validation": config["data"]["train_on_validation"],
        "subset": {key: config["data"][key] for key in ("train_size", *ALL_IMAGES)},
        "subset_seed": config["seed"] if config["data"]["train_fraction"] < 1 else None,
        "preprocessing": preprocessing.described(shown),
        "augment": depended_on(config["data"])["augment"],
        "precision": precision.policy(config["precision"]),
        "inference_batch_size": preprocessing.images_at_once(
            config["teacher"]["inference_batch_size"], (shown.image_size, shown.image_size, channels)
        ),
        "device": "GPU" if tf.config.list_physical_devices("GPU") else "CPU",
        "tensorflow": version("tensorflow"),
        **({"data": own} if own else {}),
    }


def _ask(load: Callable, config: Mapping, dataset: Dataset, bar: Progress, split: str) -> Iterator[np.ndarray]:
    """A split's answers in blocks, in order: of all views of the training images. The devices that a batch is spread
    over, those of a cluster's other tasks among them, take turns."""
    asked = load()
    images = getattr(dataset, split).images
    views = range(_views(config)) if split == "train" else [0]
    task = bar.add_task(f"asking the teacher: {split}", total=len(views) * len(images))
    for view in views:
        own = [partial(infer[split], images, view) for infer in asked]
        for block in sharing.in_turns(own, rendezvous.current()):
            bar.advance(task, len(block))
            yield block


def _teachers(config: Mapping, teacher_dir: Path, dataset: Dataset, layer: str | None = None) -> list[dict]:
    """The inference of the teacher on each of a job's devices, as `_teacher` gives it."""
    found = []
    for device in device_names(devices.count(config["devices"])):
        with tf.device(device):
            _, infer = _teacher(config, teacher_dir, dataset, layer)
        found.append({split: partial(_on_device, device, each) for split, each in infer.items()})
    return found


def _on_device(device: str | None, infer: Infer, *given: Any) -> Iterator[np.ndarray]:
    blocks = infer(*given)
    while True:
        with tf.device(device):
            block = next(blocks, None)
        if block is None:
            return
        yield block


def _teacher(config: Mapping, teacher_dir: Path, dataset: Dataset, layer: str | None = None):
    """The teacher's network, frozen, and its inference by split, of a layer if one is named: on any view of the
    training images, and on the others as they are."""
    network.release()  # the one trained last would only take room beside it
    model = checkpoint.load(teacher_dir, precision.policy(config["precision"]))
    asked = surgery.up_to(model, layer) if layer else model
    batch_size, shown = config["teacher"]["inference_batch_size"], preparation.of_run(runs.read(teacher_dir))
    infer = partial(compiled_inference, asked, dataset.test.images.shape[1:], batch_size, shown)
    plain = infer()
    augmented = infer(augmentation.of(config["data"])) if _views(config) > 1 else plain
    return model, {"train": augmented, "validation": plain, "test": plain}


def _foreign(
    opened: Callable[[], foreign.Ask], config: Mapping, source: Path, dataset: Dataset, feature: str | None = None
) -> list[dict]:
    """Another tool's inference by split, as `_teachers` gives one's, of a feature if one is named. What it says of the
    validation images is known already."""
    network.release()
    ask = opened()
    batch_size = config["teacher"]["inference_batch_size"]

    def infer(
        images: Images, view: int, number: int, count: int, how: Augmentation = augmentation.NONE
    ) -> Iterator[np.ndarray]:
        for start in range(0, len(images), batch_size)[number::count]:
            batch = np.asarray(images[start : start + batch_size])
            if how.view_count > 1:
                indices = tf.range(start, start + len(batch))
                batch = augment(tf.constant(batch), indices, tf.fill([len(batch)], view), how).numpy()
            yield ask(batch, feature)

    def validated(images: Images, view: int, number: int, count: int) -> Iterator[np.ndarray]:
        if number == 0:
            yield foreign.validation(config, source, dataset)

    shown = partial(infer, how=augmentation.of(config["data"]))
    return [{"train": shown, "validation": validated, "test": infer}]


def _views(config: Mapping) -> int:
    return augmentation.of(config["data"]).view_count


def _shapes(config: Mapping, dataset: Dataset) -> dict[str, tuple[int, ...]]:
    n, classes = {split: len(getattr(dataset, split).labels) for split in SPLITS}, dataset.num_classes
    return {
        "train": (_views(config), n["train"], classes),
        "validation": (n["validation"], classes),
        "test": (n["test"], classes),
    }
