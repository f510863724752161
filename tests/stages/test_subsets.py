"""A fraction of the training images, drawn by the seed: which images a network was trained on, alone, distilled, in a
sweep and in a pipeline, told by the bits of runs on files that hold just these."""

from pathlib import Path

import numpy as np
import pytest
from held import bits
from tiny_images import images, write

from kdrun.cli.main import main
from kdrun.data import datasets
from kdrun.runs import record as runs
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

from kdrun.training import network  # noqa: E402

SUBSET = ["data.train_fraction=0.25"]
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> list[str]:
    """The overrides that choose a data set and a finished teacher."""
    outputs = tmp_path_factory.mktemp("given")
    overrides, teacher = write(outputs / "my.npz"), outputs / "teacher"
    assert main([*overrides, "stage=teacher", f"outputs={outputs}", f"hydra.run.dir={teacher}"]) == 0
    return [*overrides, f"teacher.run={teacher}"]


def alone(outputs: Path, *arguments) -> Path:
    """The run directory of a command that finds nothing of another's in this process."""
    network.release()
    assert main([*arguments, f"outputs={outputs}", f"hydra.run.dir={outputs / 'run'}"]) == 0
    return outputs / "run"


def swept(outputs: Path, *arguments) -> dict[tuple, Path]:
    """The jobs of a sweep over the seeds in one process, by seed and alpha."""
    network.release()
    assert main(["-m", *arguments, f"seed={','.join(map(str, SEEDS))}", f"outputs={outputs}", "sweep=s"]) == 0
    configs = {path.parent: runs.read(path.parent)["config"] for path in outputs.glob("sweeps/s/*/run.json")}
    return {(config["seed"], config["alpha"]): run_dir for run_dir, config in configs.items()}


@pytest.fixture(scope="module")
def students(given, tmp_path_factory) -> dict[int, Path]:
    """Students trained alone, by seed, in one process."""
    found = swept(tmp_path_factory.mktemp("students"), *given, *SUBSET, "stage=student", "alpha=0.9")
    return {seed: found[seed, 0.9] for seed in SEEDS}


@pytest.fixture(scope="module")
def distilled(given, tmp_path_factory) -> dict[tuple, Path]:
    """Distilled students by seed and alpha, in one process."""
    return swept(tmp_path_factory.mktemp("distilled"), *given, *SUBSET, "stage=distill", "alpha=0,0.9")


def trained(run_dir: Path) -> dict[str, bytes]:
    return {name: held for name, held in bits(run_dir).items() if name != "metrics.jsonl"}  # which has a teacher's, too


@pytest.mark.parametrize("seed", SEEDS)
def test_a_student_learns_from_the_images_that_its_own_seed_draws(seed, given, students, tmp_path):
    data = runs.read(students[seed])["config"]["data"]
    drawn, others = (datasets.load(data, each).train for each in (seed, 1 - seed))
    assert len(drawn.labels) == len(others.labels) == 80 and drawn.images.tobytes() != others.images.tobytes()
    arrays = images()
    x, y = arrays["x_train"][:64], arrays["y_train"][:64]  # for validation
    arrays["x_train"] = np.concatenate([x, drawn.images[..., 0]])
    arrays["y_train"] = np.concatenate([y, drawn.labels])
    own = alone(tmp_path, *write(tmp_path / "own.npz", **arrays), "stage=student", f"seed={seed}")
    assert bits(own) == bits(students[seed])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_distilled_student_learns_from_the_images_of_the_one_alone(seed, students, distilled):
    """Without the teacher's part it is the one alone."""
    assert trained(distilled[seed, 0.0]) == trained(students[seed]) != trained(distilled[seed, 0.9])


@pytest.mark.slow
def test_a_pipelines_students_are_those_of_a_sweep(given, students, distilled, tmp_path):
    """Nor does a sweep's second student hear what the teacher says of the first one's images."""
    alone(tmp_path, *given, *SUBSET, "seed=1")
    for stage, expected in (("student", students[1]), ("distill", distilled[1, 0.9])):
        (found,) = tmp_path.glob(f"{stage}/*/run.json")
        assert bits(found.parent) == bits(expected)
