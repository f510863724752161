"""Sweeps in one process: every job ends with the bits that it has alone, and the step is traced once for them all."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from held import bits

from kdrun import stages
from kdrun.cli.main import main
from kdrun.registry import register
from kdrun.runs import record as runs
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.models import build as models  # noqa: E402
from kdrun.objectives.logits import kd  # noqa: E402
from kdrun.optimizers.flat import FlatOptimizer, flattened  # noqa: E402
from kdrun.training import network  # noqa: E402

SMALL = ["data.train_size=256", "data.validation_size=200", "data.test_size=200", "data.image_size=28", "epochs=2"]
SMALL += ["batch_size=64", "tensorboard.histograms=false", "model@teacher.model=convnet", "teacher.model.filters=[4,8]"]
CONVNET = ["model@student.model=convnet", "student.model.filters=[2]"]
MLP = ["model@student.model=mlp", "student.model.hidden_units=[8]"]

traces = []


@register("objective", "counted")
def counted(batch):
    """kd, with a note of every time that Python runs it in a graph: when a step is traced, not when it is taken."""
    if not tf.executing_eagerly():
        traces.append("counted")
    return kd(batch, scale_by_temperature_squared=True, standardise_logits=False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """The override that names a finished teacher."""
    run_dir = tmp_path_factory.mktemp("teacher") / "run"
    assert main([*SMALL, "stage=teacher", f"outputs={run_dir.parent}", f"hydra.run.dir={run_dir}"]) == 0
    return f"teacher.run={run_dir}"


@pytest.fixture(scope="module")
def counting(tmp_path_factory) -> list[str]:
    """What chooses the objective that counts."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "objective").mkdir()
    (folder / "objective/counted.yaml").write_text(
        "# @package _global_\nobjective:\n  counted: {weight: 1.0, weight_end: null, warmup_epochs: 0.0}\n"
    )
    return ["--config-dir", str(folder), "objective=counted"]


def swept(outputs: Path, *arguments) -> list[Path]:
    """The run directories of a sweep's jobs, in their order, and how often the counted objective was traced."""
    network.release()
    traces.clear()
    assert main(["-m", *arguments, f"outputs={outputs}", f"hydra.sweep.dir={outputs}"]) == 0
    return sorted((path.parent for path in outputs.glob("*/run.json")), key=lambda path: runs.read(path)["started"])


def alone(job: Path) -> Path:
    """The run directory of the same job, run when nothing is left of the jobs before."""
    network.release()
    traces.clear()
    run_dir = job.with_name(f"{job.name}_alone")
    run_dir.mkdir()
    stages.run(json.loads((job / "run.json").read_text())["config"], run_dir)
    return run_dir


@pytest.mark.slow
def test_every_job_has_the_bits_that_it_has_alone_and_one_trace_serves_them_all(teacher, counting, tmp_path):
    arguments = [*SMALL, *CONVNET, teacher, "stage=distill", "optimizer=adam"]
    jobs = swept(tmp_path, *counting, *arguments, "temperature=2,5", "alpha=0.5,0.9", "seed=0,1")
    traced = len(traces)
    values = list(product(("2", "5"), ("0.5", "0.9"), ("0", "1")))
    assert len(jobs) == len({bits(job)["predictions/test.npz"] for job in jobs}) == len(values)
    for job in jobs[:-1]:
        assert bits(alone(job)) == bits(job), job
        assert len(traces) == traced > 0
    own = tmp_path / "own"
    command = [sys.executable, "-m", "kdrun", *arguments, "temperature=5", "alpha=0.9", "seed=1"]
    ended = subprocess.run([*command, f"outputs={own}", f"hydra.run.dir={own}"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    named = bits(own)
    named["metrics.jsonl"] = named["metrics.jsonl"].replace(b'kd"', b'counted"')  # by what each calls its objective
    assert named == bits(jobs[-1])


STATES = {
    "adabelief and dropout": [*MLP, "student.model.hidden_dropout=0.5", "stage=student"],
    "adam, batch norm and a live teacher": [
        *["model@student.model=densenet", "student.model.blocks=[1,1]", "student.model.growth_rate=4"],
        *["stage=distill", "optimizer=adam", "teacher.cache=off", "data.augment.jitter=1"],
    ],
    "momentum and loss scale": [*CONVNET, "stage=student", "precision=mixed_float16", "optimizer=sgd"],
}
STATES["momentum and loss scale"] += ["student.model.filters=[4,8]", "optimizer.learning_rate=0.5"]  # it overflows


@pytest.mark.parametrize(
    "state", [pytest.param(name, marks=[] if "dropout" in name else pytest.mark.slow) for name in STATES]
)
def test_nothing_of_a_job_is_left_in_the_next(state, teacher, tmp_path):
    first, second = swept(tmp_path, *SMALL, teacher, *STATES[state], "seed=0,1")
    assert bits(alone(second)) == bits(second) != bits(first)


@pytest.mark.slow
def test_what_an_optimizer_remembers_would_be_noticed_if_it_were_left(tmp_path, monkeypatch):
    """The other tests can fail: without the optimizer's state being reset, jobs differ."""
    monkeypatch.setattr(FlatOptimizer, "state", [])
    first, second = swept(tmp_path, *SMALL, *MLP, "stage=student", "optimizer=adam", "seed=0,1")
    assert bits(alone(first)) == bits(first)
    assert bits(alone(second)) != bits(second)


def test_steps_and_loss_scale_are_reset(tmp_path):
    """Both counters, and a loss scale that has been halved: short runs hardly show them."""
    model = {"name": "mlp", "hidden_units": [4], "input_dropout": 0.0, "hidden_dropout": 0.0}
    sgd = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    made = network.Network(lambda seed: models.build(model, (2, 2, 1), 3, seed, "float32"), 0, sgd, scale_loss=True)
    optimizer = made.optimizer.optimizer

    def counters() -> tuple:
        return float(optimizer.loss_scale), int(optimizer.dynamic_counter), int(optimizer.iterations)

    fresh, weights = counters(), [weight.tobytes() for weight in made.weights()]
    for factor in (1.0, float("inf"), 1.0, 1.0):
        with tf.GradientTape() as tape:
            loss = made.optimizer.scaled(factor * tf.reduce_sum(made.model(tf.ones((1, 2, 2, 1)))))
        made.optimizer.update(flattened(made.optimizer.gradients(tape, loss)), tf.constant(0.1))
    assert counters() == (fresh[0] / 2, 2, 4)  # a step that was left out counts, too
    made.reset(0)
    assert counters() == fresh == (2.0**15, 0, 0)
    assert [weight.tobytes() for weight in made.weights()] == weights


@pytest.mark.slow
def test_another_batch_size_is_traced_again_and_another_learning_rate_is_not(teacher, counting, tmp_path):
    arguments = [*counting, *SMALL, *CONVNET, teacher, "stage=distill", "optimizer=adam"]
    jobs = swept(tmp_path, *arguments, "distill.batch_size=64,32", "optimizer.learning_rate=1e-3,1e-2")
    traced = len(traces)
    assert bits(alone(jobs[1])) == bits(jobs[1])
    assert traced == 2 * len(traces) > 0


@pytest.mark.slow
def test_another_student_between_is_traced_and_leaves_the_right_bits(teacher, counting, tmp_path):
    arguments = [*counting, *SMALL, *CONVNET, teacher, "stage=distill", "optimizer=adam"]
    swept_jobs = swept(tmp_path, *arguments, "student.model.filters=[2],[3]", "alpha=0.5,0.9")
    traced = len(traces)
    assert len(swept_jobs) == 4
    for job in swept_jobs[2:]:
        assert bits(alone(job)) == bits(job)
    assert traced == 2 * len(traces) > 0
