"""Keras 3's keras.distillation.Distiller on TensorFlow, with Adam (Keras has no AdaBelief) and fit."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import measuring
import nets


def main() -> None:
    asked = measuring.arguments()
    together = measuring.steps_per_execution(asked)
    built = [nets.build(keras, asked.net, role, asked.image_size) for role in measuring.roles(asked.phase)]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if asked.phase == "distill":
        # its default loss, a string, takes the divergence of raw logits; an object is softened as it should be
        soft = keras.distillation.LogitsDistillation(measuring.TEMPERATURE, loss=keras.losses.KLDivergence())
        model = keras.distillation.Distiller(*built, soft, student_loss_weight=1 - measuring.ALPHA)
    else:
        model = built[0]
    model.compile(
        optimizer=keras.optimizers.Adam(measuring.LEARNING_RATE),
        loss=loss,
        metrics=[keras.metrics.SparseCategoricalAccuracy()],
        steps_per_execution=together,
    )
    nets.fit(keras, model, asked, together)


main()
