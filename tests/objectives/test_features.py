"""Distillation on features, against float64 NumPy written from the papers' formulas.

A reference takes one layer's features of student and teacher and the trained weights, by the kinds of `_weights`.
"""

import functools
import math

import numpy as np
import pytest

from kdrun import startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.errors import InputError  # noqa: E402
from kdrun.objectives import features, relations  # noqa: E402
from kdrun.objectives.batch import Batch, Learned  # noqa: E402

SCALES = [0.1, 3.0, 50.0]
TRAINING_SIZE = 7
INDICES = [5, 0, 3, 6]  # a batch of four

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
    "larger student": ([(5, 6, 2)], [(3, 4, 2)]),
    "larger teacher": ([(3, 4, 3)], [(6, 8, 2)]),
    "layers": ([(4, 4, 2), (6,), (3,)], [(4, 4, 3), (6,), (5,)]),
    "layers of maps": ([(4, 4, 2), (2, 2, 3)], [(4, 4, 3), (2, 2, 3)]),
}
SAME = ["vectors", "maps"]
MAPS = ["maps", "other maps", "larger student", "larger teacher", "layers of maps"]
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
        features={f"block{i}": tf.convert_to_tensor(x) for i, x in enumerate(students)},
        teacher_features={f"stage{i}" if i else "block0": tf.convert_to_tensor(x) for i, x in enumerate(teachers)},
        learned=learned or Learned(0),
        indices=tf.constant(indices, tf.int32),
        training_size=TRAINING_SIZE,
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
    """The larger of two maps at the smaller one's size."""
    size = min(s.shape[1:-1], t.shape[1:-1])
    for x in (s, t):
        if x.shape[1:-1] == size:
            yield x
        else:
            pixels = x.reshape(len(x), -1, x.shape[-1])
            resized = np.einsum("bpc,pq->bqc", pixels, _resizing(*x.shape[1:-1], *size))
            yield resized.reshape(len(x), *size, -1)


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


def _variational(s, t, weights):  # mean of 1/2 [(m(F_s) - F_t)^2 / sigma^2 + log sigma^2]
    s, t = _resized(s, t)
    s = s @ next(weights["kernel"]) + next(weights["bias"])
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
        return sum(REFERENCES[name](s, t, weights) for s, t in zip(students, teachers, strict=True))

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
    learned = Learned(0)
    _loss("variational", [s], [t], learned)
    kernel, bias, rho = (next(v for v in learned.variables if kind in v.name) for kind in ("kernel", "bias", "var"))
    assert rho.shape == t.shape[-1:]
    np.testing.assert_allclose(np.log1p(np.exp(rho.numpy().astype(np.float64))) + 1e-5, 5, rtol=1e-6)
    kernel.assign(tf.zeros_like(kernel))
    bias.assign(tf.zeros_like(bias))
    by_hand = 0.5 * (2.0**2 / 5 + math.log(5))
    assert _loss("variational", [s], [np.full_like(t, 2)], learned).numpy() == pytest.approx(by_hand, rel=1e-6)
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
            b, h, w, c = x.shape
            pooled = (x - y).reshape(b, size, h // size, size, w // size, c).mean(axis=(2, 4))
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


def _convolved(learned, shape, x):
    """By the one convolution whose kernel has this shape, and its bias, SAME."""
    (kernel,) = [v for v in learned.trainable_variables if v.shape == shape]
    (bias,) = [v for v in learned.trainable_variables if v.name == kernel.name.replace("kernel", "bias")]
    kernel, bias = _doubles([kernel, bias])
    border = shape[0] // 2
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, shape[:2], axis=(1, 2))
    return np.einsum("bhwcij,ijcd->bhwd", windows, kernel) + bias


def test_review_of_two_layers():
    # the deeper map is one pixel, so that there is one way to resize it to the other's size
    rng = np.random.default_rng(0)
    shallow, deep = (rng.normal(size=(4, *shape)).astype(np.float32) for shape in ((8, 8, 1), (1, 1, 4)))
    t_shallow, t_deep = (rng.normal(size=(4, *shape)).astype(np.float32) for shape in ((8, 8, 6), (1, 1, 10)))
    learned = _prepared("review", [shallow, deep], [t_shallow, t_deep])
    loss, gradients, _, _ = _gradients("review", [shallow, deep], [t_shallow, t_deep], learned)
    shallow, deep, t_shallow, t_deep = _doubles([shallow, deep, t_shallow, t_deep])

    def reference():
        carried = _convolved(learned, [1, 1, 4, 5], deep)  # to half of ten channels
        total = _hcl(_convolved(learned, [3, 3, 5, 10], carried), t_deep)
        own, carried = _convolved(learned, [1, 1, 1, 5], shallow), np.tile(carried, (1, 8, 8, 1))
        both = np.concatenate([own, carried], axis=-1)
        attention = 1 / (1 + np.exp(-_convolved(learned, [1, 1, 10, 2], both)))
        merged = own * attention[..., :1] + carried * attention[..., 1:]
        return total + _hcl(_convolved(learned, [3, 3, 5, 6], merged), t_shallow)

    assert loss.numpy() == pytest.approx(reference(), rel=1e-5)
    for x, gradient in zip((shallow, deep), gradients, strict=True):
        _assert_slope(gradient, reference, x, 1e-5)


def test_review_has_at_most_256_channels_in_the_middle():
    learned = Learned(0)
    _loss("review", [np.ones((4, 2, 2, 3), np.float32)], [np.ones((4, 2, 2, 600), np.float32)], learned)
    assert [1, 1, 3, 256] in [list(v.shape) for v in learned.trainable_variables]


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
    # x = exp(anchor . memory / tau) / Z, c = K P_n: - mean_i [log(x+ / (x+ + c)) + sum log(c / (x- + c))]
    positive = np.exp(np.sum(anchor * memory[INDICES], axis=1, keepdims=True) / 0.5)
    negative = np.exp(anchor @ memory[drawn].T / 0.5)
    z = constant or np.mean(np.concatenate([positive, negative], axis=1)) * TRAINING_SIZE  # of the first step
    positive, negative, c = positive / z, negative / z, len(drawn) / TRAINING_SIZE
    return -np.mean(np.log(positive[:, 0] / (positive[:, 0] + c)) + np.log(c / (negative + c)).sum(axis=1)), z


@pytest.mark.parametrize("layout", ["other vectors", "other maps"])
def test_contrastive_step_with_one_negative(layout):
    (s,), (t,) = _features(layout)
    learned = Learned(0)
    loss = _loss("contrastive", [s], [t], learned, keys={"negatives": 1}).numpy()
    began = dict(zip(_state(learned), _doubles(learned.initial(0)), strict=True))
    after = _state(learned)
    student, teacher = _embedded(learned, "student", s), _embedded(learned, "teacher", t)
    # the one negative is one of the seven images, the same for all anchors; the memories are those before the step
    sides = [(student, began["teacher_memory"]), (teacher, began["student_memory"])]
    expected = [[_nce(anchor, memory, [drawn]) for anchor, memory in sides] for drawn in range(TRAINING_SIZE)]
    (of_student, z_student), (of_teacher, z_teacher) = min(expected, key=lambda x: abs(x[0][0] + x[1][0] - loss))
    assert loss == pytest.approx(of_student + of_teacher, rel=1e-5)
    assert after["student_log_constant"] == pytest.approx(math.log(z_student), rel=1e-5)
    assert after["teacher_log_constant"] == pytest.approx(math.log(z_teacher), rel=1e-5)
    others = np.setdiff1d(np.arange(TRAINING_SIZE), INDICES)
    for whose, new in (("student", student), ("teacher", teacher)):
        old, memory = began[f"{whose}_memory"], after[f"{whose}_memory"]
        assert 0.8 / math.sqrt(5 / 3) < np.abs(old).max() <= 1 / math.sqrt(5 / 3)
        np.testing.assert_array_equal(memory[others], old[others])
        np.testing.assert_allclose(memory[INDICES], _unit(0.75 * old[INDICES] + 0.25 * new), atol=1e-6)
        np.testing.assert_allclose(np.sum(memory[INDICES] ** 2, axis=1), 1, rtol=1e-5)
    assert np.abs(began["student_memory"] - began["teacher_memory"]).max() > 0.1
    _loss("contrastive", [-s], [t], learned, keys={"negatives": 1})
    for constant in ("student_log_constant", "teacher_log_constant"):
        assert _state(learned)[constant] == after[constant]


@pytest.mark.parametrize("negatives", [3, 100])
def test_contrastive_of_a_memory_of_one_row(negatives):
    # every draw is of this row; of a hundred negatives there are as many as images
    (s,), (t,) = _features("other vectors")
    learned, keys = Learned(0), {"negatives": negatives}
    _loss("contrastive", [s], [t], learned, keys=keys)
    rows = np.tile(_unit(np.arange(5.0) - 1), (TRAINING_SIZE, 1))
    for variable in learned.variables:
        if not variable.trainable:
            variable.assign(rows if "memory" in variable.name else math.log(10.0))
    loss, (gradient,), _, _ = _gradients("contrastive", [s], [t], learned, keys=keys)
    s, t = _doubles([s, t])
    drawn = [0] * min(negatives, TRAINING_SIZE)

    def reference():
        return sum(_nce(_embedded(learned, *x), rows, drawn, 10.0)[0] for x in (("student", s), ("teacher", t)))

    assert loss.numpy() == pytest.approx(reference(), rel=1e-5)
    _assert_slope(gradient, reference, s, 1e-5)


def test_contrastive_at_a_temperature_whose_scores_are_beyond_float32():
    (s,), (t,) = _features("other vectors")
    learned, keys = Learned(0), {"negatives": 1, "contrastive_temperature": 0.001}
    loss, (gradient,), _, _ = _gradients("contrastive", [s], [t], learned, keys=keys)
    assert np.isfinite(gradient).all()
    student, teacher = _embedded(learned, "student", s), _embedded(learned, "teacher", t)
    began = dict(zip(_state(learned), _doubles(learned.initial(0)), strict=True))
    sides = [(student, began["teacher_memory"]), (teacher, began["student_memory"])]

    def reference(drawn):  # the same in logarithms, which float64 needs here, too
        total = 0.0
        for anchor, memory in sides:
            positive = np.sum(anchor * memory[INDICES], axis=1) / 0.001
            negative = anchor @ memory[drawn] / 0.001
            log_c = (
                np.logaddexp.reduce([*positive, *negative]) - np.log(8) + np.log(TRAINING_SIZE) - np.log(TRAINING_SIZE)
            )
            total += np.mean(np.logaddexp(0, log_c - positive) + np.logaddexp(0, negative - log_c))
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
