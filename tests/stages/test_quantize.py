"""Students that are trained for int8, through the command line: what they begin with, learn by, keep and are compared
with."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
from held import arrays
from made import done, lines
from tiny_images import images, write

from kdrun.cli.main import main
from kdrun.comparison import gathering
from kdrun.runs import record as runs

STILL = ["optimizer=sgd", "optimizer.learning_rate=1e-30", "batch_size=320"]  # a step, which moves no weight by a bit
NET = '''
from kdrun.registry import register


@register("model", "nested", features={"trunk": "trunk"}, maps=["trunk"])
def nested(inputs, num_classes):
    """A net that has another one in it, and a layer with weights of a kind of its own."""
    import tf_keras
    from tf_keras import layers

    class Scale(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight("scale", [shape[-1]], initializer="ones")

        def call(self, x):
            return self.scale * x

    image = tf_keras.Input(inputs.shape[1:])
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3)(image)))
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = tf_keras.Model(image, Scale()(x), name="trunk")(inputs)
    return layers.Dense(num_classes)(layers.Flatten()(x))
'''


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("quantize")


@pytest.fixture(scope="module")
def given(outputs) -> list[str]:
    return write(outputs / "four.npz")


@pytest.fixture(scope="module")
def teacher(outputs, given) -> list[str]:
    return [f"teacher.run={done(outputs, *given, 'stage=teacher')}"]


@pytest.fixture(scope="module")
def before(outputs, given) -> Path:
    """The student in floats that others go on from."""
    return done(outputs, *given, "stage=student", "epochs=3")


@pytest.fixture(scope="module")
def quantized(before) -> list[str]:
    return ["student.quantize=int8", f"student.initial_weights={before}"]


def by_range(x: np.ndarray) -> np.ndarray:
    """On the grid of its own range and zero, of 256 steps, in float64."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    step = (high - low) / 255
    return (np.clip(np.round(x / step) + np.round(-low / step), 0, 255) - np.round(-low / step)) * step


def by_channel(w: np.ndarray) -> np.ndarray:
    step = np.abs(np.float64(w)).max(axis=0) / 127
    return np.round(w / step) * step


def rounded_logits(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Those of an mlp of one hidden layer on all training images as one batch, and their labels."""
    network, data = reference.network(run, "best"), images()
    kernel, bias, last_kernel, last_bias = (v.numpy().astype(np.float64) for v in network.trainable_variables)
    pixels = by_range(data["x_train"][64:].reshape(320, 64) / 255)
    hidden = by_range(np.maximum(pixels @ by_channel(kernel) + bias, 0))
    return by_range(hidden @ by_channel(last_kernel) + last_bias), data["y_train"][64:]


def test_the_loss_of_a_step_is_of_rounded_values_and_the_weights_are_the_floats(outputs, given, before, quantized):
    found = done(outputs, *given, "stage=student", *STILL, *quantized)
    z, labels = rounded_logits(before)
    (line,), plain = lines(found), reference.logits(before, "best", images()["x_train"][64:, ..., np.newaxis] / 255)
    assert line["loss"] == pytest.approx(reference.cross_entropy(z, labels), rel=1e-5)
    assert abs(line["loss"] - reference.cross_entropy(plain, labels)) > 1e-4 * line["loss"]
    file = "checkpoints/best.weights.h5"
    assert arrays(found / file) == arrays(before / file)
    test = {run: runs.read(run)["results"]["test"]["best"] for run in (found, before)}
    assert test[found]["cross_entropy"] == pytest.approx(test[before]["cross_entropy"], rel=1e-6)  # in floats
    log = (found / "kdrun.log").read_text()
    assert log.count("student: weights, and values at 3 places, are rounded as for int8\n") == 1
    assert runs.read(found)["identity"]["quantize"] == "int8"
    assert "quantize" not in runs.read(before)["identity"]


def test_distilled_it_learns_by_the_teacher_and_is_a_setting_of_its_own(outputs, given, teacher, before, quantized):
    features = "objective=[kd,fitnet]"
    begins = [*given, *teacher, "stage=distill", features, f"student.initial_weights={before}"]
    plain, rounded = done(outputs, *begins), done(outputs, *begins, "student.quantize=int8")
    file = "checkpoints/last.weights.h5"
    assert arrays(plain / file) != arrays(rounded / file)
    assert lines(plain)[0]["fitnet"] != lines(rounded)[0]["fitnet"]  # it is told the rounded features
    rows = gathering.frame(plain, rounded).set_index("run").loc[[str(plain), str(rounded)]]
    assert list(rows["problem"]) == ["", ""] and list(rows["quantize"]) == ["", "int8"]
    assert not rows[["group", "student", "study"]].duplicated(keep=False).any()


def test_a_net_of_a_file_is_rounded_where_it_is_known(outputs, given, tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET)
    own = [*(each for each in given if not each.startswith("student.model")), f"plugins=[{tmp_path / 'net.py'}]"]
    own = [each.replace("student.model=mlp", "student.model=nested") for each in own] + ["stage=student"]
    first = done(outputs, *own)
    found = done(outputs, *own, "student.quantize=int8", f"student.initial_weights={first}", "epochs=2")
    log = (found / "kdrun.log").read_text()
    assert "weights, and values at 5 places, are rounded as for int8; the weights of 1 Scale are not" in log
    assert lines(found)[1]["loss"] < lines(first)[0]["loss"]


def test_what_it_cannot_go_with_is_refused_in_one_line(outputs, given, quantized, capsys):
    made = set(outputs.glob("*/*"))
    for overrides, said in (
        (quantized[:1], "Train that first, and give its run: student.initial_weights=RUN"),
        (
            [*quantized, "precision=mixed_bfloat16"],
            "precision=mixed_bfloat16 cannot hold the steps of student.quantize",
        ),
        (["student.quantize=int4"], "student.quantize must be one of int8"),
        (["++teacher.quantize=int8"], "teacher.quantize"),
        ([*quantized, "student.model.hidden_units=[9]"], "is of another net"),
    ):
        assert main([*given, "stage=student", *overrides, f"outputs={outputs}"]) == 2, overrides
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, (overrides, err)
    assert set(outputs.glob("*/*")) == made


@pytest.mark.slow
def test_a_study_over_seeds_goes_on_from_one_run(outputs, given, teacher, quantized):
    assert main([*given, *teacher, *quantized, "seeds=2", f"outputs={outputs / 'study'}"]) == 0
    (study,) = (outputs / "study").glob("pipeline/*")
    found = [json.loads(path.read_text()) for path in (outputs / "study").glob("*/*/run.json")]
    assert {each["identity"].get("quantize") for each in found if each["stage"] in ("student", "distill")} == {"int8"}
    assert "distilled student, for int8" in (study / "comparison.md").read_text()
