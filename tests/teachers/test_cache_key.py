"""The key of the teacher's logits: every key of the config counts, but for those listed here; of subsets and layers,
what is kept is what the teacher says of just these."""

from pathlib import Path

import hydra
import numpy as np
import pytest
from another_value import changed
from hydra.core.global_hydra import GlobalHydra
from tiny_images import write

from kdrun.cli.compose import config_dir, plain
from kdrun.cli.main import main
from kdrun.config.schema import flatten, for_role
from kdrun.data import datasets
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

from kdrun.teachers import (  # noqa: E402
    cache,
    checkpoint,
    outputs,
)

# Keys, or the beginnings of keys, that a teacher's logits do not depend on, and why.
FREE = {
    "stage": "asked for all",
    "plugins": "the files' contents count",
    "seed": "draws no images here",
    "epochs": "of training",
    "patience": "of training",
    "batch_size": "of training",
    "optimizer": "of training",
    "distill": "of training",
    "student.model": "of training",
    "student.classifier": "of training",
    "student.epochs": "of training",
    "student.patience": "of training",
    "student.batch_size": "of training",
    "checkpoint": "of training",
    "temperature": "of the loss",
    "temperature_end": "of the loss",
    "alpha": "of the loss",
    "alpha_end": "of the loss",
    "alpha_warmup_epochs": "of the loss",
    "annealing": "of the loss",
    "objective": "of the loss",
    "teacher.combine": "of the loss",
    "teacher.weights": "of the loss",
    "teacher.shuffle": "of the loss",
    "evaluation_batch_size": "of the student",
    "measure_latency": "of the student",
    "compare": "of how runs are held against each other",
    "tensorboard": "of what is shown",
    "tracker": "of what is shown",
    "outputs": "where things are",
    "cache_dir": "where things are",
    "sweep": "where things are",
    "resume": "where things are",
    "reuse": "where things are",
    "threads": "like the machine",
    "print": "what is shown",
    "export": "after training",
    "workers": "like the machine",
    "devices": "like the machine",
    "cluster": "like the machine",
    "task": "like the machine",
    "cluster_timeout": "like the machine",
    "sync_batch_norm": "of training",
    "seeds": "of students, or what another teacher is made with",
    "teachers": "of teachers, each of which is asked",
    "controls": "of the students",
    "arms": "of the students",
    "data.on_device": "the same bits either way",
    "data.transfer": "the contents' sha256 counts",
    "data.transfer_store": "where things are",
    "data.augment": "the default of the student's",
    "data.image_size": "the teacher's run has its own",
    "student.image_size": "the teacher's run has its own",
    "data.normalise": "the teacher's run has its own",
    "student.normalise": "the teacher's run has its own",
    "data.train_on_validation": "the default of the student's",
    **{
        f"teacher.{key}": "its weights' sum is there"
        for key in ("run", "model", "seed", "epochs", "patience", "batch_size", "augment", "train_on_validation")
    },
    **{f"teacher.{key}": "its run has its own" for key in ("image_size", "normalise")},
    **{
        f"{role}.{key}": "of training"
        for role in ("teacher", "student")
        for key in ("initial_weights", "freeze", "new_learning_rate", "mixup", "cutmix", "label_smoothing")
    },
    "student.quantize": "of training",
    "teacher.overlap": "what is refused",
    "teacher.logits": "instead of them",
    "teacher.file": "instead of them",
    "teacher.input": "of a teacher.file",
    "teacher.classes": "of a teacher.file",
    "teacher.weak": "what is refused",
    "teacher.time_limit": "what is refused",
    "teacher.cache": "whether they are kept",
    "teacher.cache_features": "whether features are kept",
}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[list[str], Path]:
    """The overrides that choose a data set and a finished teacher; and its run directory."""
    outputs = tmp_path_factory.mktemp("given")
    overrides, teacher = write(outputs / "my.npz"), outputs / "teacher"
    overrides[overrides.index("data.split=first")] = "data.split=stratified"  # whose seed counts
    assert main([*overrides, "stage=teacher", "epochs=2", f"outputs={outputs}", f"hydra.run.dir={teacher}"]) == 0
    return [*overrides, f"teacher.run={teacher}"], teacher


def composed(*overrides) -> dict:
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = plain(hydra.compose("config", list(overrides)))
    GlobalHydra.instance().clear()
    return config


def key_of(config: dict, teacher: Path) -> str:
    students = for_role(config, "student")
    return cache.key(outputs.cache_key(students, teacher, datasets.load(students["data"], config["seed"])))


@pytest.mark.parametrize(("subset", "seed_counts"), [([], False), (["data.train_fraction=0.25"], True)])
def test_another_value_is_another_entry(given, subset, seed_counts):
    overrides, teacher = given
    config = composed(*overrides, *subset)
    free = {key: reason for key, reason in FREE.items() if key != "seed" or not seed_counts}
    expected = {
        key: not any(key == name or key.startswith(f"{name}.") for name in free)
        for key, _ in flatten(config)
        if key != "data.path"  # what it holds counts: see test_cache
    }
    before = key_of(config, teacher)
    assert {key: key_of(changed(config, key), teacher) != before for key in expected} == expected
    assert sum(expected.values()) >= 13


# Choices of training images, each beside another that leaves as many
SUBSETS = [
    ["data.exclude_classes=[2]"],
    ["data.exclude_classes=[3]"],
    ["data.include_classes=[0,1]"],
    ["data.include_classes=[2,3]"],
    ["data.train_fraction=0.25", "seed=0"],
    ["data.train_fraction=0.25", "seed=1"],
    ["data.train_fraction=0.001"],  # one of each class
    ["data.train_fraction=0.001", "student.train_on_validation=true"],
]


def layers_of(teacher: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a teacher's layers, by its weights alone."""
    network = checkpoint.load(teacher, "float32")
    weights = {name: network.get_layer(name).get_weights() for name in ("hidden1", "hidden2", "classifier")}
    outputs, x = {}, images.reshape(len(images), -1) / 255.0
    for name, (kernel, bias) in weights.items():
        x = x @ kernel.astype(float) + bias
        x = outputs[name] = x if name == "classifier" else np.maximum(x, 0)
    return outputs


@pytest.mark.slow
def test_of_each_subset_the_logits_kept_are_of_its_images(given, tmp_path):
    overrides, teacher = given
    taken, found = set(), []
    for subset in SUBSETS:
        assert main([*overrides, *subset, "stage=cache", f"outputs={tmp_path}"]) == 0
        (entry,) = {path.parent for path in (tmp_path / ".cache/teachers").glob("*/train.npy")} - taken
        taken.add(entry)
        config = composed(*overrides, *subset)
        images = datasets.load(for_role(config, "student")["data"], config["seed"]).train.images
        expected = layers_of(teacher, images)["classifier"]
        np.testing.assert_allclose(np.load(entry / "train.npy"), expected[np.newaxis], rtol=0, atol=1e-5)
        found.append(images)
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert len(one) == len(other) and one.tobytes() != other.tobytes()


def test_of_layers_of_the_same_shape_each_ones_own_features_are_kept(given, tmp_path):
    overrides, teacher = given
    whole, half = (
        composed(*overrides, f"cache_dir={tmp_path}", f"data.train_fraction={fraction}") for fraction in (1.0, 0.5)
    )
    for config in (whole, half, whole):
        dataset = datasets.load(config["data"], config["seed"])
        expected = layers_of(teacher, dataset.train.images)
        for names in (["hidden1"], ["hidden2"], ["hidden2", "hidden1"]):
            kept = outputs.cached_features(config, teacher, dataset, {name: name for name in names})
            assert list(kept) == names
            for name in names:
                np.testing.assert_allclose(kept[name], expected[name][np.newaxis], rtol=0, atol=1e-5)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 4
