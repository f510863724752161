"""The flat optimizer against the same optimizer applied to one variable after the other: bit for bit, and where XLA
compiles its update, to rounding."""

import numpy as np
import pytest

from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402

from kdrun.optimizers import elementwise as optimizers  # noqa: E402
from kdrun.optimizers.average import Average  # noqa: E402
from kdrun.optimizers.flat import FlatOptimizer, flattened  # noqa: E402

ADABELIEF = {
    "name": "adabelief",
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-14,
    "weight_decay": 0.0,
    "rectify": True,
}
ADAM = {"name": "adam", "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "weight_decay": 0.0}
SGD = {"name": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
EVERY = {
    "adabelief": ADABELIEF,
    "adabelief-notebook": ADABELIEF | {"weight_decay": 1e-5},
    "adabelief-decay": ADABELIEF | {"weight_decay": 0.1},
    "adabelief-unrectified": ADABELIEF | {"rectify": False},
    "adabelief-unrectified-decay": ADABELIEF | {"rectify": False, "weight_decay": 0.1, "beta_1": 0.8, "epsilon": 1e-8},
    "adam": ADAM,
    "adam-decay": ADAM | {"weight_decay": 0.1, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-5},
    "sgd": SGD,
    "sgd-momentum": SGD | {"momentum": 0.9},
    "sgd-nesterov": SGD | {"momentum": 0.9, "nesterov": True},
    "sgd-nesterov-decay": SGD | {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}
KEYS = pytest.mark.parametrize("keys", EVERY.values(), ids=EVERY.keys())
# sizes that fill no vector register evenly, one value, a scalar, and one large enough to be shared between threads
SHAPES = [(3, 3, 2, 5), (5,), (1,), (), (7, 11), (150, 301), (13,), (16,)]
RATES = np.concatenate([np.linspace(1e-3, 1e-2, 20), np.linspace(1e-2, 1e-4, 80)]).astype(np.float32)


def _config(keys, learning_rate=1e-3):
    return keys | {"learning_rate": learning_rate, "schedule": "constant", "warmup_epochs": 0.0}


def _initial(shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def _gradients(steps, shapes=SHAPES, seed=1):
    """For every variable [steps, *shape]; of very different sizes, some values zero throughout."""
    rng = np.random.default_rng(seed)
    scales = [10.0 ** (-2 * (number % 4)) for number in range(len(shapes))]
    return [
        (scale * rng.normal(size=(steps, *shape)) * (rng.random(shape) > 0.1)).astype(np.float32)
        for scale, shape in zip(scales, shapes, strict=True)
    ]


def _variables(values):
    return [tf.Variable(value) for value in values]


def _loss(variables, gradients, k):
    """Its gradient is gradients[k], exactly."""
    return tf.add_n([tf.reduce_sum(v * g[k]) for v, g in zip(variables, gradients, strict=True)])


def _train_flat(keys, values, gradients, rates, scale_loss=False, **compiling):
    """All steps in one loop inside a graph, as the training loop takes them."""
    variables = _variables(values)
    optimizer = FlatOptimizer(_config(keys), variables, scale_loss=scale_loss, **compiling)
    gradients = [tf.constant(g) for g in gradients]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def run(rates):
        for k in tf.range(tf.shape(rates)[0]):
            with tf.GradientTape() as tape:
                loss = optimizer.scaled(_loss(variables, gradients, k))
            optimizer.update(flattened(optimizer.gradients(tape, loss)), rates[k])

    run(rates)
    return optimizer, variables


def _ordinary(keys, fused=True):
    """The optimizer as anyone would make it. adabelief-tf is imported by now, on the legacy tf_keras base.

    tf_keras has two Adams; the `fused` one is without decay, and one operation.
    """
    keys = {key: value for key, value in keys.items() if key != "name"}
    if "rectify" in keys:
        optimizer = optimizers.adabelief(learning_rate=1e-3, **keys)
        assert isinstance(optimizer, tf_keras.optimizers.legacy.Optimizer)
        assert type(optimizer).__module__.startswith("adabelief_tf")
        return optimizer
    if fused and "beta_1" in keys and not keys["weight_decay"]:
        return tf_keras.optimizers.legacy.Adam(1e-3, keys["beta_1"], keys["beta_2"], keys["epsilon"])
    kind = tf_keras.optimizers.Adam if "beta_1" in keys else tf_keras.optimizers.SGD
    return kind(learning_rate=1e-3, jit_compile=False, **keys)


def _train_one_by_one(keys, values, gradients, rates, fused=True):
    """A step a call, every variable by itself, through the optimizer's own interface."""
    variables = _variables(values)
    optimizer = _ordinary(keys, fused)

    @tf.function
    def step(gradients, rate):
        optimizer.learning_rate.assign(rate)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    if isinstance(optimizer, tf_keras.optimizers.legacy.Optimizer):
        optimizer._create_all_weights(variables)
    else:
        optimizer.build(variables)
    for k, rate in enumerate(rates):
        step([tf.constant(g[k]) for g in gradients], tf.constant(rate))
    return variables


def _bytes(variables):
    return [variable.numpy().tobytes() for variable in variables]


@KEYS
def test_a_hundred_steps_are_those_of_one_variable_at_a_time(keys):
    values, gradients = _initial(), _gradients(100)
    _, flat = _train_flat(keys, values, gradients, RATES)
    separate = _train_one_by_one(keys, values, gradients, RATES)
    for one, another, before in zip(flat, separate, values, strict=True):
        assert one.numpy().tobytes() == another.numpy().tobytes()
        assert np.any(one.numpy() != before) or one.shape.rank == 0  # it moved; the scalar's gradient may be zero


@KEYS
def test_a_hundred_compiled_steps_are_those_of_the_library(keys):
    values, gradients = _initial(), _gradients(100)
    optimizer, flat = _train_flat(keys, values, gradients, RATES, compile_from=0)
    plain, _ = _train_flat(keys, values, gradients, RATES)
    separate = _train_one_by_one(keys, values, gradients, RATES, fused=False)
    off = 3e-6 if keys is ADAM else 1e-6  # its one operation is not compiled: the two Adams themselves are so far apart
    for one, another in zip(flat, separate, strict=True):
        np.testing.assert_allclose(one, another, rtol=off, atol=off)
    for one, another in zip(optimizer.state, plain.state, strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-6, atol=1e-6)


def test_the_update_of_many_weights_is_compiled():
    def trained(shape, **compiling):
        _, variables = _train_flat(ADABELIEF, _initial([shape]), _gradients(5, [shape]), RATES[:5], **compiling)
        return _bytes(variables)

    many, few = (2**9, 2**9), (2**9 - 1, 2**9)
    assert trained(many) == trained(many, compile_from=0) != trained(many, compile_from=2**20)
    assert trained(few) == trained(few, compile_from=2**20) != trained(few, compile_from=0)


def _network():
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            tf_keras.Input((6, 6, 1)),
            layers.Conv2D(3, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(5, activation="tanh"),
            layers.Dense(4),
        ]
    )


@pytest.mark.parametrize("keys", [EVERY["adabelief-decay"], ADABELIEF | {"rectify": False}, ADAM, SGD])
def test_a_network_trains_to_the_same_weights(keys):
    rng = np.random.default_rng(2)
    images = tf.constant(rng.normal(size=(100, 4, 6, 6, 1)).astype(np.float32))
    labels = tf.constant(rng.integers(4, size=(100, 4)))

    def loss(network, k):
        logits = network(images[k], training=True)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels[k], logits))

    flat, separate = _network(), _network()
    assert _bytes(flat.variables) == _bytes(separate.variables)
    before = _bytes(flat.variables)
    flat_optimizer = FlatOptimizer(_config(keys), flat.trainable_variables)
    optimizer = _ordinary(keys)
    if isinstance(optimizer, tf_keras.optimizers.legacy.Optimizer):
        optimizer._create_all_weights(separate.trainable_variables)
    else:
        optimizer.build(separate.trainable_variables)

    @tf.function
    def run_flat(rates):
        for k in tf.range(tf.shape(rates)[0]):
            with tf.GradientTape() as tape:
                scaled = flat_optimizer.scaled(loss(flat, k))
            flat_optimizer.update(flattened(flat_optimizer.gradients(tape, scaled)), rates[k])

    @tf.function
    def run_separate(rates):
        for k in tf.range(tf.shape(rates)[0]):
            with tf.GradientTape() as tape:
                value = loss(separate, k)
            gradients = tape.gradient(value, separate.trainable_variables)
            optimizer.learning_rate.assign(rates[k])
            optimizer.apply_gradients(zip(gradients, separate.trainable_variables, strict=True))

    run_flat(RATES)
    run_separate(RATES)
    assert _bytes(flat.variables) == _bytes(separate.variables)
    assert all(now != then for now, then in zip(_bytes(flat.variables), before, strict=True))


def _adabelief(w, g, t, state, rate, k):
    """arXiv 2010.07468 with rectification (arXiv 1908.03265) and decoupled decay; float64."""
    b1, b2, epsilon = k["beta_1"], k["beta_2"], k["epsilon"]
    state["m"] = b1 * state["m"] + (1 - b1) * g
    state["s"] = b2 * state["s"] + (1 - b2) * (g - state["m"]) ** 2 + epsilon
    m = state["m"] / (1 - b1**t)
    update = m / (np.sqrt(state["s"] / (1 - b2**t)) + epsilon)
    if k["rectify"]:
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * t * b2**t / (1 - b2**t)
        if length < 5:
            update = m
        else:
            update *= np.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return w - rate * (update + k["weight_decay"] * w)


def _adam(w, g, t, state, rate, k):
    """arXiv 1412.6980, algorithm 1 with the reordering of its section 2, and decoupled decay; float64."""
    b1, b2 = k["beta_1"], k["beta_2"]
    w = w - rate * k["weight_decay"] * w
    state["m"] = b1 * state["m"] + (1 - b1) * g
    state["s"] = b2 * state["s"] + (1 - b2) * g**2
    return w - rate * np.sqrt(1 - b2**t) / (1 - b1**t) * state["m"] / (np.sqrt(state["s"]) + k["epsilon"])


def _sgd(w, g, t, state, rate, k):
    """Polyak's and Nesterov's momentum, the learning rate inside the velocity; float64."""
    w = w - rate * k["weight_decay"] * w
    state["m"] = k["momentum"] * state["m"] - rate * g
    return w + (k["momentum"] * state["m"] - rate * g if k["nesterov"] else state["m"])


@KEYS
def test_against_the_formula_in_float64(keys):
    shapes = [(4, 3), (5,), ()]
    values, gradients = _initial(shapes), _gradients(30, shapes)
    gradients = [np.sign(g) * (0.1 + np.abs(g)) for g in gradients]  # beside nothing, epsilon and rounding say it all
    rates = RATES[:30]
    _, flat = _train_flat(keys, values, gradients, rates)
    formula = {"adabelief": _adabelief, "adam": _adam, "sgd": _sgd}[keys["name"]]
    for variable, value, gradient in zip(flat, values, gradients, strict=True):
        w, state = value.astype(np.float64), {"m": 0.0, "s": 0.0}
        for t, (g, rate) in enumerate(zip(gradient.astype(np.float64), rates.astype(np.float64), strict=True), start=1):
            w = formula(w, g, t, state, rate, keys)
        moved = np.abs(w - value).max()
        assert moved > 1e-3
        np.testing.assert_allclose(variable.numpy(), w, rtol=1e-5, atol=2e-3 * moved)


DECAYS = [{"decay": "weights"}, {"coupled": True}, {"decay": "weights", "coupled": True}]


@pytest.mark.parametrize("compile_from", [0, 2**20])
@pytest.mark.parametrize("how", DECAYS, ids=str)
@pytest.mark.parametrize("name", ["adabelief-decay", "adam-decay", "sgd-nesterov-decay"])
def test_decay_of_weights_alone_and_in_the_gradient_against_the_formula(name, how, compile_from):
    """Decoupled (arXiv 1711.05101) or the gradient of half its square; vectors and scalars: none with decay=weights."""
    keys, shapes = EVERY[name] | how, [(4, 3), (5,), (), (2, 1, 3, 2)]
    values, gradients = _initial(shapes), _gradients(30, shapes)
    gradients = [np.sign(g) * (0.1 + np.abs(g)) for g in gradients]
    _, flat = _train_flat(keys, values, gradients, RATES[:30], compile_from=compile_from)
    formula = {"adabelief": _adabelief, "adam": _adam, "sgd": _sgd}[keys["name"]]
    for variable, value, gradient in zip(flat, values, gradients, strict=True):
        decay = 0.0 if "decay" in how and value.ndim < 2 else keys["weight_decay"]
        beside, inside = (0.0, decay) if "coupled" in how else (decay, 0.0)
        w, state = value.astype(np.float64), {"m": 0.0, "s": 0.0}
        for t, (g, rate) in enumerate(zip(gradient.astype(float), RATES[:30].astype(float), strict=True), start=1):
            w = formula(w, g + inside * w, t, state, rate, keys | {"weight_decay": beside})
        moved = np.abs(w - value).max()
        np.testing.assert_allclose(variable.numpy(), w, rtol=1e-5, atol=2e-3 * moved)


@pytest.mark.parametrize("factor", [20.0, 0.05])
@pytest.mark.parametrize("name", ["adabelief-decay", "adam", "adam-decay", "sgd-nesterov-decay", "sgd-momentum"])
def test_a_learning_rate_of_some_variables_own_against_the_formula(name, factor):
    keys, shapes = EVERY[name], [(4, 3), (5,), (), (2, 3)]
    values, gradients = _initial(shapes), _gradients(30, shapes)
    gradients = [np.sign(g) * (0.1 + np.abs(g)) for g in gradients]
    factors = [1.0, factor, factor]  # those after are beside the network
    _, flat = _train_flat(keys, values, gradients, RATES[:30], factors=factors)
    formula = {"adabelief": _adabelief, "adam": _adam, "sgd": _sgd}[keys["name"]]
    for variable, value, gradient, times in zip(flat, values, gradients, [*factors, 1.0], strict=True):
        w, state = value.astype(np.float64), {"m": 0.0, "s": 0.0}
        for t, (g, rate) in enumerate(zip(gradient.astype(float), times * RATES[:30].astype(float), strict=True), 1):
            w = formula(w, g, t, state, rate, keys)
        moved = np.abs(w - value).max()
        np.testing.assert_allclose(variable.numpy(), w, rtol=1e-5, atol=2e-3 * moved)


def test_decay_that_is_nothing_or_of_all_is_the_optimizers_own():
    values, gradients = _initial(), _gradients(5)
    for keys in (EVERY["sgd-nesterov-decay"] | {"decay": "all", "coupled": False}, SGD | {"decay": "weights"}):
        plain = {key: value for key, value in keys.items() if key not in ("decay", "coupled")}
        one, other = (_train_flat(each, values, gradients, RATES[:5])[1] for each in (keys, plain))
        assert _bytes(one) == _bytes(other)


@pytest.mark.parametrize("scale_loss", [False, True])
def test_a_gradient_that_is_too_long_is_made_as_long_as_allowed(scale_loss):
    """All variables together; one that is not too long keeps its bits."""
    shapes = [(4, 3), (5,), ()]
    values, gradients = _initial(shapes), _gradients(6, shapes)
    norms = np.sqrt(sum((g.astype(float) ** 2).reshape(6, -1).sum(axis=1) for g in gradients))
    longest = float(np.sort(norms)[3]) * 0.999
    assert np.count_nonzero(norms > longest) == 3
    clipped = [g * np.minimum(1.0, longest / norms).reshape(6, *[1] * (g.ndim - 1)) for g in gradients]
    keys, rates = SGD | {"momentum": 0.9, "weight_decay": 0.1, "coupled": True}, np.full(6, 0.1, np.float32)
    _, found = _train_flat(keys | {"clip_norm": longest}, values, gradients, rates, scale_loss)
    for variable, value, gradient in zip(found, values, clipped, strict=True):
        w, state = value.astype(np.float64), {"m": 0.0, "s": 0.0}
        for t, g in enumerate(gradient, start=1):  # decay is added to what is clipped
            w = _sgd(w, g + 0.1 * w, t, state, 0.1, keys | {"weight_decay": 0.0})
        np.testing.assert_allclose(variable.numpy(), w, rtol=1e-5, atol=1e-6)
    one, other = (
        _train_flat(keys | {"clip_norm": limit}, values, gradients, rates, scale_loss)[1]
        for limit in (None, 1.001 * norms.max())
    )
    assert _bytes(one) == _bytes(other)


def test_the_average_of_weights_is_of_every_step_and_none_before():
    random = np.random.default_rng(3)
    weights = [[random.normal(size=shape).astype(np.float32) for shape in ((3, 2), (4,), ())] for _ in range(40)]
    variables = _variables(weights[0])
    average = Average(variables, 0.9)
    update = tf.function(average.update)
    average.assign()
    assert _bytes(variables) == [value.tobytes() for value in weights[0]]  # nothing to average yet
    for values in weights:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        update()
    average.assign()
    shares = 0.9 ** np.arange(39, -1, -1)
    for number, variable in enumerate(variables):
        each = np.stack([values[number].astype(np.float64) for values in weights])
        np.testing.assert_allclose(variable.numpy(), np.tensordot(shares / shares.sum(), each, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("keys", [ADABELIEF, ADAM, SGD], ids=lambda k: k["name"])
def test_the_learning_rate_of_each_step_is_used(keys):
    values, gradients = _initial([(2, 3)]), _gradients(4, [(2, 3)])
    optimizer, nothing = _train_flat(keys, values, gradients, np.zeros(4, np.float32))
    assert _bytes(nothing) == [value.tobytes() for value in values]
    assert optimizer.learning_rate.numpy() == 0
    optimizer, last = _train_flat(keys, values, gradients, np.array([0, 0, 0, 0.1], np.float32))
    assert optimizer.learning_rate.numpy() == np.float32(0.1)
    assert np.all(last[0].numpy() != values[0], where=gradients[0][3] != 0)
    _, half = _train_flat(keys, values, gradients, np.array([0, 0, 0, 0.05], np.float32))
    np.testing.assert_allclose(last[0].numpy() - values[0], 2 * (half[0].numpy() - values[0]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale_loss", [False, True])
@pytest.mark.parametrize("keys", [ADABELIEF, ADAM, SGD | {"momentum": 0.9}], ids=lambda k: k["name"])
def test_a_variable_without_a_gradient_stays(keys, scale_loss):
    used, unused = _variables(_initial([(3, 2), (4,)]))
    before = used.numpy(), unused.numpy()
    optimizer = FlatOptimizer(_config(keys), [unused, used], scale_loss=scale_loss)

    @tf.function
    def run():
        for _ in tf.range(5):
            with tf.GradientTape() as tape:
                loss = optimizer.scaled(tf.reduce_sum(used**2))
            optimizer.update(flattened(optimizer.gradients(tape, loss)), 0.01)

    run()
    assert unused.numpy().tobytes() == before[1].tobytes()
    assert np.all(np.abs(used.numpy()) < np.abs(before[0]))


@KEYS
def test_a_scaled_loss_gives_the_same_steps(keys):
    # the scale is a power of two, so scaling and unscaling lose no bit of a float32 gradient
    shapes = [(4, 3), (5,), ()]
    values, gradients = _initial(shapes), _gradients(20, shapes)
    _, plain = _train_flat(keys, values, gradients, RATES[:20])
    optimizer, scaled = _train_flat(keys, values, gradients, RATES[:20], scale_loss=True)
    assert optimizer.scaled(tf.constant(1.0)).numpy() >= 2**10
    assert _bytes(scaled) == _bytes(plain)


def test_scaling_saves_gradients_that_float16_cannot_hold():
    # 1e-9 is zero in float16; times a scale of 2^15 it is not
    def train(scale_loss):
        (weight,) = _variables([np.float32(1.0)])
        optimizer = FlatOptimizer(_config(SGD), [weight], scale_loss=scale_loss)
        with tf.GradientTape() as tape:
            loss = tf.cast(tf.cast(weight, tf.float16), tf.float32) * 1e-9
            loss = optimizer.scaled(loss)
        optimizer.update(flattened(optimizer.gradients(tape, loss)), 1e6)
        return 1 - weight.numpy()

    assert train(scale_loss=False) == 0
    assert train(scale_loss=True) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("compile_from", [0, 2**20])
@pytest.mark.parametrize(
    "keys",
    [ADABELIEF, ADAM, SGD | {"momentum": 0.9}, SGD | {"momentum": 0.9, "weight_decay": 0.1, "decay": "weights"}],
    ids=lambda k: k["name"],
)
def test_a_step_whose_scaled_gradient_overflows_is_left_out(keys, compile_from):
    scaled = {"scale_loss": True, "compile_from": compile_from}
    values, gradients = _initial([(3,), (2, 1)]), _gradients(3, [(3,), (2, 1)])
    gradients[1][1, 0] = np.inf
    _, first = _train_flat(keys, values, gradients, RATES[:1], **scaled)
    optimizer, both = _train_flat(keys, values, gradients, RATES[:2], **scaled)
    assert _bytes(both) == _bytes(first)
    fresh = FlatOptimizer(_config(keys), _variables(values), scale_loss=True)
    one = tf.constant(1.0)
    assert optimizer.scaled(one).numpy() == fresh.scaled(one).numpy() / 2
    _, all_three = _train_flat(keys, values, gradients, RATES[:3], **scaled)
    assert all(np.isfinite(variable.numpy()).all() for variable in all_three)
    assert all(one != another for one, another in zip(_bytes(all_three), _bytes(both), strict=True))
    if keys["name"] == "sgd":  # the others count the step in their bias correction, as tf_keras does
        _, expected = _train_flat(
            keys, values, [g[[0, 2]] for g in gradients], RATES[[0, 2]], compile_from=compile_from
        )
        assert _bytes(all_three) == _bytes(expected)


def test_the_flat_vector_holds_the_variables_in_order_and_reloads_them():
    values = _initial()
    optimizer, variables = _train_flat(ADAM, values, _gradients(3), RATES[:3])

    def together():
        return np.concatenate([variable.numpy().ravel() for variable in variables]).tobytes()

    assert optimizer.flat.numpy().tobytes() == together()
    for variable, value in zip(variables, _initial(seed=7), strict=True):
        variable.assign(value)
    assert optimizer.flat.numpy().tobytes() != together()
    optimizer.reload()
    assert optimizer.flat.numpy().tobytes() == together()


def test_adabelief_leaves_the_public_base_class_as_it_was():
    before = tf.keras.optimizers.Optimizer
    keys = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-14, "weight_decay": 0.0, "rectify": True}
    optimizers.adabelief(learning_rate=1e-3, **keys)
    assert tf.keras.optimizers.Optimizer is before
    assert before is not tf_keras.optimizers.legacy.Optimizer
