"""The config: its keys, its presets, and what checking makes of values. No TensorFlow in here."""

import json

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from kdrun import registry, stages
from kdrun.cli.compose import config_dir
from kdrun.config import rules
from kdrun.config import schema as config

PRESETS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))
OF_CIFAR_100 = sorted(f"cifar100/{path.stem}" for path in (config_dir() / "experiment/cifar100").glob("*.yaml"))
OF_THE_PAPER = sorted(f"paper/{path.stem}" for path in (config_dir() / "experiment" / "paper").glob("*.yaml"))
STAGES = sorted(path.stem for path in (config_dir() / "stage").glob("*.yaml"))
OPTIONS = sorted(path for path in config_dir().glob("*/**/*.yaml"))

# A new knob is a new line here.
KEYS = [
    "alpha",
    "alpha_end",
    "alpha_warmup_epochs",
    "annealing",
    "arms",
    "batch_size",
    "cache_dir",
    "checkpoint.every_minutes",
    "cluster",
    "cluster_timeout",
    "compare.margin",
    "controls",
    "data.augment.colour.brightness",
    "data.augment.colour.contrast",
    "data.augment.colour.hue",
    "data.augment.colour.saturation",
    "data.augment.cutout",
    "data.augment.flip",
    "data.augment.jitter",
    "data.augment.resized_crop",
    "data.augment.seed",
    "data.augment.views",
    "data.exclude_classes",
    "data.image_size",
    "data.include_classes",
    "data.name",
    "data.normalise",
    "data.on_device",
    "data.split",
    "data.split_seed",
    "data.test_size",
    "data.train_fraction",
    "data.train_on_validation",
    "data.train_size",
    "data.transfer",
    "data.transfer_store",
    "data.validation_size",
    "devices",
    "distill.batch_size",
    "distill.cutmix",
    "distill.epochs",
    "distill.label_smoothing",
    "distill.mixup",
    "distill.patience",
    "distill.peers",
    "epochs",
    "evaluation_batch_size",
    "export.calibration_images",
    "export.format",
    "export.most_loss",
    "export.output",
    "export.quantize",
    "measure_latency",
    "objective.kd.scale_by_temperature_squared",
    "objective.kd.standardise_logits",
    "objective.kd.warmup_epochs",
    "objective.kd.weight",
    "objective.kd.weight_end",
    "optimizer.beta_1",
    "optimizer.beta_2",
    "optimizer.clip_norm",
    "optimizer.coupled",
    "optimizer.decay",
    "optimizer.ema",
    "optimizer.epsilon",
    "optimizer.learning_rate",
    "optimizer.name",
    "optimizer.rectify",
    "optimizer.schedule",
    "optimizer.step_epochs",
    "optimizer.step_factor",
    "optimizer.warmup_epochs",
    "optimizer.weight_decay",
    "outputs",
    "patience",
    "plugins",
    "precision",
    "print",
    "resume",
    "reuse",
    "seed",
    "seeds",
    "stage",
    "student.augment.colour.brightness",
    "student.augment.colour.contrast",
    "student.augment.colour.hue",
    "student.augment.colour.saturation",
    "student.augment.cutout",
    "student.augment.flip",
    "student.augment.jitter",
    "student.augment.resized_crop",
    "student.augment.seed",
    "student.augment.views",
    "student.batch_size",
    "student.classifier",
    "student.cutmix",
    "student.epochs",
    "student.freeze",
    "student.image_size",
    "student.initial_weights",
    "student.label_smoothing",
    "student.mixup",
    "student.model.blocks",
    "student.model.growth_rate",
    "student.model.name",
    "student.new_learning_rate",
    "student.normalise",
    "student.patience",
    "student.quantize",
    "student.train_on_validation",
    "sweep",
    "sync_batch_norm",
    "task",
    "teacher.augment.colour.brightness",
    "teacher.augment.colour.contrast",
    "teacher.augment.colour.hue",
    "teacher.augment.colour.saturation",
    "teacher.augment.cutout",
    "teacher.augment.flip",
    "teacher.augment.jitter",
    "teacher.augment.resized_crop",
    "teacher.augment.seed",
    "teacher.augment.views",
    "teacher.batch_size",
    "teacher.cache",
    "teacher.cache_features",
    "teacher.classes",
    "teacher.combine",
    "teacher.cutmix",
    "teacher.epochs",
    "teacher.file",
    "teacher.freeze",
    "teacher.image_size",
    "teacher.inference_batch_size",
    "teacher.initial_weights",
    "teacher.input.channels",
    "teacher.input.layout",
    "teacher.input.mean",
    "teacher.input.scale",
    "teacher.input.size",
    "teacher.input.std",
    "teacher.label_smoothing",
    "teacher.logits",
    "teacher.mixup",
    "teacher.model.blocks",
    "teacher.model.growth_rate",
    "teacher.model.name",
    "teacher.new_learning_rate",
    "teacher.normalise",
    "teacher.overlap",
    "teacher.patience",
    "teacher.run",
    "teacher.seed",
    "teacher.shuffle",
    "teacher.time_limit",
    "teacher.train_on_validation",
    "teacher.weak",
    "teacher.weights",
    "teachers",
    "temperature",
    "temperature_end",
    "tensorboard.histograms",
    "threads",
    "tracker.jsonl",
    "tracker.tensorboard.histograms",
    "tracker.terminal",
    "workers",
]


@pytest.fixture
def compose():
    """The config of some overrides, as plain values."""
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield lambda *given: OmegaConf.to_container(hydra.compose("config", list(given)), resolve=True)
    GlobalHydra.instance().clear()


@pytest.fixture
def check(compose):
    """The checked config of some overrides."""
    return lambda *given: config.load(compose(*given))


def test_the_keys_are_these(compose):
    assert sorted(dict(config.flatten(compose()))) == KEYS


@pytest.mark.parametrize("kind", ["model", "data", "objective", "optimizer", "tracker"])
def test_every_key_of_kdruns_own_says_what_it_may_be(kind):
    """A key without a rule would pass with any value."""
    for name in registry.names(kind):
        entry = registry.get(kind, name)
        if not entry.is_shipped:  # of a file that another test has named
            continue
        assert all(each.annotation is not each.empty for each in config.parameters(entry).values()), name
        assert rules.anything not in config.own_keys(entry).values(), name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_every_preset_goes_with_every_stage(check, preset, stage):
    of_its_own = {"evaluate": ["run=x"], "adjust_bias": ["run=x", "classes=[1]"], "predict": ["run=x", "inputs=x"]}
    of_its_own |= {"export": ["run=x"]}
    given = [f"stage={stage}", *of_its_own.get(stage, [])]
    given += [f"experiment={preset}"] * (preset is not None)
    checked = check(*given)
    expected = {"mutual": "distill"}.get(stage, stage)  # distilling, with peers
    if checked["seeds"] and expected in ("student", "distill"):  # over several seeds, an arm of a pipeline
        expected = "pipeline"
    assert checked["stage"] == expected


@pytest.mark.parametrize("preset", [*PRESETS, *OF_THE_PAPER, *OF_CIFAR_100])
def test_every_preset_fits_its_data_and_models(check, preset, tmp_path):
    """The check ends without an error, and makes nothing but the outputs folder."""
    given = ["data=mnist"]  # Fashion-MNIST is not on every machine
    if preset == "paper/ensemble":
        given += ["stage=student"]  # before there are its teachers
    stages.check(check(f"experiment={preset}", f"outputs={tmp_path / 'outputs'}", *given))
    assert not [path for path in tmp_path.rglob("*") if path != tmp_path / "outputs"]


@pytest.mark.parametrize("data", ["mnist", "fashion_mnist", "npz"])
@pytest.mark.parametrize("optimizer", ["adabelief", "adam", "adamw", "sgd"])
@pytest.mark.parametrize("model", ["convnet", "densenet", "densenet_12", "mlp"])
def test_all_groups_go_together(check, data, optimizer, model):
    path = ["data.path=x"] * (data == "npz")
    checked = check(f"data={data}", f"optimizer={optimizer}", f"model@student.model={model}", *path)
    name = "adam" if optimizer == "adamw" else optimizer
    assert (checked["data"]["name"], checked["optimizer"]["name"]) == (data, name)


@pytest.mark.parametrize("model", ["mobilenet_v2", "resnet", "shufflenet_v2", "vgg", "wide_resnet"])
def test_the_benchmarks_nets_have_keys_that_their_rules_allow(check, model):
    found = check(f"model@student.model={model}", f"model@teacher.model={model}")
    assert found["student"]["model"] == found["teacher"]["model"] and found["student"]["model"]["name"] == model


def test_a_roles_optimizer_is_the_common_one_but_for_keys_of_its_own(check):
    followed = check("optimizer=adam", "optimizer.learning_rate=0.5")
    assert followed["teacher"]["optimizer"] == followed["student"]["optimizer"] == followed["optimizer"]
    own = check("optimizer=adam", "optimizer.beta_1=0.5", "++student.optimizer.learning_rate=0.25")
    assert own["student"]["optimizer"] == {**own["optimizer"], "learning_rate": 0.25}
    assert own["teacher"]["optimizer"] == own["optimizer"]
    other = check("optimizer.learning_rate=0.5", "optimizer@teacher.optimizer=sgd", "++teacher.optimizer.momentum=0.5")
    assert (other["teacher"]["optimizer"]["name"], other["teacher"]["optimizer"]["momentum"]) == ("sgd", 0.5)
    assert other["teacher"]["optimizer"]["learning_rate"] == 0.05  # its own file's
    assert other["student"]["optimizer"] == other["optimizer"]


def test_optimizers_of_before_lack_keys_and_go_on(check):
    """Those of a run that is recorded, and of a file of the user's own that names every key that there was."""
    now = check("optimizer@teacher.optimizer=sgd")
    before = json.loads(json.dumps(now))
    for optimizer in (before["optimizer"], before["teacher"]["optimizer"], before["student"]["optimizer"]):
        for key in config.LATER_OF_OPTIMIZER:
            del optimizer[key]
    assert config.with_later_keys(before) == now
    assert config.load(before) == now


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("student.optimizer.learning_rate=0", "student.optimizer.learning_rate must be a number above 0, got 0"),
        ("teacher.optimizer.lerning_rate=1", "teacher.optimizer.learning_rate"),
        ("teacher.optimizer.momentum=0.5", "teacher.optimizer.momentum: there is no such key"),
        ("teacher.optimizer.name=sgd", "Write teacher.optimizer=sgd"),
    ],
)
def test_a_roles_optimizer_is_checked_like_the_common_one(command, given, expected):
    ended = command("stage=student", given)
    assert ended.code == 2
    assert expected in ended.err


def test_a_part_of_a_stage_is_not_run_by_itself(check, compose):
    with pytest.raises(config.InputError, match="stage=specialist is a part of another stage"):
        config.load({**compose("stage=specialists"), "stage": "specialist"})


def test_whole_numbers_become_floats_for_float_keys(check):
    whole = check("temperature=10", "alpha=1", "optimizer.weight_decay=0", "optimizer.warmup_epochs=1")
    floats = check("temperature=10.0", "alpha=1.0", "optimizer.weight_decay=0.0", "optimizer.warmup_epochs=1e0")
    assert whole == floats
    assert repr(whole) == repr(floats)  # 10 == 10.0, but a run's fingerprint is of what JSON writes


def test_checking_again_changes_nothing(check):
    checked = check("temperature=4")
    assert repr(config.load(checked)) == repr(checked)


@pytest.mark.parametrize(
    ("key", "edges"),
    [
        ("alpha", [0, 0.0, 1, 1.0]),
        ("temperature", [1e-6, 1e6]),
        ("seed", [0, 2**31 - 1]),
        ("epochs", [1]),
        ("data.augment.jitter", [0, 64]),
        ("data.train_size", [1, "null"]),
        ("optimizer.beta_1", [0, 0.999999]),
        ("optimizer.weight_decay", [0]),
    ],
)
def test_values_at_the_edges_are_allowed(check, key, edges):
    for edge in edges:
        value = dict(config.flatten(check(f"{key}={edge}")))[key]
        assert value == (None if edge == "null" else edge)


@pytest.mark.parametrize(
    ("key", "beyond"),
    [("seed", 2**31), ("data.augment.jitter", 65), ("data.image_size", 4097), ("optimizer.epsilon", 0)],
)
def test_values_beyond_the_edges_are_refused(check, key, beyond):
    with pytest.raises(config.InputError, match=f"^{key} must be .*got {beyond}"):
        check(f"{key}={beyond}")


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: str(path.relative_to(config_dir())))
def test_every_option_says_what_it_is_in_its_first_line(path):
    lines = path.read_text().splitlines()
    if lines[0].startswith("# @package"):  # Hydra wants this first
        lines.pop(0)
    assert lines[0].startswith("# ") and len(lines[0]) > 10


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_says_how_it_is_run(preset):
    first, command, what = (config_dir() / f"experiment/{preset}.yaml").read_text().splitlines()[:3]
    assert (first, command) == ("# @package _global_", f"# kdrun experiment={preset}")
    assert what.startswith("# ")


@pytest.fixture
def own_preset(tmp_path):
    """Write a preset of the user's own into a config folder; returns the arguments that choose it."""

    def write(text: str) -> list[str]:
        (tmp_path / "mine/experiment").mkdir(parents=True)
        (tmp_path / "mine/experiment/my.yaml").write_text(f"# @package _global_\n{text}")
        return ["--config-dir", "mine", "experiment=my"]

    return write


def test_a_preset_of_the_users_own_works(command, own_preset):
    chosen = own_preset(
        "defaults:\n  - override /model@student.model: mlp\n  - override /optimizer: adam\n"
        "alpha: 0.25\nstudent:\n  model:\n    hidden_units: [30]\n"
    )
    shown = command(*chosen, "--cfg", "job")
    assert (shown.code, shown.err) == (0, "")
    assert "\nalpha: 0.25\n" in shown.out and "hidden_units:\n    - 30\n" in shown.out
    # TensorFlow cannot be imported in this test: a config that passes every check ends there
    ended = command(*chosen, "stage=student")
    assert ended.code == 1 and "import of tensorflow halted" in ended.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alfa: 0.3\n", ["alfa: there is no such key", "alpha"]),
        ("student:\n  model:\n    growth: 3\n", ["student.model.growth: there is no such key", "growth_rate"]),
        ("optimizer:\n  learning_rat: 0.1\n", ["optimizer.learning_rat: there is no such key", "learning_rate"]),
        ("extra:\n  alpha: 0.3\n", ["extra.alpha: there is no such key"]),
        ("alpha: 2\n", ["alpha must be a number from 0 to 1", "got 2"]),
        ("data:\n  name: npz\n", ["data.path is missing", "data.name cannot be set by hand", "data=npz"]),
        ("defaults:\n  - override /optimizer: adm\n", ["adm", "adabelief, adam, adamw, sgd"]),
        ("defaults:\n  - override /optimiser: adam\n", ["optimiser"]),
        ("alpha: [\n", ["my.yaml"]),
    ],
)
def test_a_typo_in_a_preset_of_the_users_own_is_refused(command, own_preset, tmp_path, text, expected):
    ended = command(*own_preset(text))
    assert ended.code == 2, ended.err
    assert ended.err.startswith("kdrun: ") and ended.err.count("\n") == 1
    for part in expected:
        assert part in ended.err
    assert not (tmp_path / "outputs").exists()
