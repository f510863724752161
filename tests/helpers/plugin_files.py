"""Files of a user's own, one of each kind, as tests write them into a folder."""

NET = '''
from typing import Annotated, Literal

from kdrun.config.rules import integer
from kdrun.registry import register


@register("model", "my_net", features={"trunk": "trunk", "embedding": "embedding"}, maps=["trunk"])
def my_net(
    inputs,
    num_classes,
    *,
    layers: Annotated[int, integer(1, 3)] = 1,
    weights: Literal["glorot", "he"] = "glorot",
    order: list[int] = (3, 5),
):
    """Convolutions of the sizes in `order`."""
    from tf_keras import layers as keras

    x = inputs
    for number in range(layers):
        name = "trunk" if number == layers - 1 else f"conv{number}"
        initial = f"{weights}_uniform"
        x = keras.Conv2D(2, order[number], strides=2, padding="same", kernel_initializer=initial, name=name)(x)
    x = keras.GlobalAveragePooling2D(name="embedding")(x)
    return keras.Dense(num_classes, name="classifier")(x)
'''
SOURCE = '''
import numpy as np

from kdrun.data.source import Arrays
from kdrun.registry import register


@register("data", "stripes")
def stripes(*, count: int = 96, bright: float = 1.0):
    """Images of three classes: a bright row each."""
    labels = np.arange(count) % 3
    images = np.random.default_rng(0).integers(0, 99, (count, 8, 8), np.uint8)
    images[np.arange(count), 2 * labels] = int(255 * bright)
    return Arrays({"x_train": images, "y_train": labels, "x_test": images[:30], "y_test": labels[:30]})
'''
OBJECTIVE = '''
import tensorflow as tf

from kdrun.registry import register


@register("objective", "confident", needs_teacher=False, needs_labels=True)
def confident(batch, *, strength: float = 0.5):
    """How far the label's probability is from 1."""
    q = tf.gather(tf.nn.softmax(batch.logits), batch.labels, batch_dims=1)
    return strength * tf.reduce_mean(1.0 - q)
'''
OPTIMIZER = """
from kdrun.registry import register


@register("optimizer", "heavy_ball")
def heavy_ball(*, learning_rate: float = 0.05, friction: float = 0.1):
    import tf_keras

    return tf_keras.optimizers.SGD(learning_rate=learning_rate, momentum=1 - friction, jit_compile=False)
"""
TRACKER = '''
from kdrun.registry import register
from kdrun.tracking.tracker import Tracker


@register("tracker", "lines")
class Lines(Tracker):
    """A line for each epoch."""

    STATE = {"seen": int}

    def __init__(self, *, file: str = "lines.txt"):
        self.file, self.seen = file, 0

    def restore(self, values):
        self.seen = values["seen"]

    def state(self):
        return {"seen": self.seen}

    def epoch(self, epoch):
        self.seen += 1
        with open(self.file, "a") as out:
            print(epoch.number, self.seen, epoch.validation["accuracy"], file=out)
'''
STAGE = '''
from kdrun.errors import InputError
from kdrun.registry import register
from kdrun.runs.recording import recording


def check(config, overrides):
    if config["threshold"] > 1:
        raise InputError("threshold: a share is at most 1.")


@register("stage", "count_words", check=check, needs_tensorflow=False)
def count_words(config, run_dir, *, threshold: float = 0.5, words: list[str] = ()):
    """How many words there are."""
    with recording(run_dir, config) as record:
        record["results"] = {"count": len(words), "threshold": threshold}
        return record["results"]
'''
ALL = {
    "net.py": NET,
    "source.py": SOURCE,
    "objective.py": OBJECTIVE,
    "optimizer.py": OPTIMIZER,
    "tracker.py": TRACKER,
    "stage.py": STAGE,
}
