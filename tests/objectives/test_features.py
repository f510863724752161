"""Distillation on features, against float64 NumPy written from the papers' formulas.

A reference takes one layer's features of student and teacher and the trained weights, by the kinds of `_weights`.
"""

import functools
import itertools
import math

import numpy as np
import pytest

from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.errors import InputError  # noqa: E402
from kdrun.objectives import features, relations  # noqa: E402
from kdrun.objectives.batch import Batch  # noqa: E402
from kdrun.objectives.learned import Learned  # noqa: E402

SCALES = [0.1, 3.0, 50.0]
TRAINING_SIZE = 7
TRAINING_LABELS = np.array([0, 1, 2, 1, 0, 2, 1], np.int32)
INDICES = [5, 0, 3, 6]  # a batch of four, of classes 2, 0, 1 and 1

CONTRASTIVE = {"dimensions": 5, "negatives": 6, "contrastive_temperature": 0.5, "momentum": 0.75}
OBJECTIVES = {
    "fitnet": (features.fitnet, {}),
    "attention": (features.attention, {}),
    "variational": (features.variational, {}),
    "review": (features.review, {}),
    "simkd": (features.simkd, {}),
    "contrastive": (features.contrastive, CONTRASTIVE),
    "similarity": (relations.similarity, {}),
    "relational": (relations.relational, {"distance_weight": 25.0, "angle_weight": 50.0}),
    "correlation": (relations.correlation, {"gamma": 0.4, "order": 2}),
}
RELATIONS = ["similarity", "relational", "correlation"]
NEED_MAPS = ["attention", "review"]
WITH_WEIGHTS = ["fitnet", "variational", "review", "contrastive"]

# per image, the shapes of the student's and the teacher's layers
LAYOUTS = {
    "vectors": ([(6,)], [(6,)]),
    "other vectors": ([(6,)], [(3,)]),
    "maps": ([(4, 4, 2)], [(4, 4, 2)]),
    "other maps": ([(4, 4, 2)], [(4, 4, 3)]),
    "larger student": ([(6, 5, 2)], [(3, 4, 2)]),  # whole times as high, and not as wide
    "larger teacher": ([(3, 4, 3)], [(6, 8, 2)]),
    "higher teacher": ([(2, 6, 2)], [(4, 3, 3)]),
    "layers": ([(4, 4, 2), (6,), (3,)], [(4, 4, 3), (6,), (5,)]),
    "layers of maps": ([(4, 4, 2), (2, 2, 3)], [(4, 4, 3), (2, 2, 3)]),
}
SAME = ["vectors", "maps"]
MAPS = ["maps", "other maps", "larger student", "larger teacher", "higher teacher", "layers of maps"]
SOME = ["vectors", "other vectors", "layers of maps"]


def _cases(names, layouts=tuple(LAYOUTS)):
    """A parameter per objective and layout that it takes."""
    taken = {name: MAPS if name in NEED_MAPS else SAME if name == "simkd" else LAYOUTS for name in OBJECTIVES}
    cases = [(name, layout) for name in names for layout in layouts if layout in taken[name]]
    return pytest.mark.parametrize(("name", "layout"), cases)


def _features(layout, scale=1.0, batch=4):
    rng = np.random.default_rng(0)
    sides = LAYOUTS[layout]
    return [[(scale * rng.normal(size=(batch, *shape))).astype(np.float32) for shape in side] for side in sides]


def _loss(name, students, teachers, learned=None, keys=(), layers=None, indices=INDICES, random_seed=(1, 2)):
    """The first layer has one name on both sides, the others have two."""
    function, usual = OBJECTIVES[name]
    batch = Batch(
        logits=tf.zeros([len(indices), 2]),
        labels=tf.constant(TRAINING_LABELS[indices]),
        features={f"block{i}": tf.convert_to_tensor(x) for i, x in enumerate(students)},
        teacher_features={f"stage{i}" if i else "block0": tf.convert_to_tensor(x) for i, x in enumerate(teachers)},
        learned=learned or Learned(0),
        indices=tf.constant(indices, tf.int32),
        training_size=TRAINING_SIZE,
        training_labels=tf.constant(TRAINING_LABELS),
        random_seed=tf.constant(random_seed, tf.int32),
    )
    layers = layers or [f"block{i}:stage{i}" if i else "block0" for i in range(len(students))]
    return function(batch, layers=layers, **{**usual, **dict(keys)})


def _gradients(name, students, teachers, learned, **others):
    """The loss, and its gradients for the student's features, the trained weights and the teacher's features."""
    students, teachers = ([tf.convert_to_tensor(x) for x in side] for side in (students, teachers))
    with tf.GradientTape() as tape:
        tape.watch([students, teachers])
        loss = _loss(name, students, teachers, learned, **others)
    return loss, *tape.gradient(loss, (students, learned.trainable_variables, teachers))


def _prepared(name, students, teachers):
    """Learned weights that are nowhere special: biases are not zero and variances are not alike."""
    learned = Learned(0)
    _loss(name, students, teachers, learned)
    rng = np.random.default_rng(1)
    for variable in learned.trainable_variables:
        variable.assign_add(0.3 * rng.normal(size=variable.shape).astype(np.float32))
    return learned


def _weights(learned, values):
    """The trainable variables' values as iterators over layers: kernels as matrices, biases, and the rest."""
    kinds = {"kernel": [], "bias": [], "rest": []}
    for variable, value in zip(learned.trainable_variables, values, strict=True):
        kind = next((kind for kind in ("kernel", "bias") if kind in variable.name), "rest")
        kinds[kind].append(value.reshape(value.shape[-2:]) if kind == "kernel" else value)
    return {kind: iter(found) for kind, found in kinds.items()}


@functools.cache
def _resizing(height, width, new_height, new_width):
    """tf.image.resize as a matrix: it is linear, and a matrix goes through float64."""
    basis = np.eye(height * width, dtype=np.float32).reshape(-1, height, width, 1)
    resized = tf.image.resize(basis, [new_height, new_width], method="bilinear", antialias=True)
    return resized.numpy().reshape(height * width, -1).astype(np.float64)


def _resized(s, t):
    """The larger of two maps at the smaller one's size: means where that is a whole factor (the authors' code)."""
    size = tuple(min(lengths) for lengths in zip(s.shape[1:-1], t.shape[1:-1], strict=True))
    for x in (s, t):
        lengths = x.shape[1:-1]
        if all(length % new == 0 for length, new in zip(lengths, size, strict=True)):
            yield _adaptive_mean(x, size) if size else x
        else:
            pixels = x.reshape(len(x), -1, x.shape[-1])
            resized = np.einsum("bpc,pq->bqc", pixels, _resizing(*lengths, *size))
            yield resized.reshape(len(x), *size, -1)


def _adaptive_mean(x, size):
    """adaptive_avg_pool2d: cell i of n is the mean from floor(i length / n) to ceil((i + 1) length / n)."""
    (height, width), (rows, columns) = x.shape[1:-1], size
    result = np.empty((len(x), rows, columns, x.shape[-1]))
    for i, j in np.ndindex(rows, columns):
        rows_of = slice(i * height // rows, math.ceil((i + 1) * height / rows))
        columns_of = slice(j * width // columns, math.ceil((j + 1) * width / columns))
        result[:, i, j] = x[:, rows_of, columns_of].mean(axis=(1, 2))
    return result


def _flat(x):
    return x.reshape(len(x), -1)


def _unit(x):
    """Rows of L2 norm one; zeros stay zeros."""
    norms = np.sqrt(np.sum(x**2, axis=-1, keepdims=True))
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def _fitnet(s, t, weights):  # mean (r(F_s) - F_t)^2
    s, t = _resized(s, t)
    if s.shape[-1] != t.shape[-1]:
        s = s @ next(weights["kernel"]) + next(weights["bias"])
    return np.mean((s - t) ** 2)


def _attention(s, t, weights):  # a(F) = mean_c F^2 / |mean_c F^2|; mean (a(F_s) - a(F_t))^2
    s, t = (_unit(_flat(np.mean(x**2, axis=-1))) for x in _resized(s, t))
    return np.mean((s - t) ** 2)


def _variational(s, t, weights):  # mean of 1/2 [(m(F_s) - F_t)^2 / sigma^2 + log sigma^2], m = W3 relu(W2 relu(W1 F_s))
    s, t = _resized(s, t)
    first, second, third = (next(weights["kernel"]) for _ in range(3))
    assert first.shape == (s.shape[-1], t.shape[-1]) and second.shape == third.shape == (t.shape[-1],) * 2
    s = np.maximum(np.maximum(s @ first, 0) @ second, 0) @ third
    variance = np.log1p(np.exp(next(weights["rest"]))) + 1e-5
    return np.mean(((s - t) ** 2 / variance + np.log(variance)) / 2)


def _simkd(s, t, weights):  # mean (F_s - F_t)^2
    return np.mean((s - t) ** 2)


def _similarity(s, t, weights):  # |rows(F_t F_t^T) - rows(F_s F_s^T)|_F^2 / B^2
    s, t = (_unit(_flat(x) @ _flat(x).T) for x in (s, t))
    return np.sum((t - s) ** 2) / len(s) ** 2


def _huber(d):
    return np.where(np.abs(d) <= 1, d**2 / 2, np.abs(d) - 1 / 2)


def _relational(s, t, weights, distance_weight=25.0, angle_weight=50.0):
    distances, angles = [], []
    for x in (_flat(s), _flat(t)):
        b = len(x)
        e = x[None, :, :] - x[:, None, :]  # e_ij = f_j - f_i
        d = np.sqrt(np.sum(e**2, axis=-1))
        mean = d.sum() / (b * (b - 1))  # over pairs of two, also if they are alike
        distances.append(d / mean if mean > 0 else d)
        e = _unit(e)
        angles.append(np.einsum("ijd,ikd->ijk", e, e))
    d, a = (_huber(ours - theirs).mean() for ours, theirs in (distances, angles))
    return distance_weight * d + angle_weight * a


def _correlation(s, t, weights, gamma=0.4, order=2):  # K = sum_p exp(-2 gamma) (2 gamma)^p / p! (f f^T)^p
    kernels = []
    for x in (_unit(_flat(s)), _unit(_flat(t))):
        terms = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * (x @ x.T) ** p for p in range(order + 1)]
        kernels.append(sum(terms))
    return np.mean((kernels[0] - kernels[1]) ** 2)


FUNCTIONS = (_fitnet, _attention, _variational, _simkd, _similarity, _relational, _correlation)
REFERENCES = {function.__name__[1:]: function for function in FUNCTIONS}


def _doubles(arrays):
    return [np.array(tf.cast(x, tf.float64)) for x in arrays]


def _slope(function, x, step):
    """Of function(), whose argument x is changed in place, by central differences."""
    slopes = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        old = x[place]
        x[place] = old + step
        above = function()
        x[place] = old - step
        slopes[place] = (above - function()) / (2 * step)
        x[place] = old
    return slopes


def _assert_slope(result, function, x, step):
    expected = _slope(function, x, step)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=5e-5 * np.abs(expected).max() + 1e-12)


@pytest.mark.parametrize("scale", SCALES)
@_cases(REFERENCES)
def test_value_and_gradients(name, layout, scale):
    students, teachers = _features(layout, scale)
    learned = _prepared(name, students, teachers)
    loss, gradients, weight_gradients, teacher_gradients = _gradients(name, students, teachers, learned)
    students, teachers, values = _doubles(students), _doubles(teachers), _doubles(learned.trainable_variables)

    def reference():
        weights = _weights(learned, values)
        total = sum(REFERENCES[name](s, t, weights) for s, t in zip(students, teachers, strict=True))
        assert all(next(left, None) is None for left in weights.values())  # there are no others
        return total

    assert loss.dtype == tf.float32
    assert loss.shape == ()
    np.testing.assert_allclose(loss.numpy(), reference(), rtol=2e-5)
    for x, gradient in zip(students, gradients, strict=True):
        _assert_slope(gradient, reference, x, 1e-5 * scale)
    for x, gradient in zip(values, weight_gradients, strict=True):
        assert np.any(gradient != 0)
        _assert_slope(gradient, reference, x, 1e-5)
    assert all(gradient is None or not np.any(gradient) for gradient in teacher_gradients)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@_cases(OBJECTIVES, ["maps", "other vectors", "larger student"])
def test_short_floats_are_computed_in_float32(name, layout, dtype):
    # squares of the larger ones are no numbers in float16
    for scale in (1.0, 2e4):
        short = [[tf.cast(np.clip(x, -6e4, 6e4), dtype) for x in side] for side in _features(layout, scale)]
        result = _loss(name, *short)
        assert result.dtype == tf.float32
        expected = _loss(name, *([tf.cast(x, tf.float32) for x in side] for side in short))
        assert np.isfinite(expected)
        assert result.numpy() == pytest.approx(expected.numpy(), rel=1e-6)
        mixed = _loss(name, short[0], [tf.cast(x, tf.float32) for x in short[1]])
        assert mixed.numpy() == pytest.approx(expected.numpy(), rel=1e-6)


@pytest.mark.parametrize("what", ["usual", "extreme", "no student", "no teacher", "zeros", "identical rows"])
@_cases(OBJECTIVES, SOME)
def test_nothing_is_ever_no_number_and_the_teacher_gets_no_gradient(name, layout, what):
    students, teachers = _features(layout, 1e4 if what == "extreme" else 1.0)
    if what in ("no student", "zeros"):
        students = [np.zeros_like(x) for x in students]
    if what in ("no teacher", "zeros"):
        teachers = [np.zeros_like(x) for x in teachers]
    if what == "identical rows":
        students, teachers = ([np.repeat(x[:1], len(x), axis=0) for x in side] for side in (students, teachers))
    learned = Learned(0)
    for _ in range(2 if name == "contrastive" else 1):  # which is another one at its second step
        loss, gradients, weight_gradients, teacher_gradients = _gradients(name, students, teachers, learned)
        assert np.isfinite(loss)
        assert all(np.all(np.isfinite(gradient)) for gradient in [*gradients, *weight_gradients])
        assert what != "usual" or all(np.any(gradient != 0) for gradient in [*gradients, *weight_gradients])
        assert all(gradient is None or not np.any(gradient) for gradient in teacher_gradients)


@pytest.mark.parametrize("scale", SCALES)
@_cases(["fitnet", "attention", "simkd", *RELATIONS], SAME)
def test_a_network_costs_itself_nothing(name, layout, scale):
    students, _ = _features(layout, scale)
    loss, (gradient,), _, _ = _gradients(name, students, students, Learned(0))
    assert loss.numpy() == 0
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@_cases(OBJECTIVES, SOME)
def test_the_order_of_the_batch_is_nothing(name, layout):
    students, teachers = _features(layout)
    expected = _gradients(name, students, teachers, Learned(0))
    order = np.array([2, 0, 3, 1])
    students, teachers = ([x[order] for x in side] for side in (students, teachers))
    result = _gradients(name, students, teachers, Learned(0), indices=np.array(INDICES)[order])
    assert result[0].numpy() == pytest.approx(expected[0].numpy(), rel=1e-5)
    for ours, theirs in zip(result[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs.numpy()[order], rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@_cases(OBJECTIVES, SOME)
def test_steps_compile_for_batches_of_any_size(name, layout):
    students, teachers = _features(layout)
    first, second = Learned(0), Learned(0)
    for learned in (first, second):
        _loss(name, students, teachers, learned)
    signature = [[tf.TensorSpec([None, *x.shape[1:]]) for x in side] for side in (students, teachers)]
    compiled = tf.function(lambda s, t: _loss(name, s, t, second), input_signature=signature)
    expected = [_loss(name, students, teachers, first).numpy() for _ in range(2)]
    assert [compiled(students, teachers).numpy() for _ in range(2)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_initial_gives_what_the_weights_began_with(name):
    students, teachers = _features("other maps")
    learned, other = Learned(3), Learned(4)
    for one in (learned, other):
        _loss(name, students, teachers, one)
    began = [v.numpy() for v in learned.variables]
    _, _, gradients, _ = _gradients(name, students, teachers, learned)
    for variable, gradient in zip(learned.trainable_variables, gradients, strict=True):
        variable.assign_sub(0.1 * gradient)
    for i, variable in enumerate(other.variables):
        if variable.trainable:  # the others have been changed by the first step
            np.testing.assert_array_equal(learned.initial(3)[i], began[i])
            np.testing.assert_array_equal(learned.initial(4)[i], variable)
            assert "kernel" not in variable.name or np.all(began[i] != variable)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_unknown_layer_is_named_beside_those_there_are(name):
    students, _ = _features("layers of maps")
    for layer in ("blok", "blok:stage1"):
        with pytest.raises(InputError, match=r"(?s)blok\b.*block0.*block1"):
            _loss(name, students, students, layers=[layer])
    with pytest.raises(InputError, match=r"(?s)stge.*block0.*stage1"):
        _loss(name, students, students, layers=["block0", "block1:stge"])


@pytest.mark.parametrize("name", ["attention", "review", "simkd"])
def test_features_that_cannot_be_compared_are_refused(name):
    for layout in ["other vectors"] if name in NEED_MAPS else ["other vectors", "other maps"]:
        with pytest.raises(InputError, match="block0"):
            _loss(name, *_features(layout))


# --- single objectives ------------------------------------------------------------------------------------------------


def test_attention_and_relations_by_hand():
    # all of the student's attention is at one pixel, all of the teacher's at the other: (1 + 1) / 2 pixels
    s, t = np.float32([[[[3, 4], [0, 0]]]]), np.float32([[[[0, 0], [0, 7]]]])
    assert _loss("attention", [s], [t]).numpy() == pytest.approx(1, rel=1e-6)
    # rows of G_s: (1, 0), (0, 1); of G_t: (1, 1) / sqrt 2, twice
    s, t = np.eye(2, dtype=np.float32), np.float32([[1, 0], [1, 0]])
    expected = 2 * ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 4
    assert _loss("similarity", [s], [t]).numpy() == pytest.approx(expected, rel=1e-6)
    # triangles: of sides 3, 4, 5, that is 3/4, 1, 5/4 of their mean, with cosines 0, 3/5, 4/5; and equilateral
    s, t = np.float32([[0, 0], [3, 0], [0, 4]]), np.float32([[0, 0], [2, 0], [1, math.sqrt(3)]])
    distance, angle = 2 * 2 * 0.25**2 / 2 / 9, 2 * (0.5**2 + 0.1**2 + 0.3**2) / 2 / 27
    for weights in ((1, 0), (0, 1), (25, 50)):
        keys = dict(zip(("distance_weight", "angle_weight"), weights, strict=True))
        expected = weights[0] * distance + weights[1] * angle
        assert _loss("relational", [s], [t], keys=keys).numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layout", SAME)
def test_variational_begins_at_a_variance_of_five_and_ends_at_its_logarithm(layout):
    (s,), (t,) = _features(layout)
    t = np.abs(t)  # as after a ReLU
    learned = Learned(0)
    _loss("variational", [s], [t], learned)
    kernels = [variable for variable in learned.variables if "kernel" in variable.name]
    (rho,) = [variable for variable in learned.variables if "kernel" not in variable.name]  # there is no bias
    assert rho.shape == t.shape[-1:] and len(kernels) == 3
    np.testing.assert_allclose(np.log1p(np.exp(rho.numpy().astype(np.float64))) + 1e-5, 5, rtol=1e-6)
    for kernel in kernels:
        kernel.assign(tf.zeros_like(kernel))
    by_hand = 0.5 * (2.0**2 / 5 + math.log(5))
    assert _loss("variational", [s], [np.full_like(t, 2)], learned).numpy() == pytest.approx(by_hand, rel=1e-6)
    for kernel in kernels:
        kernel.assign(tf.reshape(tf.eye(t.shape[-1]), kernel.shape))
    rho.assign(tf.linspace(-3.0, 3.0, t.shape[-1]))
    loss, (gradient,), _, _ = _gradients("variational", [t], [t], learned)
    lowest = 0.5 * np.mean(np.log(np.log1p(np.exp(rho.numpy())) + 1e-5))
    assert loss.numpy() == pytest.approx(lowest, rel=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_relational_of_one_image_is_nothing():
    one = np.ones((1, 3), np.float32)
    loss, (gradient,), _, _ = _gradients("relational", [one], [2 * one], Learned(0), indices=[0])
    assert loss.numpy() == 0
    assert not np.any(gradient)


def test_relational_of_rows_far_apart_and_of_almost_identical_ones():
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(2, 5, 3)).astype(np.float32)
    s[0] += 100  # its distances are 2.5 times the mean and all others are near zero
    for keys in ({"distance_weight": 1.0, "angle_weight": 0.0}, {"distance_weight": 0.0, "angle_weight": 1.0}):
        expected = _relational(*_doubles([s, t]), None, **keys)
        assert _loss("relational", [s], [t], keys=keys).numpy() == pytest.approx(expected, rel=1e-5)
    # on a line every cosine is one or minus one; and some rows are alike, or all but alike
    identical = s[[0, 0, 2, 3, 4]], t[[0, 1, 2, 3, 3]]
    near = t, t[[0, 1, 2, 0, 0]] + np.float32(1e-4) * s
    for ours, theirs in ((s[:, :1], t[:, :1]), identical, near, near[::-1]):
        expected = _relational(*_doubles([ours, theirs]), None)
        assert _loss("relational", [ours], [theirs]).numpy() == pytest.approx(expected, rel=1e-5)


def test_correlation_tends_to_the_gaussian_kernel():
    # for unit rows exp(-2 gamma) exp(2 gamma f.g) = exp(-gamma |f - g|^2)
    (s,), (t,) = _features("other vectors")
    for gamma in (0.2, 1.0):
        units = [_unit(x) for x in _doubles([s, t])]
        kernels = [np.exp(-gamma * np.sum((x[:, None] - x) ** 2, axis=-1)) for x in units]
        expected = np.mean((kernels[0] - kernels[1]) ** 2)
        result = _loss("correlation", [s], [t], keys={"gamma": gamma, "order": 15})
        assert result.numpy() == pytest.approx(expected, rel=1e-4)
        for order in (1, 3):
            result = _loss("correlation", [s], [t], keys={"gamma": gamma, "order": order})
            assert result.numpy() == pytest.approx(_correlation(*_doubles([s, t]), None, gamma, order), rel=1e-5)
        assert _loss("correlation", [s], [t], keys={"gamma": gamma, "order": 0}).numpy() == 0


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_ignore_isometries(name):
    (s,), (t,) = _features("other vectors")
    rng = np.random.default_rng(2)

    def moved(x):
        rows = np.linalg.qr(rng.normal(size=(x.shape[1] + 2,) * 2))[0][: x.shape[1]]  # into a wider space, too
        x = x.astype(np.float64) @ rows
        if name == "relational":
            x = x + 20 * rng.normal(size=x.shape[1])
        if name != "correlation":
            x = rng.uniform(0.2, 5) * x
        return x.astype(np.float32)

    expected = _loss(name, [s], [t]).numpy()
    for _ in range(3):
        assert _loss(name, [moved(s)], [moved(t)]).numpy() == pytest.approx(expected, rel=1e-4)
        assert _loss(name, [moved(t)], [t]).numpy() == pytest.approx(0, abs=1e-7)


# --- review -----------------------------------------------------------------------------------------------------------


def _hcl(x, y):
    # mse at full size, then of maps averaged to 4, 2 and 1 of a side as far as that is smaller, each at half the
    # weight of the one before (the authors' code)
    total, weights = np.mean((x - y) ** 2), 1.0
    weight = 1.0
    for size in (4, 2, 1):
        if size < x.shape[1]:
            weight /= 2
            pooled = _adaptive_mean(x - y, (size, min(size, x.shape[2])))
            total, weights = total + weight * np.mean(pooled**2), weights + weight
    return total / weights


@pytest.mark.parametrize("shape", [(8, 8, 2), (8, 4, 3), (16, 16, 2), (4, 4, 2), (2, 2, 5), (1, 1, 5)])
def test_hcl_is_a_weighted_mean_over_pooled_sizes(shape):
    rng = np.random.default_rng(0)
    for scale in SCALES:
        x, y = (scale * rng.normal(size=(2, 3, *shape))).astype(np.float32)
        x += 0.5 * scale  # means count at every size
        assert features.hcl(x, y).numpy() == pytest.approx(_hcl(*_doubles([x, y])), rel=1e-5)
        assert features.hcl(x, x).numpy() == 0


def _convolved(x, kernel):
    """SAME, by a kernel [size, size, channels, filters]."""
    border = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
    return np.einsum("bhwcij,ijcd->bhwd", windows, kernel)


def _nearest(x, size):
    """interpolate(mode="nearest"): place i of n is that of floor(i length / n)."""
    rows, columns = (np.arange(new) * length // new for length, new in zip(x.shape[1:-1], size, strict=True))
    return x[:, rows][:, :, columns]


def _review(students, teachers, weights):
    """The authors' ABF modules from the pooled embedding up, then their HCL; `weights` by learned variables' names."""
    left = dict(weights)

    def normalised(x, name):  # batch norm in training: (x - mean) / sqrt(variance + 1e-5), over images and pixels
        x = (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)
        return x * left.pop(f"{name}/scale") + left.pop(f"{name}/offset")

    names = [f"block{i}_stage{i}" if i else "block0" for i in range(len(students))]
    layers = list(zip(names, students, teachers, strict=True))
    layers.append((f"{names[-1]}/pooled", *(x[-1].mean(axis=(1, 2), keepdims=True) for x in (students, teachers))))
    carried, total = None, 0.0
    for name, s, t in reversed(layers):
        kernel = left.pop(f"{name}/review/kernel")
        assert kernel.shape == (1, 1, s.shape[-1], students[-1].shape[-1])
        x = normalised(_convolved(s, kernel), f"{name}/review")
        if carried is not None:
            y = _nearest(carried, x.shape[1:-1])
            kernel, bias = (left.pop(f"{name}/review_attention/{kind}") for kind in ("kernel", "bias"))
            attention = 1 / (1 + np.exp(-_convolved(np.concatenate([x, y], axis=-1), kernel) - bias))
            x = x * attention[..., :1] + y * attention[..., 1:]
        carried = _nearest(x, t.shape[1:-1])
        kernel = left.pop(f"{name}/review_output/kernel")
        assert kernel.shape == (3, 3, students[-1].shape[-1], t.shape[-1])
        total += _hcl(normalised(_convolved(carried, kernel), f"{name}/review_output"), t)
    assert not left
    return total


REVIEWED = {
    "deepest of one pixel": ([(8, 8, 2), (1, 1, 4)], [(8, 8, 6), (1, 1, 10)]),
    "student smaller": ([(4, 4, 2), (2, 2, 3)], [(8, 8, 2), (4, 4, 3)]),
    "student larger": ([(8, 8, 2), (4, 4, 3)], [(4, 4, 3), (2, 2, 2)]),
    "uneven": ([(5, 5, 2), (3, 3, 2), (2, 2, 3)], [(7, 7, 1), (3, 3, 2), (2, 2, 2)]),
    "one layer": ([(4, 4, 2)], [(4, 4, 3)]),
}


@pytest.mark.parametrize("layout", REVIEWED)
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_review_is_the_authors(layout, scale):
    rng = np.random.default_rng(0)
    students, teachers = (
        [(scale * rng.normal(size=(4, *shape))).astype(np.float32) for shape in side] for side in REVIEWED[layout]
    )
    learned = _prepared("review", students, teachers)
    loss, gradients, weight_gradients, _ = _gradients("review", students, teachers, learned)
    students, teachers, values = _doubles(students), _doubles(teachers), _doubles(learned.variables)
    weights = {variable.name.removesuffix(":0"): x for variable, x in zip(learned.variables, values, strict=True)}
    assert len(weights) == len(learned.trainable_variables)

    def reference():
        return _review(students, teachers, weights)

    np.testing.assert_allclose(loss.numpy(), reference(), rtol=2e-5)
    steps = [1e-5 * scale] * len(students) + [1e-5] * len(values)
    for x, gradient, step in zip([*students, *values], [*gradients, *weight_gradients], steps, strict=True):
        directions, expected = rng.normal(size=(3, *x.shape)), []  # all places are many
        began = x.copy()
        for direction in directions:
            ends = []
            for sign in (1, -1):
                x[...] = began + sign * step * direction
                ends.append(reference())
            expected.append((ends[0] - ends[1]) / (2 * step))
        x[...] = began
        result = np.tensordot(directions, np.asarray(gradient, np.float64), x.ndim)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=5e-5 * np.abs(expected).max())


def test_review_has_at_most_512_channels_in_the_middle():
    for channels, middle in ((600, 512), (3, 3)):
        learned = Learned(0)
        _loss("review", [np.ones((4, 1, 1, channels), np.float32)], [np.ones((4, 1, 1, 2), np.float32)], learned)
        shapes = [list(v.shape) for v in learned.trainable_variables]
        assert shapes.count([1, 1, channels, middle]) == 2 and [3, 3, middle, 2] in shapes


def test_review_of_a_teacher_with_one_channel():
    maps = np.ones((4, 2, 2, 1), np.float32)
    assert np.isfinite(_loss("review", [maps], [maps]).numpy())


# --- contrastive ------------------------------------------------------------------------------------------------------


def _state(learned):
    """Values by their variable's name, without the layer's."""
    return {v.name.removeprefix("block0/").removesuffix(":0"): v.numpy().astype(np.float64) for v in learned.variables}


def _embedded(learned, whose, x):
    state = _state(learned)
    return _unit(_flat(x) @ state[f"{whose}/kernel"] + state[f"{whose}/bias"])


def _nce(anchor, memory, drawn, constant=None):
    """- mean over images of log(x+ / (x+ + c)) + (a weighted sum of log(c / (x- + c))), and Z; x = exp(anchor . memory
    / tau) / Z, c = K / n. Of K drawn those of other classes count, each K / (how many they are)."""
    other = TRAINING_LABELS[INDICES][:, None] != TRAINING_LABELS[drawn]
    shares = np.divide(other * len(drawn), other.sum(axis=1, keepdims=True), where=other, out=np.zeros(other.shape))
    positive = np.exp(np.sum(anchor * memory[INDICES], axis=1) / 0.5)
    negative = np.exp(anchor @ memory[drawn].T / 0.5)
    if constant is None:  # of the first step: n times the mean score
        constant = (positive.sum() + (shares * negative).sum()) / (len(INDICES) + shares.sum()) * TRAINING_SIZE
    positive, negative, c = positive / constant, negative / constant, len(drawn) / TRAINING_SIZE
    logs = np.log(positive / (positive + c)) + (shares * np.log(c / (negative + c))).sum(axis=1)
    return -np.mean(logs), constant


def _both_nce(learned, s, t, began, drawn):
    """Of the student's features against the teacher's memory as it was, and the other way round."""
    sides = [("student", s, began["teacher_memory"]), ("teacher", t, began["student_memory"])]
    return [_nce(_embedded(learned, whose, x), memory, drawn) for whose, x, memory in sides]


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("layout", ["other vectors", "other maps"])
def test_contrastive_step_with_few_negatives(layout, negatives):
    (s,), (t,) = _features(layout)
    learned, keys = Learned(0), {"negatives": negatives}
    loss, (gradient,), _, _ = _gradients("contrastive", [s], [t], learned, keys=keys)
    began = dict(zip(_state(learned), _doubles(learned.initial(0)), strict=True))
    after = _state(learned)
    s, t = _doubles([s, t])
    # which of the seven images were drawn, the same for all anchors, is for the loss to say; the memories are those
    # before the step
    draws = [list(drawn) for drawn in itertools.combinations_with_replacement(range(TRAINING_SIZE), negatives)]
    distances = [abs(sum(one for one, _ in _both_nce(learned, s, t, began, drawn)) - loss) for drawn in draws]
    drawn = draws[int(np.argmin(distances))]
    if negatives == 3:  # some of a batch's images have ones of their own class among these
        assert 0 < np.mean(TRAINING_LABELS[INDICES][:, None] == TRAINING_LABELS[drawn]) < 1
        assert len(set(TRAINING_LABELS[drawn])) > 1
    (of_student, z_student), (of_teacher, z_teacher) = _both_nce(learned, s, t, began, drawn)
    assert loss.numpy() == pytest.approx(of_student + of_teacher, rel=1e-5)
    assert after["student_log_constant"] == pytest.approx(math.log(z_student), rel=1e-5)
    assert after["teacher_log_constant"] == pytest.approx(math.log(z_teacher), rel=1e-5)
    memory = began["teacher_memory"]
    _assert_slope(gradient, lambda: _nce(_embedded(learned, "student", s), memory, drawn, z_student)[0], s, 1e-5)
    others = np.setdiff1d(np.arange(TRAINING_SIZE), INDICES)
    for whose, x in (("student", s), ("teacher", t)):
        old, memory, new = began[f"{whose}_memory"], after[f"{whose}_memory"], _embedded(learned, whose, x)
        assert 0.8 / math.sqrt(5 / 3) < np.abs(old).max() <= 1 / math.sqrt(5 / 3)
        np.testing.assert_array_equal(memory[others], old[others])
        np.testing.assert_allclose(memory[INDICES], _unit(0.75 * old[INDICES] + 0.25 * new), atol=1e-6)
        np.testing.assert_allclose(np.sum(memory[INDICES] ** 2, axis=1), 1, rtol=1e-5)
    assert np.abs(began["student_memory"] - began["teacher_memory"]).max() > 0.1
    _loss("contrastive", [-s.astype(np.float32)], [t.astype(np.float32)], learned, keys=keys)
    for constant in ("student_log_constant", "teacher_log_constant"):
        assert _state(learned)[constant] == after[constant]


@pytest.mark.parametrize("negatives", [5, 100])
def test_contrastive_of_a_memory_of_one_row(negatives):
    # every draw is of this row, so that those of other classes count as all; of a hundred there are as many as images
    (s,), (t,) = _features("other vectors")
    learned, keys = Learned(0), {"negatives": negatives}
    _loss("contrastive", [s], [t], learned, keys=keys)
    rows = np.tile(_unit(np.arange(5.0) - 1), (TRAINING_SIZE, 1))
    for variable in learned.variables:
        if not variable.trainable:
            variable.assign(rows if "memory" in variable.name else math.log(10.0))
    loss, (gradient,), _, _ = _gradients("contrastive", [s], [t], learned, keys=keys)
    s, t = _doubles([s, t])
    drawn = list(range(min(negatives, TRAINING_SIZE)))  # there are all three classes among them

    def reference():
        return sum(_nce(_embedded(learned, *x), rows, drawn, 10.0)[0] for x in (("student", s), ("teacher", t)))

    assert loss.numpy() == pytest.approx(reference(), rel=1e-5)
    _assert_slope(gradient, reference, s, 1e-5)


def test_contrastive_of_one_class_alone_has_no_negatives(monkeypatch):
    monkeypatch.setitem(globals(), "TRAINING_LABELS", np.zeros(TRAINING_SIZE, np.int32))
    (s,), (t,) = _features("other vectors")
    learned = Learned(0)
    loss, (gradient,), _, _ = _gradients("contrastive", [s], [t], learned)
    began = dict(zip(_state(learned), _doubles(learned.initial(0)), strict=True))
    expected = _both_nce(learned, *_doubles([s, t]), began, [0] * CONTRASTIVE["negatives"])
    assert loss.numpy() == pytest.approx(sum(one for one, _ in expected), rel=1e-5)
    assert np.isfinite(gradient).all()


def test_contrastive_at_a_temperature_whose_scores_are_beyond_float32():
    (s,), (t,) = _features("other vectors")
    learned, keys = Learned(0), {"negatives": 1, "contrastive_temperature": 0.001}
    loss, (gradient,), _, _ = _gradients("contrastive", [s], [t], learned, keys=keys)
    assert np.isfinite(gradient).all()
    student, teacher = _embedded(learned, "student", s), _embedded(learned, "teacher", t)
    began = dict(zip(_state(learned), _doubles(learned.initial(0)), strict=True))
    sides = [(student, began["teacher_memory"]), (teacher, began["student_memory"])]

    def reference(drawn):  # the same in logarithms, which float64 needs here, too
        total, other = 0.0, TRAINING_LABELS[INDICES] != TRAINING_LABELS[drawn]
        for anchor, memory in sides:
            positive = np.sum(anchor * memory[INDICES], axis=1) / 0.001
            negative = anchor @ memory[drawn] / 0.001
            scores = [*positive, *negative[other]]
            log_c = np.logaddexp.reduce(scores) - np.log(len(scores)) + np.log(TRAINING_SIZE) - np.log(TRAINING_SIZE)
            total += np.mean(np.logaddexp(0, log_c - positive) + other * np.logaddexp(0, negative - log_c))
        return total

    assert min(abs(reference(drawn) / loss - 1) for drawn in range(TRAINING_SIZE)) < 1e-4


def test_contrastive_draws_from_the_random_seed():
    students, teachers = _features("other vectors")
    seeds = [(1, 2), (1, 2), (3, 2), (1, 4)]
    first, again, *others = [_loss("contrastive", students, teachers, random_seed=s).numpy() for s in seeds]
    assert first == again
    assert all(other != pytest.approx(first, rel=1e-4) for other in others)


def test_contrastive_is_learned():
    (s,), teachers = _features("other vectors")
    student, learned = tf.Variable(s), Learned(0)
    losses = []
    for step in range(40):
        loss, (gradient,), gradients, _ = _gradients("contrastive", [student], teachers, learned, random_seed=(0, step))
        for variable, slope in zip([student, *learned.trainable_variables], [gradient, *gradients], strict=True):
            variable.assign_sub(0.1 * slope)
        losses.append(loss.numpy())
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
