"""Objectives on features: what layers of student and teacher make of the same images.

`layers` names them: block3, or student_layer:teacher_layer where the names differ. Features are maps [batch, height,
width, channels] or vectors [batch, units], computed in float32; contributions of several layers are added up. Where
spatial sizes differ, the larger map is brought to the smaller (see batch.pairs); r is a learned 1x1 convolution or
dense layer with bias from the student's channels to the teacher's, where these differ.
"""

from __future__ import annotations

import math

from kdrun.config.rules import Count, Layers, Positive, Rate
from kdrun.errors import InputError
from kdrun.objectives.batch import Batch, Pair, pairs
from kdrun.registry import register
from kdrun.runtime.lazy import tf

_POOLED = (4, 2, 1)  # review: sizes to which larger maps are pooled
_MOST_CHANNELS = 512  # review: in the middle
_LEAST_VARIANCE, _FIRST_VARIANCE = 1e-5, 5.0  # variational


@register("objective", "fitnet", compares="one_kind")
def fitnet(batch: Batch, *, layers: Layers) -> tf.Tensor:
    """Mean of (r(F_s) - F_t)^2; float32 scalar.

    Hints (FitNets, arXiv 1412.6550, section 2.2). The code that the weight of 100 is from (RepDistiller) always has a
    regressor, which is a convolution, batch normalisation and ReLU.
    """
    return sum(_mean_square(_projected(batch, pair) - pair.teacher) for pair in pairs(batch, layers))


@register("objective", "attention", compares="maps")
def attention(batch: Batch, *, layers: Layers) -> tf.Tensor:
    """Mean of (a(F_s) - a(F_t))^2; float32 scalar.

    Attention transfer (arXiv 1612.03928): a(F) is the mean over channels of F^2 as a vector of length 1 for each image.
    """

    def attended(maps):
        return tf.math.l2_normalize(_flat(tf.reduce_mean(maps**2, axis=-1)), axis=1, epsilon=1e-30)

    return sum(
        _mean_square(attended(pair.student) - attended(pair.teacher)) for pair in pairs(batch, layers, maps="attention")
    )


@register("objective", "variational", compares="one_kind")
def variational(batch: Batch, *, layers: Layers) -> tf.Tensor:
    """Mean of ((m(F_s) - F_t)^2 / s + log s) / 2; float32 scalar.

    Variational information distillation (arXiv 1904.05835, section 2). As its authors' code has them: m is three
    learned 1x1 convolutions (dense layers for vectors) without bias, ReLU between them, all with as many channels as
    the teacher; s is a learned variance for each of these.
    """
    total = 0.0
    for pair in pairs(batch, layers):
        mean, channels = pair.student, pair.teacher.shape[-1]
        for number in (1, 2, 3):
            mean = tf.nn.relu(mean) if number > 1 else mean
            mean = _layer(batch, pair)(f"{pair.name}/regressor{number}", mean, channels, bias=False)
        first = math.log(math.expm1(_FIRST_VARIANCE - _LEAST_VARIANCE))  # softplus of it is the first variance
        rho = batch.learned.variable(f"{pair.name}/variance", [channels], first, first)
        variance = tf.nn.softplus(rho) + _LEAST_VARIANCE
        total += tf.reduce_mean((mean - pair.teacher) ** 2 / variance + tf.math.log(variance)) / 2
    return total


@register("objective", "contrastive", needs_labels=True)
def contrastive(
    batch: Batch,
    *,
    layers: Layers,
    dimensions: Count,
    negatives: Count,
    contrastive_temperature: Positive,
    momentum: Rate,
) -> tf.Tensor:
    """Tell the teacher's feature of the same image from those of others, and the other way round; float32 scalar.

    Contrastive representation distillation (arXiv 1910.10699, section 3.2), by noise-contrastive estimation against a
    memory of all training images' features, as its authors' code does it, but for `negatives` that a batch shares: an
    image leaves out those of its own class, and the others' sum counts for as many as were drawn.
    """
    total = 0.0
    size = batch.training_size
    count = min(negatives, size)
    drawn = tf.random.stateless_uniform([count], batch.random_seed, maxval=size, dtype=tf.int32)
    other_class = batch.labels[:, tf.newaxis] != tf.gather(batch.training_labels, drawn)
    shares = tf.cast(other_class, tf.float32)
    shares *= tf.math.divide_no_nan(float(count), tf.reduce_sum(shares, axis=1, keepdims=True))
    log_shares = tf.math.log(tf.concat([tf.ones_like(shares[:, :1]), shares], axis=1))
    for pair in pairs(batch, layers, resized=False):
        sides = {"student": pair.student, "teacher": pair.teacher}
        embedded = {
            side: tf.math.l2_normalize(batch.learned.dense(f"{pair.name}/{side}", _flat(features), dimensions), axis=1)
            for side, features in sides.items()
        }
        reach = 1 / math.sqrt(dimensions / 3)
        memories = {
            side: batch.learned.variable(
                f"{pair.name}/{side}_memory", [size, dimensions], -reach, reach, trainable=False
            )
            for side in sides
        }
        for side, other in (("student", "teacher"), ("teacher", "student")):
            anchors, memory = embedded[side] / contrastive_temperature, memories[other]
            # all in logarithms: scores of small contrastive temperatures are beyond float32
            same = tf.reduce_sum(anchors * tf.gather(memory, batch.indices), axis=1)
            others = tf.matmul(anchors, tf.gather(memory, drawn), transpose_b=True)
            constant = batch.learned.variable(f"{pair.name}/{side}_log_constant", [], 0.0, 0.0, trainable=False)
            # set by the first batch: it makes the scores about as large as probabilities among the training images
            everything = tf.stop_gradient(tf.concat([same[:, tf.newaxis], others], axis=1))
            mean = tf.reduce_logsumexp(everything + log_shares) - tf.reduce_logsumexp(log_shares)
            constant.assign(tf.where(constant != 0.0, constant, mean + math.log(size)))
            log_noise = constant + math.log(count / size)
            # an image of the data or of the noise, s / (s + noise) the probability of the first for a score s
            total += tf.reduce_mean(tf.nn.softplus(log_noise - same))
            total += tf.reduce_mean(tf.reduce_sum(shares * tf.nn.softplus(others - log_noise), axis=1))
        for side, memory in memories.items():
            now = momentum * tf.gather(memory, batch.indices) + (1 - momentum) * embedded[side]
            memory.scatter_nd_update(batch.indices[:, tf.newaxis], tf.stop_gradient(tf.math.l2_normalize(now, axis=1)))
    return total


@register("objective", "review", compares="maps")
def review(batch: Batch, *, layers: Layers) -> tf.Tensor:
    """The student's deeper layers, merged with the shallower ones, against the teacher's; float32 scalar.

    Knowledge review (arXiv 2104.09044), as its authors' code has it: beginning with the last layer's means over its
    pixels (the embedding of a network that pools), then from the last layer to the first, features go through a learned
    1x1 convolution and are merged with what comes from deeper, by two learned attention maps (ABF); a learned 3x3
    convolution at the teacher's size gives its channels, compared at several sizes (HCL, see `hcl`). After both
    convolutions there is batch normalisation.
    """
    chosen = list(pairs(batch, layers, maps="review", resized=False))
    last = chosen[-1]
    means = [tf.reduce_mean(maps, axis=[1, 2], keepdims=True) for maps in (last.student, last.teacher)]
    chosen.append(Pair(f"{last.name}/pooled", *means))
    middle = min(_MOST_CHANNELS, last.student.shape[-1])

    def convolved(name, maps, filters, size):
        return batch.learned.batch_norm(name, batch.learned.convolution(name, maps, filters, size, bias=False))

    deeper, total = None, 0.0
    for pair in reversed(chosen):
        own = convolved(f"{pair.name}/review", pair.student, middle, 1)
        if deeper is not None:
            deeper = _nearest(deeper, *own.shape[1:3])
            both = tf.concat([own, deeper], axis=-1)
            attention = tf.nn.sigmoid(batch.learned.convolution(f"{pair.name}/review_attention", both, 2))
            own = own * attention[..., :1] + deeper * attention[..., 1:]
        deeper = _nearest(own, *pair.teacher.shape[1:3])
        output = convolved(f"{pair.name}/review_output", deeper, pair.teacher.shape[-1], 3)
        total += hcl(output, pair.teacher)
    return total


def hcl(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Mean squared differences of maps [batch, height, width, channels] and of pooled ones, weighted; float32 scalar.

    Hierarchical context loss (arXiv 2104.09044, section 3.4).
    """
    height, width = student.shape[1:3]
    total, weights, weight = _mean_square(student - teacher), 1.0, 1.0
    for size in _POOLED:
        if size < height:
            weight /= 2  # of what the larger size has, as in the authors' code
            pooled = [_pooled(maps, size, min(size, width)) for maps in (student, teacher)]
            total += weight * _mean_square(pooled[0] - pooled[1])
            weights += weight
    return total / weights


@register("objective", "simkd")
def simkd(batch: Batch, *, layers: Layers) -> tf.Tensor:
    """Mean of (F_s - F_t)^2; float32 scalar.

    SimKD (arXiv 2203.14001): the student has a learned projection of its own, which this compares with the teacher's
    last features, and after it the teacher's classifier: see student.classifier.
    """
    total = 0.0
    for pair in pairs(batch, layers, resized=False):
        if pair.student.shape[1:] != pair.teacher.shape[1:]:
            raise InputError(
                f"simkd: layer {pair.name} is {list(pair.student.shape[1:])} in the student and "
                f"{list(pair.teacher.shape[1:])} in the teacher; they must be alike. Set student.classifier=teacher."
            )
        total += _mean_square(pair.student - pair.teacher)
    return total


def _projected(batch: Batch, pair: Pair) -> tf.Tensor:
    """r(F_s): the student's features with the teacher's number of channels."""
    channels = pair.teacher.shape[-1]
    if pair.student.shape[-1] == channels:
        return pair.student
    return _layer(batch, pair)(f"{pair.name}/projection", pair.student, channels)


def _layer(batch: Batch, pair: Pair):
    """What makes a learned layer of such features: dense for vectors, a 1x1 convolution for maps."""
    return batch.learned.dense if pair.student.shape.rank == 2 else batch.learned.convolution


def _pooled(maps: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """Adaptive average pooling: the means of rows x columns cells, which overlap where they do not divide evenly."""
    for axis, cells in ((1, rows), (2, columns)):
        length = maps.shape[axis]
        edges = [(cell * length // cells, -(-(cell + 1) * length // cells)) for cell in range(cells)]
        means = [tf.reduce_mean(tf.gather(maps, tf.range(*edge), axis=axis), axis=axis) for edge in edges]
        maps = tf.stack(means, axis=axis)
    return maps


def _nearest(maps: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """Maps of another size: of each cell the pixel at its upper left corner, rounded down, as PyTorch has it."""
    for axis, cells in ((1, rows), (2, columns)):
        if maps.shape[axis] != cells:
            maps = tf.gather(maps, [cell * maps.shape[axis] // cells for cell in range(cells)], axis=axis)
    return maps


def _flat(features: tf.Tensor) -> tf.Tensor:
    return tf.reshape(features, [-1, math.prod(features.shape[1:])])


def _mean_square(difference: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(difference**2)
