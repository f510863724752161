"""The values in conf against those that were published, each written here as its source has it."""

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from kdrun.cli.compose import config_dir, plain
from kdrun.config.schema import flatten

# Presets. Of arXiv 1503.02531 only what it says; rates, epochs and batch sizes are kdrun's own.
_NOTEBOOK = {
    "seed": 42,
    "data.name": "mnist",
    "data.validation_size": 10_000,
    "data.train_size": None,
    "data.test_size": None,
    "data.image_size": 112,
    "data.augment.jitter": 0,
    "data.augment.flip": False,
    "teacher.model.name": "densenet",
    "teacher.model.growth_rate": 32,
    "teacher.model.blocks": [6, 12, 24, 16],
    "student.model.name": "densenet",
    "student.model.growth_rate": 12,
    "student.model.blocks": [6, 12, 24, 16],
    "optimizer.name": "adabelief",
    "optimizer.learning_rate": 1e-3,
    "optimizer.beta_1": 0.9,
    "optimizer.beta_2": 0.999,
    "optimizer.epsilon": 1e-14,
    "optimizer.weight_decay": 1e-5,
    "optimizer.rectify": True,
    "optimizer.schedule": "constant",
    "optimizer.warmup_epochs": 0,
    "alpha": 0.9,
    "temperature": 10,
    "teacher.epochs": 10,
    "student.epochs": 10,
    "distill.epochs": 10,
    "distill.mixup": 0,
    "distill.peers": 0,
    "objective.kd.weight": 1,
    "objective.kd.standardise_logits": False,
}
_KERAS = {
    "data.name": "mnist",
    "data.image_size": 28,
    "teacher.model.name": "convnet",
    "teacher.model.filters": [256, 512],
    "student.model.name": "convnet",
    "student.model.filters": [16, 32],
    "optimizer.name": "adam",
    "optimizer.learning_rate": 1e-3,
    "optimizer.epsilon": 1e-7,
    "optimizer.weight_decay": 0,
    "optimizer.schedule": "constant",
    "teacher.batch_size": 32,
    "student.batch_size": 32,
    "distill.batch_size": 32,
    "teacher.epochs": 5,
    "student.epochs": 3,
    "distill.epochs": 3,
    "temperature": 10,
    "alpha": 0.9,  # its own 0.1 weighs the labels
    "objective.kd.scale_by_temperature_squared": True,
}
_PAPERS_STUDENT = {
    "student.model.name": "mlp",
    "student.model.hidden_units": [800, 800],
    "student.model.input_dropout": 0,
    "student.model.hidden_dropout": 0,
    "student.model.max_norm": None,
    "student.augment.jitter": 0,
    "optimizer.weight_decay": 0,
}
_PAPER = _PAPERS_STUDENT | {
    "data.name": "mnist",
    "data.image_size": 28,
    "data.train_on_validation": True,  # all 60,000
    "data.train_size": None,
    "data.test_size": None,
    "teacher.model.name": "mlp",
    "teacher.model.hidden_units": [1200, 1200],
    "teacher.augment.jitter": 2,
    "temperature": 20,
    "objective.kd.scale_by_temperature_squared": True,
}
_CIFAR_100 = {
    "stage": "pipeline",
    "data.name": "cifar100",
    "data.labels": "fine",
    "data.image_size": 32,
    "data.train_on_validation": True,  # all 50,000
    "data.augment.jitter": 4,
    "data.augment.flip": True,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.05,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": False,
    "optimizer.weight_decay": 5e-4,
    "optimizer.decay": "all",
    "optimizer.coupled": True,
    "optimizer.schedule": "step",
    "optimizer.step_epochs": [150, 180, 210],
    "optimizer.step_factor": 0.1,
    **{f"{role}.epochs": 240 for role in ("teacher", "student", "distill")},
    **{f"{role}.batch_size": 64 for role in ("teacher", "student", "distill")},
    "temperature": 4,
    "alpha": 0.9,
    "objective.kd.weight": 1,
    "objective.kd.scale_by_temperature_squared": True,
}


def _pair(name, teacher, student, **keys):
    roles = {"teacher": teacher, "student": student}
    nets = {f"{role}.model.{key}": value for role in roles for key, value in {"name": name, **keys}.items()}
    return _CIFAR_100 | nets | {f"{role}.model.depth": depth for role, depth in roles.items()}


PRESETS = {
    "notebook": _NOTEBOOK
    | {"teacher.batch_size": 128, "student.batch_size": 256, "distill.batch_size": 128}
    | {"objective.kd.scale_by_temperature_squared": False},
    # the notebook's, but for what the preset says
    "notebook_32": _NOTEBOOK
    | {f"{role}.batch_size": 128 for role in ("teacher", "student", "distill")}
    | {"data.image_size": 32, "objective.kd.scale_by_temperature_squared": True},
    "tuned_32": _NOTEBOOK
    | {"data.image_size": 32, "data.augment.jitter": 2, "temperature": 4}
    | {"optimizer.schedule": "cosine", "optimizer.warmup_epochs": 1},
    "keras_example": _KERAS,
    "paper/keras_example": _KERAS,
    "paper/teacher": _PAPER | {"stage": "teacher"},
    "paper/student": _PAPER | {"stage": "student"},
    "paper/distilled": _PAPER | {"stage": "pipeline"},
    "paper/distilled_views": _PAPER
    | {"stage": "pipeline", "teacher.augment.jitter": 2, "student.augment.jitter": 1, "student.augment.views": 8},
    "paper/temperatures": _PAPER,
    "paper/logit_matching": _PAPER | {"alpha": 1},
    "paper/no_threes": _PAPER | {"data.exclude_classes": [3], "student.train_on_validation": False},
    "paper/only_7_8": _PAPER | {"data.include_classes": [7, 8], "student.train_on_validation": False},
    "paper/few_labels": _PAPER | {"data.train_fraction": 0.03, "student.train_on_validation": False},
    "paper/ensemble": _PAPERS_STUDENT | {"stage": "distill", "teacher.combine": "probabilities"},
    "paper/specialists": {"stage": "specialists", "data.name": "fashion_mnist", "specialist.epochs": 5},
    "quick": {
        "data.image_size": 28,
        "data.train_fraction": 0.02,
        "seeds": 5,
        "teacher.model.hidden_units": [800, 800],
        "student.model.hidden_units": [100],
        "optimizer.name": "adam",
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "cosine",
        "temperature": 10,
        "alpha": 1,
        "controls.label_smoothing.alpha": 1,
        "controls.shuffled_within_class.teacher.shuffle": "within_class",
    },
    "cifar100/resnet56_resnet20": _pair("resnet", 56, 20, widths=[16, 16, 32, 64]),
    "cifar100/resnet32x4_resnet8x4": _pair("resnet", 32, 8, widths=[32, 64, 128, 256]),
    "cifar100/vgg13_vgg8": _pair("vgg", 13, 8),
    "cifar100/wrn_40_2_wrn_16_2": _pair("wide_resnet", 40, 16, width=2),
    "convnets": {
        "data.image_size": 28,
        "teacher.model.filters": [32, 64, 128],
        "student.model.filters": [4, 8],
        "optimizer.name": "adam",
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "cosine",
        "temperature": 4,
    },
}
# Objectives: the settings that their papers, or their authors' code, give them.
OBJECTIVES = {
    "kd": {"weight": 1, "scale_by_temperature_squared": True, "standardise_logits": False},
    "logit_mse": {"weight": 1, "zero_mean": False, "standardise_logits": False},
    "dkd": {"weight": 1, "target_weight": 1, "non_target_weight": 8, "standardise_logits": False},
    "nkd": {"weight": 1, "non_target_weight": 1.5, "standardise_logits": False},
    "label_smoothing": {"weight": 1, "smoothing": 0.1},
    "fitnet": {"weight": 100, "layers": ["middle"]},
    "attention": {"weight": 1000, "layers": ["stages"]},
    "similarity": {"weight": 3000, "layers": ["last"]},
    "relational": {"weight": 1, "distance_weight": 25, "angle_weight": 50, "layers": ["embedding"]},
    "correlation": {"gamma": 0.4, "order": 2, "layers": ["embedding"]},
    "contrastive": {"weight": 0.8, "dimensions": 128, "negatives": 16384, "contrastive_temperature": 0.07}
    | {"momentum": 0.5, "layers": ["embedding"]},
    "simkd": {"weight": 1, "layers": ["projection:embedding"]},
}
# What else a choice sets.
CHOICES = {
    "objective=kd": {"alpha": 0.9, "temperature": 10},
    "objective=kd_unscaled": {"alpha": 0.9, "objective.kd.scale_by_temperature_squared": False},
    "objective=dkd": {"alpha": 0.5, "temperature": 4},
    "objective=nkd": {"alpha": 0.5, "temperature": 1},
    "objective=label_smoothing": {"alpha": 1},
    "objective=simkd": {"alpha": 1, "student.classifier": "teacher"},
    "objective=function_matching": {"alpha": 1, "distill.mixup": 1, "objective.kd.weight": 1}
    | {"objective.kd.scale_by_temperature_squared": True},
    **{
        f"objective={name}": {"alpha": 0.5}
        for name in ("fitnet", "attention", "similarity", "relational", "correlation", "contrastive")
    },
    "stage=mutual": {"stage": "distill", "alpha": 0.5, "temperature": 1, "distill.peers": 1},
    "control=shuffled": {"teacher.shuffle": "all"},
    "control=shuffled_within_class": {"teacher.shuffle": "within_class"},
    "control=label_smoothing": {"alpha": 1, "objective.label_smoothing.smoothing": 0.1},
    "optimizer=adam": {"optimizer.beta_1": 0.9, "optimizer.beta_2": 0.999, "optimizer.epsilon": 1e-7}
    | {"optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0},
    "optimizer=sgd": {"optimizer.learning_rate": 0.05, "optimizer.momentum": 0.9, "optimizer.nesterov": False},
    "model@student.model=densenet_12": {"student.model.growth_rate": 12, "student.model.blocks": [6, 12, 24, 16]},
    "model@student.model=convnet": {"student.model.filters": [256, 512]},
    "model@student.model=mlp": {"student.model.hidden_units": [800, 800], "student.model.hidden_dropout": 0},
}


@pytest.fixture(scope="module")
def values():
    """Every key's value, of some overrides."""
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield lambda *given: dict(flatten(plain(hydra.compose("config", list(given)))))
    GlobalHydra.instance().clear()


def test_no_preset_is_left_out():
    folder = config_dir() / "experiment"
    assert PRESETS.keys() == {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_values_of_what_it_is_named_after(preset, values):
    found = values(f"experiment={preset}", *["data.path=x"] * preset.startswith("cifar100/"))
    assert {key: found[key] for key in PRESETS[preset]} == PRESETS[preset]


def test_objectives_have_their_published_settings(values):
    found = values(f"objective=[{','.join(OBJECTIVES)}]")
    constant = {"weight_end": None}
    expected = {
        f"objective.{name}.{key}": value
        for name, settings in OBJECTIVES.items()
        for key, value in {**settings, **constant}.items()
    }
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_sets_what_its_source_says(choice, values):
    found = values(choice)
    assert {key: found[key] for key in CHOICES[choice]} == CHOICES[choice]
