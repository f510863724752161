"""A run's network with all that is done to pixels before it, and what is made of its logits, in one graph."""

from typing import Any, NamedTuple

import tensorflow as tf

from kdrun.data.preparation import Preparation
from kdrun.models.preprocessing import prepare

OUTPUTS = ("probabilities", "logits")
INPUT = "image"


class Whole(NamedTuple):
    """The network, a tf_keras.Model from prepared images to logits; how images are prepared; `output`, one of OUTPUTS;
    and the shape of an image, height, width, channels."""

    model: Any
    preparation: Preparation
    output: str
    shape: tuple[int, int, int]

    def module(self) -> tf.Module:
        """What has the network's variables, for who saves them: Keras would write all of its layers beside, too."""
        found = tf.Module()
        found.held = self.model.variables
        return found

    def graph(self, batch: int | None, pixels: tf.DType = tf.uint8, any_size: bool = False):
        """A tf.function from pixels 0 to 255, of that type, [batch, height, width, channels], None: any number, to its
        output, float32 [batch, classes]."""
        height, width = (None, None) if any_size else self.shape[:2]
        spec = tf.TensorSpec([batch, height, width, self.shape[2]], pixels, name=INPUT)

        def call(image):
            if pixels.is_floating:  # uint8 becomes so, too, by the same multiplication
                image = image * (1.0 / 255.0)
            logits = self.model(prepare(image, self.preparation), training=False)
            return {self.output: tf.nn.softmax(logits) if self.output == "probabilities" else logits}

        return tf.function(call, input_signature=[spec])
