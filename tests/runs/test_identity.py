"""What a run's fingerprint is of: every key of the config, one after the other, but for those that are listed here."""

import identities
import pytest
from another_value import changed
from identities import CHAINS, TRAINING

from kdrun.cli.compose import composing
from kdrun.config.schema import flatten
from kdrun.runs import identity
from kdrun.runs.identity import fingerprint, of_chain

# Keys, or the beginnings of keys, that no run's result depends on, and why.
FREE = {
    "outputs": "where it is written",
    "cache_dir": "where the teacher's logits are",
    "sweep": "where it is written",
    "resume": "what is gone on with",
    "reuse": "what is trained anew",
    "print": "what is shown",
    "export": "after training",
    "sync_batch_norm": "of several devices alone: see tests/training/test_devices.py",
    "task": "of several machines",
    "cluster_timeout": "of several machines",
    "workers": "how many jobs are at work beside each other",
    "checkpoint": "when states are saved",
    "measure_latency": "after training",
    "compare": "how runs are held against each other",
    "tensorboard": "what is shown",
    "tracker": "what is shown",
    "threads": "recorded, and kept by whoever goes on with a run",
    "data.path": "the contents' sha256 counts",
    "data.name": "the contents' sha256 counts",
    "data.num_classes": "the contents' sha256 counts",
    "data.on_device": "the same bits either way",
    "data.transfer": "the contents' sha256 counts",
    "data.transfer_store": "where things are",
    "plugins": "the files' contents count",
    "optimizer": "the default of the roles' own",
    "epochs": "the default of the stages' own",
    "patience": "the default of the stages' own",
    "batch_size": "the default of the stages' own",
    "data.augment": "the default of the roles' own",
    "data.image_size": "the default of the roles' own",
    "data.normalise": "the default of the roles' own",
    "data.train_on_validation": "the default of the roles' own",
    "teacher.cache": "kept logits are the live ones",
    "teacher.cache_features": "kept features are the live ones",
    "teacher.overlap": "what is refused",
    "teacher.weak": "what is refused",
    "teacher.time_limit": "what is refused",
    "teacher.input": "of a teacher.file, with which it counts",
    "teacher.classes": "of a teacher.file, with which it counts",
}
_DISTILLING = ["temperature", "temperature_end", "alpha", "alpha_end", "alpha_warmup_epochs", "annealing", "objective"]
_OF_SEVERAL = ["seeds", "teachers", "controls", "arms"]  # of which one network is one
_TRAINING = ["epochs", "patience", "batch_size", "mixup", "cutmix", "label_smoothing"]
_OF_A_ROLE = ["image_size", "normalise", "augment", "train_on_validation"]
_OF_A_ROLE += ["initial_weights", "freeze", "new_learning_rate"]
# What a stage's network does not depend on: another's keys, and what the sums of the teachers' weights stand for.
OF_OTHERS = {
    "teacher": [
        *("seed", "student", "distill", *_DISTILLING),
        *("data.include_classes", "data.exclude_classes", "data.train_fraction"),
        *(
            f"teacher.{key}"
            for key in ("run", "logits", "file", "combine", "weights", "shuffle", "inference_batch_size")
        ),
    ],
    "student": ["teacher", "distill", "student.classifier", *_DISTILLING],
    "distill": [
        *(f"student.{key}" for key in _TRAINING),
        *(f"teacher.{key}" for key in ("run", "logits", "model", "optimizer", "seed", *_TRAINING, *_OF_A_ROLE)),
    ],
}
OF_OTHERS["specialist"] = [
    *(key for key in OF_OTHERS["teacher"] if key != "seed"),
    *("run", "clusters", "teacher.seed", *(f"teacher.{key}" for key in _TRAINING)),
]
CHOICES = {
    "as shipped": [],
    "other groups": [
        *("data=npz", "data.path=my.npz", "optimizer=sgd", "objective=[dkd,attention]"),
        *("model@teacher.model=mlp", "model@student.model=mlp"),
    ],
}


@pytest.fixture(scope="module")
def compose():
    """The config of some overrides, as plain values."""
    with composing():
        yield lambda *given: identities.composed(*given)


def is_free(key: str, of_others=()) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in (*FREE, *of_others))


def assert_all_but_the_free_count(config, fingerprint, of_others=()):
    """The fingerprint is another one with another value for a key, exactly where the key is not free."""
    expected = {key: not is_free(key, of_others) for key, _ in flatten(config) if key != "stage"}
    before = fingerprint(config)
    assert {key: fingerprint(changed(config, key)) != before for key in expected} == expected
    assert len(expected) > 70


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("stage", OF_OTHERS)
def test_another_value_is_another_run(stage, choice, compose):
    config = compose(*choice, f"stage={'specialists' if stage == 'specialist' else stage}")
    if stage == "specialist":  # as the stage of all of them trains one
        config |= {"stage": stage, "classes": [1, 2]}
    assert_all_but_the_free_count(
        config,
        lambda given: fingerprint(identities.of(given, stage, "data", ["weights"])),
        [*OF_OTHERS[stage], *_OF_SEVERAL],
    )


@pytest.mark.parametrize("stage", CHAINS)
def test_another_value_is_another_run_of_several_parts(stage, compose):
    assert_all_but_the_free_count(compose(f"stage={stage}"), lambda given: fingerprint(of_chain(given, "data")))


def test_stages_data_and_teachers_weights_count(compose):
    config = compose("stage=specialists") | {"classes": [1, 2]}
    found = [
        identities.of(config, stage, data, weights)
        for stage in OF_OTHERS
        for data in ("data", "other")
        for weights in (["a"], ["b"], ["a", "b"], ["b", "a"])
    ]
    of_one_network = {fingerprint(depends) for depends in found if depends["stage"] in ("teacher", "student")}
    assert len(of_one_network) == 4  # their labels alone teach them
    assert len({fingerprint(depends) for depends in found}) == 4 + 16
    assert fingerprint(of_chain(config, "data")) != fingerprint(of_chain(config, "other"))


@pytest.mark.parametrize("stage", ["student", "distill", "pipeline", "generations"])
def test_images_without_labels_count_for_students(stage, compose):
    config, of_stage = compose(f"stage={stage}"), {"student": identity.of_student, "distill": identity.of_distilled}
    function = of_stage.get(stage, of_chain)
    found = [function(config, "data", transfer_sha256=sha256) for sha256 in (None, "some", "others")]
    assert len(set(map(fingerprint, found))) == 3 and found[0] == function(config, "data")


DEFAULTS = ["epochs=7", "patience=3", "batch_size=64", "data.augment.jitter=1", "data.augment.flip=true"]
DEFAULTS += ["data.image_size=36", "data.normalise=dataset", "data.augment.views=4", "data.augment.colour.contrast=0.5"]
DEFAULTS += ["data.train_on_validation=true", "seed=7", "optimizer.learning_rate=0.5", "optimizer=sgd"]


@pytest.mark.parametrize("given", DEFAULTS)
def test_what_is_given_to_all_roles_reaches_each(given, compose):
    config, other = compose(), compose(given)
    for stage in TRAINING:
        before, after = (identities.of(each, stage, "data", ["weights"]) for each in (config, other))
        assert fingerprint(before) != fingerprint(after), stage


def test_an_objective_of_the_users_own_counts_with_what_its_file_holds(compose, tmp_path):
    found = []
    for name, text in (("one", "a = 1"), ("moved", "a = 1"), ("edited", "a = 2")):
        module = tmp_path / f"{name}.py"
        module.write_text(text)
        config = compose("stage=distill", "objective=own", f"objective.module={module}")
        found.append(fingerprint(identities.of(config, "distill", "data", ["weights"])))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ("++student.optimizer.learning_rate=0.5", {"student", "distill"}),
        ("++teacher.optimizer.learning_rate=0.5", {"teacher"}),
        ("optimizer@student.optimizer=sgd", {"student", "distill"}),
        ("optimizer@teacher.optimizer=sgd", {"teacher"}),
        ("optimizer=sgd", {"teacher", "student", "distill"}),
    ],
)
def test_a_roles_own_optimizer_counts_for_that_role(given, changes, compose):
    before, after = compose(), compose(given)
    differ = {stage for stage in TRAINING if identities.of(before, stage, "x") != identities.of(after, stage, "x")}
    assert differ == changes


def test_what_a_teacher_from_elsewhere_is_given_counts(compose, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    config = compose("stage=distill", "teacher.file=net.onnx", f"teacher.classes={names}")
    before = fingerprint(identities.of(config, "distill", "data", ["weights"]))
    keys = [key for key, _ in flatten(config) if key.startswith(("teacher.input.", "teacher.classes"))]
    for key in keys:
        assert fingerprint(identities.of(changed(config, key), "distill", "data", ["weights"])) != before, key
    assert len(keys) == 7
    for key in ("teacher.weak", "teacher.time_limit"):
        assert fingerprint(identities.of(changed(config, key), "distill", "data", ["weights"])) == before, key
    names.write_text("b\na\n")
    assert fingerprint(identities.of(config, "distill", "data", ["weights"])) != before
