"""A network asked for its logits, in inference mode."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from kdrun.training import stopping
from kdrun.training.preprocessing import augment, prepare

Infer = Callable[..., Iterator[np.ndarray]]


def compiled_inference(
    model, image_shape: tuple[int, int, int], batch_size: int, image_size: int, jitter: int = 0, flip: bool = False
) -> Infer:
    """A function (images, view=0) -> blocks of logits, float32 [at most batch_size, classes], in the images' order.

    Images are uint8 [n, *image_shape], not empty, and `view` says which of the augmentation's views of them (see
    data.batches); without augmentation there is view 0 alone. Every call of the network is on exactly batch_size
    images, the last batch being filled up: an image's logits then do not depend on how many images come with it.
    """

    @tf.function(input_signature=[tf.TensorSpec([batch_size, *image_shape], tf.uint8), tf.TensorSpec([], tf.int32)])
    def forward(images, view):
        images = augment(images, tf.fill([batch_size], view), jitter, flip)
        return model(prepare(images, image_size), training=False)

    def infer(images: np.ndarray, view: int = 0) -> Iterator[np.ndarray]:
        for start in range(0, len(images), batch_size):
            stopping.check()
            batch = images[start : start + batch_size]
            missing = batch_size - len(batch)
            filled = np.concatenate([batch, np.repeat(batch[:1], missing, axis=0)]) if missing else batch
            yield forward(filled, view).numpy()[: len(batch)]

    return infer


def logits(infer: Infer, images: np.ndarray) -> np.ndarray:
    """All of an inference's logits, float32 [n, classes]."""
    return np.concatenate(list(infer(images)))


def latency(model, images: np.ndarray, image_size: int) -> dict[str, float]:
    """Seconds that this machine takes for one image and for a batch of 128: median and 95th percentile.

    From raw images uint8 [n, height, width, channels] to logits; the first, compiling call is left out. A second of
    calls each, 200 at most and 5 at least.
    """
    found = {}
    for batch_size in (1, 128):
        batch = np.resize(images[:batch_size], (batch_size, *images.shape[1:]))
        infer = compiled_inference(model, images.shape[1:], batch_size, image_size)
        seconds = []
        list(infer(batch))
        while len(seconds) < 5 or (len(seconds) < 200 and sum(seconds) < 1.0):
            started = time.perf_counter()
            list(infer(batch))
            seconds.append(time.perf_counter() - started)
        found[f"batch_{batch_size}_median"] = float(np.median(seconds))
        found[f"batch_{batch_size}_p95"] = float(np.percentile(seconds, 95))
    return found
