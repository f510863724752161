"""Half precision: every bias counts, forwards and backwards, and gradients that float16 cannot hold are scaled."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference

from kdrun.cli.main import main
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402

from kdrun.data import datasets  # noqa: E402
from kdrun.models.build import build  # noqa: E402
from kdrun.models.layers import Pointwise  # noqa: E402

HALVES = {"mixed_bfloat16": 2.0**-8, "mixed_float16": 2.0**-11}  # by how much a rounded number may be off
POLICIES = pytest.mark.parametrize("policy", HALVES)
NETS = {
    "densenet": {"growth_rate": 3, "blocks": [2, 1]},
    "convnet": {"filters": [4, 6, 5]},
    "mlp": {"hidden_units": [16, 12], "input_dropout": 0.2, "hidden_dropout": 0.5},
}


def made(name: str, policy: str):
    """A network with weights of which none is zero; biases are as large as what they are added to."""
    network, random = build({"name": name, **NETS[name]}, (13, 13, 1), 10, 0, policy), np.random.default_rng(3)
    values = []
    for weight in network.weights:
        if "variance" in weight.name or "gamma" in weight.name:
            values.append(0.5 + random.random(weight.shape))
        elif len(weight.shape) == 1:
            values.append(random.normal(size=weight.shape))
        else:
            values.append(random.normal(size=weight.shape) / np.sqrt(np.prod(weight.shape[:-1])))
    network.set_weights(values)
    return network


def images(count: int = 32) -> np.ndarray:
    return np.random.default_rng(4).random((count, 13, 13, 1), dtype=np.float32)


def biases(network) -> list[tf.Variable]:
    return [weight for weight in network.weights if "bias" in weight.name]


def root_mean_square(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


@POLICIES
@pytest.mark.parametrize("name", NETS)
def test_every_bias_counts_forwards(name, policy):
    """Half precision answers as float32 does, to its rounding, and without any one of the biases would not."""
    full, half = made(name, "float32"), made(name, policy)
    assert half.layers[1].compute_dtype != "float32"
    expected = full(images()).numpy()
    tolerance = 3.5 * HALVES[policy] * expected.std()
    assert root_mean_square(half(images()).numpy() - expected) < tolerance
    assert biases(full)
    for bias in biases(full):
        value = bias.numpy()
        bias.assign(0 * value)
        assert root_mean_square(full(images()).numpy() - expected) > 2 * tolerance, bias.name
        bias.assign(value)


@POLICIES
@pytest.mark.parametrize("name", NETS)
def test_every_weight_gets_the_gradient_that_it_gets_in_float32(name, policy):
    labels, found = np.arange(32) % 10, []
    for network in (made(name, "float32"), made(name, policy)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, network(images())))
        found.append(tape.gradient(loss, network.trainable_variables))
    for weight, expected, gradient in zip(network.trainable_variables, *found, strict=True):
        expected, gradient = expected.numpy().ravel(), gradient.numpy().ravel()
        assert np.linalg.norm(expected) > 0, weight.name
        off = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
        assert off < 60 * HALVES[policy], weight.name


@pytest.mark.parametrize("policy", ["float32", *HALVES])
def test_pointwise_against_numpy(policy):
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 5, 4, 7))
    layer = Pointwise(6, dtype=tf_keras.mixed_precision.Policy(policy))
    layer(tf.constant(x, layer.compute_dtype))  # makes its weights
    kernel, bias = random.normal(size=(1, 1, 7, 6)), 3 * random.normal(size=6)
    layer.set_weights([kernel, bias])
    expected = np.einsum("bhwc,cd->bhwd", x, kernel[0, 0]) + bias
    found = layer(tf.constant(x, layer.compute_dtype)).numpy().astype(np.float64)
    off = 8 * HALVES.get(policy, 2.0**-23)
    np.testing.assert_allclose(found, expected, rtol=off, atol=off * np.abs(expected).max())


@pytest.mark.slow
def test_gradients_that_float16_cannot_hold_are_scaled(tmp_path):
    """The loss is a ten-millionth of kd's, the rate millions of times as high: without a scale nothing would move, and
    with one that is not taken back nothing would be learned."""
    sizes = {"validation": 200, "train": 640, "test": 50}
    logits = {name: 8.0 * np.eye(10, dtype=np.float32)[reference.split(name, **sizes)[1]] for name in sizes}
    keys = {**{f"{name}_size": size for name, size in sizes.items()}, "name": "mnist"}
    np.savez(tmp_path / "logits.npz", order=datasets.order(datasets.load(keys)), **logits)
    command = [*(f"data.{name}_size={size}" for name, size in sizes.items()), "data.image_size=28", "stage=distill"]
    command += [f"teacher.logits={tmp_path / 'logits.npz'}", "alpha=1", "temperature=1", "objective.kd.weight=1e-7"]
    command += ["optimizer=sgd", "optimizer.momentum=0", "optimizer.learning_rate=2e6", "batch_size=32", "epochs=2"]
    command += ["model@teacher.model=mlp", "model@student.model=mlp", "student.model.hidden_units=[16]"]
    command += ["measure_latency=false", "tensorboard.histograms=false"]
    losses = {}
    for precision in ("float32", "mixed_float16"):
        outputs = tmp_path / precision
        assert main([*command, f"precision={precision}", f"outputs={outputs}"]) == 0
        (metrics,) = Path(outputs).glob("distill/*/metrics.jsonl")
        found = [json.loads(line) for line in metrics.read_text().splitlines()]
        losses[precision] = [line["cross_entropy"] for line in found if line["split"] == "validation"]
    assert losses["float32"][-1] < 0.7 * np.log(10)
    np.testing.assert_allclose(losses["mixed_float16"], losses["float32"], rtol=0.1)
