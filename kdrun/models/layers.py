"""Layers that tf_keras lacks, or has slower. Not in kdrun.models, which is looked up before TensorFlow is loaded."""

import tensorflow as tf
import tf_keras


def leaky_relu(x: tf.Tensor, slope: float) -> tf.Tensor:
    """x where it is positive, else slope * x; of any shape and floating type.

    By the kernels that TensorFlow has for it and for its gradient: one operation each way, where tf.maximum(x,
    slope * x) takes two and three. tf.nn.leaky_relu has them, too, but a graph optimizer stumbles over its gradient,
    loudly.
    """

    @tf.custom_gradient
    def of(x):
        def gradient(upstream):
            return tf.raw_ops.LeakyReluGrad(gradients=upstream, features=x, alpha=slope)

        return tf.raw_ops.LeakyRelu(features=x, alpha=slope), gradient

    return of(x)


class Pointwise(tf_keras.layers.Layer):
    """A convolution of kernel size 1 with bias: [batch, height, width, channels] to [batch, height, width, filters].

    In float32 as a matrix product, which takes a tenth off a narrow network's whole training step; in half precision,
    where it would add as much, as a convolution.
    """

    def __init__(self, filters: int, **keys):
        super().__init__(**keys)
        self.filters = filters

    def build(self, shape):
        # the shape of a convolution's, so that both start from the same values
        self.kernel = self.add_weight("kernel", [1, 1, shape[-1], self.filters], initializer="glorot_uniform")
        self.bias = self.add_weight("bias", [self.filters], initializer="zeros")

    def call(self, images):
        if self.compute_dtype != "float32":
            return tf.nn.bias_add(tf.nn.conv2d(images, self.kernel, 1, "SAME"), self.bias)
        _, height, width, channels = images.shape
        pixels = tf.reshape(images, [-1, channels])
        products = tf.matmul(pixels, tf.reshape(self.kernel, [channels, self.filters]))
        return tf.reshape(tf.nn.bias_add(products, self.bias), [-1, height, width, self.filters])
