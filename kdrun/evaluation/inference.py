"""A network asked for its logits, in inference mode."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from kdrun.data.augmentation import NONE, Augmentation
from kdrun.data.preparation import Preparation
from kdrun.data.rows import Images
from kdrun.models.preprocessing import images_at_once, seen
from kdrun.runtime import signals

Infer = Callable[..., Iterator[np.ndarray]]


def compiled_inference(
    model,
    image_shape: tuple[int, int, int],
    batch_size: int,
    preparation: Preparation,
    augmentation: Augmentation = NONE,
) -> Infer:
    """A function (images, view=0) -> blocks of logits, float32 [at most batch_size, classes], in the images' order; of
    `count` of them that take turns, (images, view, number, count) -> those blocks whose turn is `number`'s.

    Images are uint8 [n, *image_shape], not empty, a split's from its first one on, and `view` says which of the
    augmentation's views of them (see data.augmentation); without augmentation there is view 0 alone. Every call of the
    network is on exactly batch_size images, the last batch being filled up: an image's logits then do not depend on how
    many images come with it. Of images that are big after resizing, batch_size is what `images_at_once` says.
    """
    prepared_shape = (preparation.image_size, preparation.image_size, image_shape[2])
    batch_size = images_at_once(batch_size, prepared_shape)
    raw = images_at_once(batch_size, image_shape)  # as many are resized at once
    number = tf.TensorSpec([], tf.int32)

    def of_view(images, first, view):
        count = tf.shape(images)[0]
        (shown,) = seen(images, first + tf.range(count), tf.fill([count], view), augmentation, [preparation])
        return shown

    @tf.function(input_signature=[tf.TensorSpec([batch_size, *image_shape], tf.uint8), number, number])
    def forward(images, first, view):
        return model(of_view(images, first, view), training=False)

    prepared = tf.function(of_view, input_signature=[tf.TensorSpec([None, *image_shape], tf.uint8), number, number])

    @tf.function(input_signature=[tf.TensorSpec([batch_size, *prepared_shape], tf.float32)])
    def forward_prepared(images):
        return model(images, training=False)

    def call(images: np.ndarray, first: int, view: int) -> tf.Tensor:
        if raw == batch_size:
            return forward(_filled(images, batch_size), first, view)
        starts = range(0, len(images), raw)
        parts = [prepared(images[start : start + raw], first + start, view).numpy() for start in starts]
        return forward_prepared(_filled(np.concatenate(parts), batch_size))

    def infer(images: Images, view: int = 0, number: int = 0, count: int = 1) -> Iterator[np.ndarray]:
        for start in range(0, len(images), batch_size)[number::count]:
            signals.check()
            batch = images[start : start + batch_size]
            yield call(batch, start, view).numpy()[: len(batch)]

    return infer


def _filled(images: np.ndarray, size: int) -> np.ndarray:
    """So many images: these, and the first of them again and again."""
    missing = size - len(images)
    return np.concatenate([images, np.repeat(images[:1], missing, axis=0)]) if missing else images


def logits(infer: Infer, images: Images) -> np.ndarray:
    """All of an inference's logits, float32 [n, classes]."""
    return np.concatenate(list(infer(images)))


def latency(model, images: Images, preparation: Preparation) -> dict[str, float]:
    """Seconds that this machine takes for one image and for a batch of 128: median and 95th percentile.

    From raw images uint8 [n, height, width, channels] to logits; the first, compiling call is left out. A second of
    calls each, 200 at most and 5 at least. Big images are seen as many at a time as `images_at_once` says.
    """
    found = {}
    for batch_size in (1, 128):
        shape = (batch_size, *images.shape[1:])
        fits = images_at_once(batch_size, images.shape[1:]) == batch_size
        batch = np.resize(images[:batch_size], shape) if fits else np.broadcast_to(images[:1], shape)
        infer = compiled_inference(model, images.shape[1:], batch_size, preparation)
        seconds: list[float] = []
        list(infer(batch))
        while len(seconds) < 5 or (len(seconds) < 200 and sum(seconds) < 1.0):
            started = time.perf_counter()
            list(infer(batch))
            seconds.append(time.perf_counter() - started)
        found[f"batch_{batch_size}_median"] = float(np.median(seconds))
        found[f"batch_{batch_size}_p95"] = float(np.percentile(seconds, 95))
    return found
