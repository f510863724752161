"""What both Keras ways share, tf_keras or Keras 3 as `keras`: nets, the notebook's tf.data pipeline, and `fit`."""

import measuring
import tensorflow as tf


def build(keras, net: str, role: str, image_size: int):
    """The network of a role: float32 images [batch, image_size, image_size, 1] to logits [batch, 10]."""
    inputs = keras.Input((image_size, image_size, 1))
    if net == "densenet":
        return keras.Model(inputs, densenet(keras.layers, inputs, measuring.GROWTH[role]))
    return keras.Model(inputs, mlp(keras.layers, inputs, measuring.UNITS[role]))


def fit(keras, model, asked, together: int) -> None:
    """Train with the clock running, `together` steps an execution, and print what it says."""
    clock = measuring.Clock(asked.batch_size)

    class Noting(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            clock.finished(together)

    data = pipeline(asked.image_size, asked.batch_size)
    model.fit(data, steps_per_epoch=asked.steps, epochs=1, verbose=0, callbacks=[Noting()])
    clock.report()


def pipeline(image_size: int, batch_size: int) -> tf.data.Dataset:
    """The notebook's."""

    def prepare(images, labels):
        images = tf.image.convert_image_dtype(tf.expand_dims(images, axis=-1), tf.float32)
        return tf.image.resize(images, [image_size, image_size]), tf.cast(labels, tf.int32)

    data = tf.data.Dataset.from_tensor_slices(measuring.training_images())
    data = data.cache().repeat().shuffle(20_000, reshuffle_each_iteration=True).batch(batch_size)
    return data.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def densenet(layers, x, growth_rate: int):
    """The source notebook's DenseNet-121-like network."""

    def convolved(x, filters, kernel):
        x = layers.BatchNormalization()(x)
        x = layers.ReLU(max_value=6)(x)
        return layers.Conv2D(filters, kernel, padding="same")(x)

    x = layers.Conv2D(2 * growth_rate, 7, strides=2, padding="same")(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    for block, pairs in enumerate((6, 12, 24, 16)):
        for _ in range(pairs):
            new = convolved(convolved(x, 4 * growth_rate, 1), growth_rate, 3)
            x = layers.Concatenate()([new, x])
        if block < 3:
            x = layers.BatchNormalization()(x)
            x = layers.Conv2D(x.shape[-1] // 2, 1, padding="same")(x)
            x = layers.AveragePooling2D(2, strides=2)(x)
    return layers.Dense(10)(layers.GlobalAveragePooling2D()(x))


def mlp(layers, x, units: tuple[int, ...]):
    """ReLU layers on flat images."""
    x = layers.Flatten()(x)
    for width in units:
        x = layers.Dense(width, activation="relu")(x)
    return layers.Dense(10)(x)
