"""The source notebook's way, in code of our own: both nets in one train_step, adabelief-tf per variable, fit, tf.data.

As in the notebook, the student is called without training=True when it is distilled, and the loss has no T^2.
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

from unittest import mock

import measuring
import nets
import tensorflow as tf
import tf_keras

with mock.patch.object(tf.keras.optimizers, "Optimizer", tf_keras.optimizers.legacy.Optimizer):
    from adabelief_tf import AdaBeliefOptimizer


class Distiller(tf_keras.Model):
    """Teacher and student forward in every step."""

    def __init__(self, teacher, student):
        super().__init__()
        self.teacher, self.student = teacher, student

    def train_step(self, data):
        images, labels = data
        v = self.teacher(images, training=False)
        with tf.GradientTape() as tape:
            z = self.student(images)
            student_loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, z)
            temperature = measuring.TEMPERATURE
            distillation_loss = tf_keras.losses.KLDivergence()(
                tf.nn.softmax(v / temperature), tf.nn.softmax(z / temperature)
            )
            loss = (1.0 - measuring.ALPHA) * student_loss + measuring.ALPHA * distillation_loss
        gradients = tape.gradient(loss, self.student.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.student.trainable_variables, strict=True))
        self.compiled_metrics.update_state(labels, z)
        shown = {metric.name: metric.result() for metric in self.metrics}
        return shown | {"student_loss": student_loss, "distillation_loss": distillation_loss}


def main() -> None:
    asked = measuring.arguments()
    together = measuring.steps_per_execution(asked)
    optimizer = AdaBeliefOptimizer(
        learning_rate=measuring.LEARNING_RATE, epsilon=1e-14, weight_decay=1e-5, rectify=True, print_change_log=False
    )
    built = [nets.build(tf_keras, asked.net, role, asked.image_size) for role in measuring.roles(asked.phase)]
    accuracy = tf_keras.metrics.SparseCategoricalAccuracy()
    if asked.phase == "distill":
        model = Distiller(*built)
        model.compile(optimizer=optimizer, metrics=[accuracy], steps_per_execution=together)
    else:
        model = built[0]
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=optimizer, loss=loss, metrics=[accuracy], steps_per_execution=together)
    nets.fit(tf_keras, model, asked, together)


main()
