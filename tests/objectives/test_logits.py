"""Every objective on logits, against float64 NumPy that was written from the formulas and not from the code."""

import numpy as np
import pytest

from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.objectives.batch import Batch  # noqa: E402
from kdrun.objectives.combining import combined  # noqa: E402
from kdrun.objectives.logits import cross_entropy, dist, dkd, kd, logit_mse, multi_level, nkd  # noqa: E402
from kdrun.objectives.teacher_free import label_smoothing, teacher_free  # noqa: E402

EPSILON = 2.0**-23  # of float32
TEMPERATURES = [1.0, 4.0, 10.0]


# ---- references: (z, v, labels, T, keys) -> the loss, in float64 ----


def _log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def _kl(log_p, log_q):
    """KL(p || q) of each row."""
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def _standardised(x, standardise):
    # (x - mean) / (std over C - 1 + 1e-7), row by row: torch's default, which the authors' code takes
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / (np.std(x, axis=-1, ddof=1, keepdims=True) + 1e-7) if standardise else x


def _target(x, y):
    return x[np.arange(len(y)), y]


def _others(x, y):
    """[B, C - 1]: x without the labels' entries."""
    return x[np.arange(x.shape[1]) != y[:, None]].reshape(len(y), -1)


def _log_binary(x, y):
    """[B, 2]: the log-probabilities of the target and of all the rest."""
    log_p = _log_softmax(x)
    others = _others(log_p, y)
    top = others.max(axis=-1)
    return np.stack([_target(log_p, y), top + np.log(np.exp(others - top[:, None]).sum(axis=-1))], axis=-1)


def _kd(z, v, y, T, scale_by_temperature_squared, standardise_logits):
    # T^2 KL(p^T || q^T)
    z, v = (_standardised(x, standardise_logits) for x in (z, v))
    return (T**2 if scale_by_temperature_squared else 1) * _kl(_log_softmax(v / T), _log_softmax(z / T)).mean()


def _logit_mse(z, v, y, T, zero_mean, standardise_logits):
    # 1/2 ||z - v||^2
    z, v = (_standardised(x, standardise_logits) for x in (z, v))
    if zero_mean:
        z, v = (x - x.mean(axis=-1, keepdims=True) for x in (z, v))
    return np.mean(np.sum((z - v) ** 2, axis=-1) / 2)


def _dkd(z, v, y, T, target_weight, non_target_weight, standardise_logits):
    # T^2 [target_weight KL(b_t || b_s) + non_target_weight KL(p_hat^T || q_hat^T)]
    z, v = (_standardised(x, standardise_logits) / T for x in (z, v))
    target = _kl(_log_binary(v, y), _log_binary(z, y))
    rest = _kl(_log_softmax(_others(v, y)), _log_softmax(_others(z, y)))
    return T**2 * np.mean(target_weight * target + non_target_weight * rest)


def _pearson(log_a, log_b):
    """Of each row; without variance it is 0. Correlation ignores scale: the largest of a row is made 1."""
    a, b = (np.exp(x - x.max(axis=-1, keepdims=True)) for x in (log_a, log_b))
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    product = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.where(product > 0, np.sum(a * b, axis=-1) / np.where(product > 0, product, 1), 0)


def _dist(z, v, y, T, inter_weight, intra_weight, scale_by_temperature_squared):
    # T^2 [inter_weight (1 - mean of the rows' correlations) + intra_weight (1 - mean of the columns')]
    log_q, log_p = _log_softmax(z / T), _log_softmax(v / T)
    inter, intra = 1 - _pearson(log_q, log_p).mean(), 1 - _pearson(log_q.T, log_p.T).mean()
    return (T**2 if scale_by_temperature_squared else 1) * (inter_weight * inter + intra_weight * intra)


def _nkd(z, v, y, T, non_target_weight, standardise_logits):
    # -p_y log q_y - non_target_weight T^2 sum over i != y of p_hat_i^T log q_hat_i^T
    z, v = (_standardised(x, standardise_logits) for x in (z, v))
    target = np.exp(_target(_log_softmax(v), y)) * _target(_log_softmax(z), y)
    rest = np.sum(np.exp(_log_softmax(_others(v, y) / T)) * _log_softmax(_others(z, y) / T), axis=-1)
    return np.mean(-target - non_target_weight * T**2 * rest)


def _multi_level(z, v, y, T, temperatures, batch_weight, class_weight, standardise_logits):
    # sum over t of t^2 KL(p^t || q^t) + batch_weight ||q q' - p p'||^2 / B + class_weight ||q' q - p' p||^2 / C
    z, v = (_standardised(x, standardise_logits) for x in (z, v))
    loss = 0
    for t in (T, *temperatures):
        q, p = np.exp(_log_softmax(z / t)), np.exp(_log_softmax(v / t))
        loss += t**2 * _kl(_log_softmax(v / t), _log_softmax(z / t)).mean()
        loss += batch_weight * np.sum((q @ q.T - p @ p.T) ** 2) / z.shape[0]
        loss += class_weight * np.sum((q.T @ q - p.T @ p) ** 2) / z.shape[1]
    return loss


def _label_smoothing(z, v, y, T, smoothing):
    # cross-entropy with (1 - smoothing) one_hot(y) + smoothing / C
    target = (1 - smoothing) * np.eye(z.shape[1])[y] + smoothing / z.shape[1]
    return -np.mean(np.sum(target * _log_softmax(z), axis=-1))


def _teacher_free(z, v, y, T, probability, soften, student_temperature, scale_by_temperature_squared):
    # the authors' code: KL(softmax(p_d / T) || softmax(z)); as of a real teacher: T^2 KL(softmax(log p_d / T) || q^T)
    p = np.where(np.eye(z.shape[1])[y] > 0, probability, (1 - probability) / (z.shape[1] - 1))
    log_p = _log_softmax({"probabilities": p, "logits": np.log(p)}[soften] / T)
    factor = T**2 if scale_by_temperature_squared else 1
    return factor * _kl(log_p, _log_softmax(z / (student_temperature or T))).mean()


PLAIN, STANDARD = {"standardise_logits": False}, {"standardise_logits": True}
DIST = {"inter_weight": 1.5, "intra_weight": 0.6}
TEACHER_FREE = {"probability": 0.9, "soften": "probabilities"}
TEACHER_FREE |= {"student_temperature": 1.0, "scale_by_temperature_squared": False}
LIKE_KD = {"probability": 0.9, "soften": "logits", "student_temperature": None, "scale_by_temperature_squared": True}
MULTI = {"temperatures": [2.0, 6.0], "batch_weight": 0.7, "class_weight": 1.3}
CASES = {
    "kd": (kd, _kd, {"scale_by_temperature_squared": True, **PLAIN}),
    "kd-unscaled": (kd, _kd, {"scale_by_temperature_squared": False, **PLAIN}),
    "kd-standard": (kd, _kd, {"scale_by_temperature_squared": True, **STANDARD}),
    "logit_mse": (logit_mse, _logit_mse, {"zero_mean": False, **PLAIN}),
    "logit_mse-zero": (logit_mse, _logit_mse, {"zero_mean": True, **PLAIN}),
    "logit_mse-standard": (logit_mse, _logit_mse, {"zero_mean": False, **STANDARD}),
    "dkd": (dkd, _dkd, {"target_weight": 1.5, "non_target_weight": 0.6, **PLAIN}),
    "dkd-standard": (dkd, _dkd, {"target_weight": 0.5, "non_target_weight": 2.0, **STANDARD}),
    "dist": (dist, _dist, {**DIST, "scale_by_temperature_squared": True}),
    "dist-unscaled": (dist, _dist, {**DIST, "scale_by_temperature_squared": False}),
    "nkd": (nkd, _nkd, {"non_target_weight": 1.7, **PLAIN}),
    "nkd-standard": (nkd, _nkd, {"non_target_weight": 0.6, **STANDARD}),
    "multi_level": (multi_level, _multi_level, {**MULTI, **PLAIN}),
    "multi_level-standard": (multi_level, _multi_level, {**MULTI, **STANDARD}),
    "label_smoothing": (label_smoothing, _label_smoothing, {"smoothing": 0.2}),
    "teacher_free": (teacher_free, _teacher_free, TEACHER_FREE),
    "teacher_free-at-2": (teacher_free, _teacher_free, {**TEACHER_FREE, "student_temperature": 2.0}),
    "teacher_free-as-kd": (teacher_free, _teacher_free, LIKE_KD),
}
STANDARDISED = [name for name in CASES if name.endswith("standard")]
ZERO_AT_TEACHER = [name for name in CASES if not name.startswith(("nkd", "label", "teacher"))]
every_case = pytest.mark.parametrize("name", CASES)
every_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)
every_scale = pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
every_size = pytest.mark.parametrize("classes", [2, 10, 1000])


def _data(name="", scale=3.0, classes=10, batch=4, seed=0):
    if classes == 2 and name.startswith(("dkd", "nkd")):
        classes = 3  # of two classes only one is not the target, and its renormalised probability is always 1
    rng = np.random.default_rng([seed, classes])
    z, v = (scale * rng.normal(size=(2, batch, classes))).astype(np.float32)
    return z, v, rng.integers(classes, size=batch).astype(np.int32)


def _value(name, z, v, y, temperature, **changed):
    function, _, keys = CASES[name]
    z, v, y = (tf.convert_to_tensor(x) for x in (z, v, y))
    batch = Batch(logits=z, teacher_logits=v, labels=y, temperature=temperature)
    return function(batch, **{**keys, **changed})


def _value_and_gradient(name, z, v, y, temperature, **changed):
    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = _value(name, z, v, y, temperature, **changed)
    return loss.numpy(), tape.gradient(loss, z).numpy()


def _gradient(*batch, **changed):
    return _value_and_gradient(*batch, **changed)[1]


def _expected(name, z, v, y, temperature):
    _, reference, keys = CASES[name]
    return reference(np.asarray(z, np.float64), np.asarray(v, np.float64), y, temperature, **keys)


def _slopes(name, z, v, y, temperature, directions, step=1e-5):
    """The reference's derivative in each direction, by central differences."""
    z = z.astype(np.float64)
    ends = [[_expected(name, z + sign * step * d, v, y, temperature) for sign in (1, -1)] for d in directions]
    return np.array([(up - down) / (2 * step) for up, down in ends])


def _directions(z, count=3):
    """Every entry's own; for many classes a few random ones."""
    if z.size <= 100:
        return np.eye(z.size).reshape(-1, *z.shape)
    return np.random.default_rng(7).normal(size=(count, *z.shape))


# ---- each objective against its reference ----


@every_temperature
@every_size
@every_scale
@every_case
def test_the_value_is_the_reference(name, scale, classes, temperature):
    z, v, y = _data(name, scale, classes)
    result = _value(name, z, v, y, temperature)
    assert (result.dtype, result.shape) == (tf.float32, ())
    # log-probabilities are rounded to float32 before they are subtracted; the larger a temperature, the more it counts
    highest = max([temperature, *CASES[name][2].get("temperatures", [])])
    largest = np.abs(_log_softmax(np.stack([z, v]) / highest)).max()
    atol = 2 * EPSILON * largest * highest**2
    if name.startswith(
        "dist"
    ):  # what is correlated are the distances of probabilities from their mean: about scale / T
        atol = 4 * EPSILON * temperature / min(scale, 1)
    np.testing.assert_allclose(result.numpy(), _expected(name, z, v, y, temperature), rtol=1e-5, atol=atol)


@every_temperature
@every_size
@every_scale
@every_case
def test_the_gradient_is_the_reference_s(name, scale, classes, temperature):
    z, v, y = _data(name, scale, classes)
    directions = _directions(z)
    expected = _slopes(name, z, v, y, temperature, directions)
    result = np.tensordot(directions, _gradient(name, z, v, y, temperature), 2)
    # q - p is rounded to float32, and multiplied by T; standardising divides by the deviation, and of two classes the
    # gradient is zero: only rounding is left
    highest = max([temperature, *CASES[name][2].get("temperatures", [])])
    rounding = 1e-7 * highest / (min(scale, 1) if name in STANDARDISED else 1)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max() + rounding)


@every_case
def test_extreme_logits_have_a_finite_value_and_gradient(name):
    rng = np.random.default_rng(5)
    z, v = rng.choice([1e4, -1e4, 0], size=(2, 6, 10)).astype(np.float32)
    y = np.array([0, 1, 2, 3, 4, 5], np.int32)
    equal = np.full_like(z, 1e4)  # rows and columns without variance
    for student, teacher, temperature in [(z, v, 1.0), (z, -z, 10.0), (equal, v, 4.0), (z, equal, 1.0)]:
        result, gradient = _value_and_gradient(name, student, teacher, y, temperature)
        assert np.isfinite(result)
        assert np.isfinite(gradient).all()
        if not name.startswith("dist"):  # whose columns can be so small that they count as without variance
            np.testing.assert_allclose(result, _expected(name, student, teacher, y, temperature), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@every_case
def test_short_floats_are_cast_to_float32_first(name, dtype):
    z, v, y = _data(name, 20.0, 1000)
    z, v = tf.cast(z, dtype), tf.cast(v, dtype)
    short = _value(name, z, v, y, 7.0)
    assert (short.dtype, short.shape) == (tf.float32, ())
    assert short.numpy() == _value(name, tf.cast(z, tf.float32), tf.cast(v, tf.float32), y, 7.0).numpy()


# ---- what holds for all of them ----


@every_case
def test_the_order_of_the_batch_does_not_matter(name):
    z, v, y = _data(name, batch=32)
    rows = np.random.default_rng(1).permutation(32)
    np.testing.assert_allclose(_value(name, z[rows], v[rows], y[rows], 4.0), _value(name, z, v, y, 4.0), rtol=1e-5)
    gradient = _gradient(name, z, v, y, 4.0)
    np.testing.assert_allclose(_gradient(name, z[rows], v[rows], y[rows], 4.0), gradient[rows], rtol=1e-4, atol=1e-7)


@every_case
def test_the_order_of_the_classes_does_not_matter(name):
    z, v, y = _data(name)
    order = np.random.default_rng(2).permutation(10)
    labels = np.argsort(order)[y].astype(np.int32)  # where each label's class went
    mixed = z[:, order], v[:, order], labels
    np.testing.assert_allclose(_value(name, *mixed, 4.0), _value(name, z, v, y, 4.0), rtol=1e-5)
    gradient = _gradient(name, z, v, y, 4.0)
    np.testing.assert_allclose(_gradient(name, *mixed, 4.0), gradient[:, order], rtol=1e-4, atol=1e-6)


@every_case
def test_no_gradient_reaches_the_teacher(name):
    z, v, y = _data(name)
    z, v = tf.constant(z), tf.constant(v)
    with tf.GradientTape() as tape:
        tape.watch([z, v])
        loss = _value(name, z, v, y, 4.0)
    student, teacher = tape.gradient(loss, [z, v])
    assert np.abs(student).max() > 0
    assert teacher is None or not np.any(teacher)


@every_case
def test_it_is_traced_once_with_the_temperature_and_the_batch_size_as_inputs(name):
    traces = []
    logits = tf.TensorSpec([None, 10])

    @tf.function(input_signature=[logits, logits, tf.TensorSpec([None], tf.int32), tf.TensorSpec([])])
    def compiled(z, v, y, temperature):
        traces.append(1)
        return _value(name, z, v, y, temperature)

    for temperature, batch in [(1.0, 4), (4.0, 6), (9.0, 4)]:
        z, v, y = _data(name, batch=batch)
        expected = _expected(name, z, v, y, temperature)
        np.testing.assert_allclose(compiled(z, v, y, temperature), expected, rtol=2e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("name", STANDARDISED)
def test_standardised_logits_have_no_scale_and_no_shift(name):
    z, v, y = _data(name)
    scale, shift = np.array([[0.25], [2.0], [5.0], [30.0]], np.float32), np.array([[-8], [0.5], [4], [16]], np.float32)
    expected = _value(name, z, v, y, 4.0).numpy()
    for student, teacher in [(z * scale, v), (z + shift, v), (z, v * scale + shift), (scale * z - shift, scale * v)]:
        np.testing.assert_allclose(_value(name, student, teacher, y, 4.0), expected, rtol=1e-4)
    plain = [_value(name, x, v, y, 4.0, standardise_logits=False).numpy() for x in (z, z * scale)]
    assert plain[0] != pytest.approx(plain[1], rel=0.01)  # which would make the test above an empty one


@pytest.mark.parametrize("name", ZERO_AT_TEACHER)
@every_temperature
@every_scale
def test_it_is_zero_with_its_gradient_where_the_student_equals_the_teacher(name, scale, temperature):
    z, _, y = _data(name, scale)
    atol = 1e-5 * max(1, temperature / scale / 10) if name.startswith("dist") else 1e-6 / min(scale, 1)
    np.testing.assert_allclose(_value(name, z, z, y, temperature), 0, atol=atol)
    np.testing.assert_allclose(_gradient(name, z, z, y, temperature), 0, atol=atol)


@pytest.mark.parametrize("name", ["kd", "dkd", "multi_level"])
def test_gradients_keep_the_reference_s_size_from_temperature_1_to_50(name):
    z, v, y = _data(name)
    for temperature in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0):
        expected = np.linalg.norm(_slopes(name, z, v, y, temperature, _directions(z)))
        assert np.linalg.norm(_gradient(name, z, v, y, temperature)) == pytest.approx(expected, rel=1e-4)


# ---- identities of single ones ----


@every_temperature
def test_kd_is_dkd_s_target_part_and_the_rest_s_probability_times_the_other_part(temperature):
    z, v, y = _data(batch=8)
    rest = np.exp(_log_binary(v.astype(np.float64) / temperature, y))[:, 1]
    for i in range(8):
        one = z[i : i + 1], v[i : i + 1], y[i : i + 1], temperature
        parts = [_value("dkd", *one, target_weight=a, non_target_weight=1.0 - a).numpy() for a in (1.0, 0.0)]
        assert parts[0] + rest[i] * parts[1] == pytest.approx(_value("kd", *one).numpy(), rel=1e-4)


def test_kd_of_a_high_temperature_is_the_squared_difference_of_zero_mean_logits_over_the_classes():
    z, v, y = _data(scale=2.0)
    z, v = z + 5, v - 3  # which a mean of zero takes away
    limit = _value("logit_mse-zero", z, v, y, 1.0).numpy() / 10
    distances = [abs(_value("kd", z, v, y, t).numpy() / limit - 1) for t in (5.0, 20.0, 80.0)]
    assert distances[0] > 2 * distances[1] > 4 * distances[2]
    assert distances[2] < 0.02
    gradient = _gradient("logit_mse-zero", z, v, y, 1.0) / 10
    np.testing.assert_allclose(_gradient("kd", z, v, y, 1000.0), gradient, atol=0.01 * np.abs(gradient).max())


@pytest.mark.parametrize(("rows", "classes"), [(1, 10), (3, 7), (7, 3), (500, 10)])
def test_dist_counts_rows_and_columns_without_variance_as_uncorrelated(rows, classes):
    z, v, y = _data(classes=classes, batch=rows)
    flat = np.full_like(z, 0.3)
    same, other = np.repeat(z[:1], rows, axis=0), np.repeat(v[:1], rows, axis=0)
    only_rows, only_columns = {"inter_weight": 1.0, "intra_weight": 0.0}, {"inter_weight": 0.0, "intra_weight": 1.0}
    cases = [(flat, v, only_rows), (z, flat, only_rows), (flat, flat, only_rows)]
    cases += [(same, v, only_columns), (z, same, only_columns), (same, other, only_columns), (same, same, only_columns)]
    for student, teacher, keys in cases:
        for temperature in (1.0, 4.0):
            result, gradient = _value_and_gradient("dist", student, teacher, y, temperature, **keys)
            np.testing.assert_allclose(result, temperature**2, atol=1e-5)
            assert np.isfinite(gradient).all()


@every_temperature
def test_nkd_s_non_target_part_has_no_gradient_where_the_student_equals_the_teacher(temperature):
    z, _, y = _data()
    gradients = [_gradient("nkd", z, z, y, temperature, non_target_weight=weight) for weight in (3.0, 0.0)]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)
    assert np.abs(gradients[1]).max() > 1e-3


def test_label_smoothing_is_least_where_the_softmax_is_the_smoothed_target():
    _, v, y = _data()
    z = np.log(0.8 * np.eye(10)[y] + 0.02).astype(np.float32)
    least = _value("label_smoothing", z, v, y, 1.0).numpy()
    np.testing.assert_allclose(_gradient("label_smoothing", z, v, y, 1.0), 0, atol=1e-7)
    for seed in range(10):
        shift = np.random.default_rng(seed).normal(size=z.shape).astype(np.float32)
        assert _value("label_smoothing", z + 0.1 * shift, v, y, 1.0) > least


def test_teacher_free_is_a_hundredth_of_its_authors_multiplier_for_a_hundred_classes():
    # they multiply by 100 what torch's KLDivLoss makes of it by default: a mean over images and classes
    z, v, y = _data(classes=100)
    p_d = np.where(np.eye(100)[y] > 0, 0.99, 0.01 / 99)
    p = np.exp(p_d / 20) / np.exp(p_d / 20).sum(axis=1, keepdims=True)
    assert p.max() / p.min() < 1.06  # nearly uniform
    expected = 100 * np.mean(p * (np.log(p) - _log_softmax(z.astype(np.float64))))
    assert _value("teacher_free", z, v, y, 20.0, probability=0.99).numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["label_smoothing", "teacher_free"])
def test_controls_need_no_teacher(name):
    z, v, y = _data()
    function, _, keys = CASES[name]
    result = function(Batch(logits=tf.constant(z), labels=tf.constant(y), temperature=4.0), **keys)
    assert result.numpy() == _value(name, z, v, y, 4.0).numpy()


# ---- several teachers as one ----


def _teachers(count, scale=3.0, batch=4, classes=10):
    teachers = (scale * np.random.default_rng(11).normal(size=(batch, count, classes))).astype(np.float32)
    return teachers, np.array([[1.0], [0.3, 0.7], [0.2, 0.5, 0.3]][count - 1], np.float32)


def _combined(teachers, temperature, weights, how):
    return combined(tf.constant(teachers), temperature, tf.constant(weights), how).numpy()


@every_scale
@every_temperature
@pytest.mark.parametrize("count", [1, 2, 3])
def test_combined_teachers_have_the_weighted_mean_of_probabilities_or_of_logits(count, temperature, scale):
    teachers, weights = _teachers(count, scale)
    exact, w = teachers.astype(np.float64), weights.astype(np.float64)[:, None]
    mean = np.log(np.sum(w * np.exp(_log_softmax(exact / temperature)), axis=1))  # of one teacher: its own softmax
    u = _combined(teachers, temperature, weights, "probabilities")
    assert u.shape == (4, 10)
    np.testing.assert_allclose(_log_softmax(u.astype(np.float64) / temperature), mean, rtol=1e-5, atol=1e-5)
    logits = _combined(teachers, temperature, weights, "logits")
    np.testing.assert_allclose(logits, np.sum(w * exact, axis=1), rtol=1e-5, atol=1e-6 * scale)


@every_temperature
def test_kd_to_combined_teachers_has_the_gradient_of_the_weighted_mean_of_kds(temperature):
    z, _, y = _data()
    teachers, weights = _teachers(3)
    each = [w * _gradient("kd", z, teachers[:, k], y, temperature) for k, w in enumerate(weights)]
    u = _combined(teachers, temperature, weights, "probabilities")
    np.testing.assert_allclose(_gradient("kd", z, u, y, temperature), sum(each), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [[0.3, 0.7], [1.0, 0.0]])
@every_temperature
def test_combined_extreme_logits_are_finite(temperature, weights):
    high = 1e4  # the last class is impossible for both teachers
    teachers = np.array([[[high, 0, -high], [0, high, -high]], [[high, 0, -high], [high, high, -high]]], np.float32)
    weights = np.array(weights, np.float32)
    for how in ("probabilities", "logits"):
        assert np.isfinite(_combined(teachers, temperature, weights, how)).all()
    u = _combined(teachers, temperature, weights, "probabilities").astype(np.float64)
    first = weights[0] if weights[1] else 1.0  # without a weight the second teacher's row does not count
    np.testing.assert_allclose(np.exp(_log_softmax(u / temperature))[0, :2], [first, weights[1]], atol=1e-6)


@pytest.mark.parametrize("counts", [None, [2.0, 0.0, 2.0, 2.0, 0.0]])
@pytest.mark.parametrize("own_share", [None, 0.3])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_of_both_labels_of_a_mixed_image_as_far_as_they_are_there(counts, own_share, smoothing):
    random = np.random.default_rng(3)
    z, labels = random.normal(size=(5, 4)).astype(np.float32), np.array([3, 0, 1, 2, 1], np.int32)
    each = np.ones(5) if counts is None else np.array(counts)
    soft = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    soft *= each[:, np.newaxis]
    if own_share is not None:
        soft = own_share * soft + (1 - own_share) * soft[::-1]
    expected = -np.mean(np.sum(soft * _log_softmax(z.astype(float)), axis=1))
    shown = np.where(each > 0, labels, -1)  # those that do not count have none
    found = cross_entropy(
        tf.constant(z), tf.constant(shown), None if counts is None else tf.constant(counts), own_share, smoothing
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)
