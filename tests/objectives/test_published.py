"""What each objective's config holds, against the settings that papers and their authors' code have. No TensorFlow."""

import re

import pytest
from omegaconf import OmegaConf

from kdrun.cli.compose import config_dir

# temperature (10 is kdrun's own: where an objective has none, or the notebook's), alpha, weight, and the other keys. A
# term with a weight w beside a cross-entropy of weight 1 is alpha = 0.5 and w.
STAGES, EMBEDDING = {"layers": ["stages"]}, {"layers": ["embedding"]}
NOT_STANDARD = {"standardise_logits": False}
TEACHER_FREE = {"probability": 0.99, "soften": "probabilities", "student_temperature": 1.0}
TEACHER_FREE |= {"scale_by_temperature_squared": False}
MULTI_LEVEL = {"temperatures": [2.0, 3.0, 5.0, 6.0], "batch_weight": 1.0, "class_weight": 1.0, **NOT_STANDARD}
CONTRASTIVE = {"dimensions": 128, "negatives": 16384, "contrastive_temperature": 0.07, "momentum": 0.5, **EMBEDDING}
DEFAULTS = {
    "attention": (10, 0.5, 1000, STAGES),  # RepDistiller's script for CIFAR-100, as those below of its weights
    "contrastive": (10, 0.5, 0.8, CONTRASTIVE),
    "correlation": (10, 0.5, 100, {"gamma": 0.4, "order": 2, **EMBEDDING}),  # the weight is ours
    "dist": (1, 0.5, 2, {"inter_weight": 1, "intra_weight": 1, "scale_by_temperature_squared": True}),  # ImageNet
    "dkd": (4, 0.5, 1, {"target_weight": 1, "non_target_weight": 8, **NOT_STANDARD}),  # CIFAR-100
    "fitnet": (10, 0.5, 100, {"layers": ["middle"]}),
    "kd": (10, 0.9, 1, {"scale_by_temperature_squared": True, **NOT_STANDARD}),
    "label_smoothing": (10, 1, 1, {"smoothing": 0.1}),
    "logit_mse": (10, 0.5, 1, {"zero_mean": False, **NOT_STANDARD}),  # alpha and weight are ours
    "multi_level": (4, 0.9, 1, MULTI_LEVEL),  # CIFAR-100: a cross-entropy of 0.1, the terms 0.9
    "nkd": (1, 0.5, 1, {"non_target_weight": 1.5, **NOT_STANDARD}),  # ImageNet
    "relational": (10, 0.5, 1, {"distance_weight": 25, "angle_weight": 50, **EMBEDDING}),
    "review": (10, 0.5, 1, STAGES),  # ImageNet
    "similarity": (10, 0.5, 3000, {"layers": ["last"]}),
    "simkd": (10, 1, 1, {"layers": ["projection:embedding"]}),
    "teacher_free": (20, 0.1, 1, TEACHER_FREE),  # ResNet18 on CIFAR-100: multiplier 100 of a mean over 100 classes
    "variational": (10, 0.5, 1, STAGES),
}
WARMUPS = {"dkd": 1, "review": 1}  # ImageNet's, both
PRESETS = ("function_matching", "kd_unscaled")  # of kd
OVERRIDES = {
    ("kd", "temperature=2 alpha=0.9 objective.kd.weight=10 objective.kd.standardise_logits=true"): {
        "temperature": 2,
        "alpha": 0.9,
        "weight": 10,  # 0.9 of it is 9, beside 0.1 of the cross-entropy
        "standardise_logits": True,
    },
    ("logit_mse", "alpha=1"): {"alpha": 1},
    ("dkd", "objective.dkd.warmup_epochs=20"): {"warmup_epochs": 20, "temperature": 4, "non_target_weight": 8},
    ("dkd", "temperature=1 objective.dkd.non_target_weight=0.5"): {
        "temperature": 1,
        "target_weight": 1,
        "non_target_weight": 0.5,
        "warmup_epochs": 1,
    },
    ("dist", "temperature=4"): {"temperature": 4, "weight": 2},
    ("nkd", "temperature=3 objective.nkd.non_target_weight=3.5"): {"temperature": 3, "non_target_weight": 3.5},
    ("multi_level", "temperature=1 alpha=0.5"): {"temperature": 1, "alpha": 0.5},
    ("multi_level", "temperature=2 objective.multi_level.weight=10 objective.multi_level.standardise_logits=true"): {
        "temperature": 2,
        "alpha": 0.9,
        "weight": 10,
        "standardise_logits": True,
    },
    ("teacher_free", "alpha=0.95 temperature=40 objective.teacher_free.weight=0.01"): {
        "alpha": 0.95,
        "temperature": 40,
        "weight": 0.01,  # multiplier 1 of a mean over 100 classes
    },
    ("teacher_free", "objective.teacher_free.soften=logits objective.teacher_free.student_temperature=null"): {
        "soften": "logits",
        "student_temperature": None,
    },
    ("teacher_free", "objective.teacher_free.scale_by_temperature_squared=true"): {
        "scale_by_temperature_squared": True
    },
    ("review", "objective.review.weight=5 objective.review.warmup_epochs=20"): {"weight": 5, "warmup_epochs": 20},
}


def composed(command, name, *words) -> dict:
    """The values of a command under that objective: its own keys, temperature and alpha."""
    ended = command("--cfg", "job", f"objective={name}", *words)
    assert ended.code == 0, ended.err
    config = OmegaConf.to_container(OmegaConf.create(ended.out))
    assert list(config["objective"]) == [name]
    return {**config["objective"][name], "temperature": config["temperature"], "alpha": config["alpha"]}


def test_the_tables_name_every_objective_and_every_line_of_overrides():
    files = {path.stem: path.read_text() for path in (config_dir() / "objective").glob("*.yaml")}
    assert sorted(files) == sorted([*DEFAULTS, *PRESETS, "own"])
    found = [(name, line) for name, text in files.items() for line in re.findall(r"(?m)^#   (\S.*)$", text)]
    assert sorted(found) == sorted(OVERRIDES)


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_is_the_published_setting(name, command):
    temperature, alpha, weight, keys = DEFAULTS[name]
    usual = {"weight_end": None, "warmup_epochs": WARMUPS.get(name, 0)}
    expected = {"temperature": temperature, "alpha": alpha, "weight": weight, **usual, **keys}
    assert composed(command, name) == expected


@pytest.mark.parametrize(("name", "line"), OVERRIDES)
def test_a_line_of_overrides_can_be_pasted(name, line, command):
    assert composed(command, name, *line.split()).items() >= OVERRIDES[name, line].items()
    # a value that is refused is refused before the data are looked for
    ended = command(f"objective={name}", *line.split(), "data=npz", "data.path=nowhere.npz")
    assert ended.code == 2 and "nowhere.npz" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["objective=teacher_free", "objective.teacher_free.soften=both"], "one of probabilities, logits"),
        (["objective=teacher_free", "objective.teacher_free.student_temperature=0"], "a number from 1e-06 to 1e+06"),
        (["objective=dist", "objective.dist.scale_by_temperature_squared=2"], "true or false"),
    ],
)
def test_new_keys_are_checked(words, said, command):
    ended = command(*words)
    assert ended.code == 2 and said in ended.err and words[1].partition("=")[0] in ended.err
