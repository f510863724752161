"""Layers that tf_keras lacks, or has slower. Not in kdrun.models, which is looked up before TensorFlow is loaded."""

import math

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


class Moments(tf_keras.layers.Layer):
    """Mean and variance of each channel over a batch: [batch, height, width, channels] to float32 [2, channels].

    With the moments of what the features are concatenated with, `older` [2, others], those of all, [2, channels +
    others]: of what is concatenated again and again, each piece is then looked through once.
    """

    def call(self, features, older=None):
        found = _moments(features)
        return found if older is None else tf.concat([found, older], axis=1)


class BatchNormalization(tf_keras.layers.BatchNormalization):
    """Batch normalisation of [batch, height, width, channels] whose batch's moments, as of Moments, are known already.

    All but `call` is tf_keras' own, and so is the class's name, by which a file of weights knows it.
    """

    def call(self, features, moments, training=None):
        if not (training and self.trainable):
            return _normalised(features, self.moving_mean, self.moving_variance, self)
        mean, variance = tf.unstack(moments)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance * _unbiasing(features))):
            moving.assign_sub((moving - value) * (1.0 - self.momentum))
        return _normalised(features, mean, variance, self)


def _normalised(x, mean, variance, layer: BatchNormalization) -> tf.Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta by channel, of which all five have gradients.

    Those of gamma and beta are sums over the batch, from which those of mean and variance follow.
    """

    @tf.custom_gradient
    def of(x, mean, variance, gamma, beta):
        y, differentiate = _affine(x, mean, variance, gamma, beta, layer.epsilon)

        def gradient(upstream):
            of_x, of_gamma, of_beta = differentiate(upstream)
            inverse = tf.math.rsqrt(variance + layer.epsilon)
            slope = gamma * inverse
            return of_x, -of_beta * slope, -0.5 * of_gamma * slope * inverse, of_gamma, of_beta

        return y, gradient

    return of(x, *(tf.convert_to_tensor(each) for each in (mean, variance, layer.gamma, layer.beta)))


@tf.custom_gradient
def _moments(x: tf.Tensor):
    """Mean and variance of each channel, float32 [2, channels]; x is [batch, height, width, channels]."""
    folded = [_folds(x), x.shape[-1]]
    rows = tf.cast(tf.reshape(x, [-1, math.prod(folded)]), tf.float32)
    means = tf.reduce_mean(rows, axis=0)
    variances = tf.reduce_mean(tf.math.squared_difference(rows, means), axis=0)
    means = tf.reshape(means, folded)
    mean = tf.reduce_mean(means, axis=0)
    variance = tf.reduce_mean(tf.reshape(variances, folded) + tf.math.squared_difference(means, mean), axis=0)

    def gradient(upstream):
        # that of a mean of values and a mean of squared deviations: the deviations, scaled, and an offset
        of_mean, of_variance = tf.unstack(upstream / _pixels(x))
        return _affine(x, mean, tf.ones_like(mean), 2.0 * of_variance, of_mean, epsilon=0.0)[0]

    return tf.stack([mean, variance]), gradient


def _affine(x, mean, variance, scale, offset, epsilon):
    """scale * (x - mean) / sqrt(variance + epsilon) + offset by channel, for given moments; and a function from the
    gradient of that to those of x, scale and offset.

    One kernel each way, which needs channels in sixteens to use whole vector registers. So it is shown the values of
    several images as those of one with so many more channels, which are the same bytes.
    """
    folds, channels, constants = _folds(x), x.shape[-1], {"epsilon": epsilon, "is_training": False}

    def folded(x):
        return x if folds == 1 else tf.reshape(x, [x.shape[0] // folds, -1, 1, folds * channels])

    def unfolded(y):
        return y if folds == 1 else tf.reshape(y, x.shape)

    vectors = mean, variance, scale, offset
    if folds > 1:
        vectors = tf.unstack(tf.tile(vectors, [1, folds]))
    mean, variance, scale, offset = vectors
    y, *_, reserved = tf.raw_ops.FusedBatchNormV3(
        x=folded(x), scale=scale, offset=offset, mean=mean, variance=variance, **constants
    )

    def gradient(upstream):
        of_x, *sums, _, _ = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=folded(upstream),
            x=folded(x),
            scale=scale,
            reserve_space_1=mean,
            reserve_space_2=variance,
            reserve_space_3=reserved,
            **constants,
        )
        if folds > 1:
            sums = tf.unstack(tf.reduce_sum(tf.reshape(sums, [2, folds, channels]), axis=1))
        return unfolded(of_x), *sums

    return unfolded(y), gradient


def _folds(x: tf.Tensor) -> int:
    """How many images to show a kernel as one, so that it sees a multiple of 16 channels; 1 if they do not divide."""
    folds = 16 // math.gcd(x.shape[-1], 16)
    return folds if x.shape.is_fully_defined() and x.shape[0] % folds == 0 else 1


def _pixels(x: tf.Tensor):
    """Of how many values a channel's moments are: a number where the batch is known, else a float32 scalar."""
    known = x.shape[:-1].num_elements()
    return float(known) if known else tf.cast(tf.size(x) // x.shape[-1], tf.float32)


def _unbiasing(x: tf.Tensor):
    """n / (n - 1) for n = _pixels(x), which makes a variance that of what the batch was drawn from; 1 of one pixel."""
    count = _pixels(x)
    return count / (max(count - 1.0, 1.0) if isinstance(count, float) else tf.maximum(count - 1.0, 1.0))


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
