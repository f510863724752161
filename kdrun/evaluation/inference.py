"""A network asked for its logits, in inference mode."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from kdrun.data.rows import Images
from kdrun.models.preprocessing import augment, images_at_once, prepare
from kdrun.runtime import signals

Infer = Callable[..., Iterator[np.ndarray]]


def compiled_inference(
    model, image_shape: tuple[int, int, int], batch_size: int, image_size: int, jitter: int = 0, flip: bool = False
) -> Infer:
    """A function (images, view=0) -> blocks of logits, float32 [at most batch_size, classes], in the images' order.

    Images are uint8 [n, *image_shape], not empty, and `view` says which of the augmentation's views of them (see
    data.batches); without augmentation there is view 0 alone. Every call of the network is on exactly batch_size
    images, the last batch being filled up: an image's logits then do not depend on how many images come with it. Of
    images that are big after resizing, batch_size is what `images_at_once` says.
    """
    prepared_shape = (image_size, image_size, image_shape[2])
    batch_size = images_at_once(batch_size, prepared_shape)
    raw = images_at_once(batch_size, image_shape)  # as many are resized at once
    views = tf.TensorSpec([], tf.int32)

    def seen(images, view):
        images = augment(images, tf.fill(tf.shape(images)[:1], view), jitter, flip)
        return prepare(images, image_size)

    @tf.function(input_signature=[tf.TensorSpec([batch_size, *image_shape], tf.uint8), views])
    def forward(images, view):
        return model(seen(images, view), training=False)

    prepared = tf.function(seen, input_signature=[tf.TensorSpec([None, *image_shape], tf.uint8), views])

    @tf.function(input_signature=[tf.TensorSpec([batch_size, *prepared_shape], tf.float32)])
    def forward_prepared(images):
        return model(images, training=False)

    def call(images: np.ndarray, view: int) -> tf.Tensor:
        if raw == batch_size:
            return forward(_filled(images, batch_size), view)
        parts = [prepared(images[start : start + raw], view).numpy() for start in range(0, len(images), raw)]
        return forward_prepared(_filled(np.concatenate(parts), batch_size))

    def infer(images: Images, view: int = 0) -> Iterator[np.ndarray]:
        for start in range(0, len(images), batch_size):
            signals.check()
            batch = images[start : start + batch_size]
            yield call(batch, view).numpy()[: len(batch)]

    return infer


def _filled(images: np.ndarray, size: int) -> np.ndarray:
    """So many images: these, and the first of them again and again."""
    missing = size - len(images)
    return np.concatenate([images, np.repeat(images[:1], missing, axis=0)]) if missing else images


def logits(infer: Infer, images: Images) -> np.ndarray:
    """All of an inference's logits, float32 [n, classes]."""
    return np.concatenate(list(infer(images)))


def latency(model, images: Images, image_size: int) -> dict[str, float]:
    """Seconds that this machine takes for one image and for a batch of 128: median and 95th percentile.

    From raw images uint8 [n, height, width, channels] to logits; the first, compiling call is left out. A second of
    calls each, 200 at most and 5 at least. Big images are seen as many at a time as `images_at_once` says.
    """
    found = {}
    for batch_size in (1, 128):
        shape = (batch_size, *images.shape[1:])
        fits = images_at_once(batch_size, images.shape[1:]) == batch_size
        batch = np.resize(images[:batch_size], shape) if fits else np.broadcast_to(images[:1], shape)
        infer = compiled_inference(model, images.shape[1:], batch_size, image_size)
        seconds: list[float] = []
        list(infer(batch))
        while len(seconds) < 5 or (len(seconds) < 200 and sum(seconds) < 1.0):
            started = time.perf_counter()
            list(infer(batch))
            seconds.append(time.perf_counter() - started)
        found[f"batch_{batch_size}_median"] = float(np.median(seconds))
        found[f"batch_{batch_size}_p95"] = float(np.percentile(seconds, 95))
    return found
