"""The words of a command line: read as they are meant, refused where they would run or write something, explained."""

import os
import re
import shlex

import pytest
from test_cli import ON_NPZ, STUDENT, assert_refused

from kdrun.cli import offers
from kdrun.config.mistakes import SYNONYMS


def assert_gets_as_far_as_tensorflow(ended):
    """Everything is checked by then."""
    assert ended.code == 1, ended
    assert "import of tensorflow halted" in ended.err


ODD_NAMES = ["é.npz", "a=b.npz", "a~b.npz", "a&b.npz", "x;y.npz", "名.npz", "a!b.npz", "a#b.npz"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_files_name_is_read_as_it_stands(command, write_npz, name):
    path = write_npz(name)
    assert_gets_as_far_as_tensorflow(command(*STUDENT, *ON_NPZ, f"data.path={path}"))


@pytest.mark.parametrize("name", ["a,b.npz", "a(b).npz", "it's.npz", "(x.npz", "[x].npz"])
def test_the_advice_for_a_name_with_odd_characters_works(command, write_npz, name):
    path = write_npz(name)
    for given in (f"data.path={path}", f"data.path={path.name}"):
        ended = command(*STUDENT, *ON_NPZ, given)
        if ended.code == 2:
            advised = re.search(r"inside the shell's: (.*)\.\n$", ended.err)[1]
            ended = command(*STUDENT, *ON_NPZ, *shlex.split(advised))
        assert_gets_as_far_as_tensorflow(ended)


def test_in_a_sweep_commas_are_between_values(command, write_npz):
    for name in ("é=1.npz", "b.npz"):
        write_npz(name)
    for value, given in (("1", "é=1.npz,b.npz"), ("2", "b.npz,é=1.npz")):
        ended = command("-m", *STUDENT, *ON_NPZ, f"data.path={given}", f"sweep=s{value}")
        assert ended.out.count("import of tensorflow halted") >= 2, ended


def test_the_users_own_folder(command, tmp_path, write_npz, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_npz("mine.npz")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_gets_as_far_as_tensorflow(command(*STUDENT, *ON_NPZ, "data.path=~/mine.npz", "outputs=~/out"))
    assert os.listdir(tmp_path / "elsewhere") == []
    refused = command("stage=distill", *STUDENT[1:], *ON_NPZ, "data.path=~/mine.npz", "teacher.run=~/nowhere")
    assert_refused(refused, f"{tmp_path}/nowhere is not a run directory")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["+seed=3"], ["+seed: seed is there already", "Write seed=VALUE"]),
        (["~patience"], ["~patience", "key of every run", "Leave out ~patience"]),
        (["lr=0.1"], ["lr: there is no such key", "optimizer.learning_rate"]),
        (["teacher.temprature=4"], ["teacher.temprature: there", "Did you mean temperature?"]),
        (["optimizer.lr=1"], ["optimizer.lr: there", "optimizer.learning_rate"]),
        (["experiment=quik"], ["experiment=quik", "Did you mean experiment=quick?", "paper/teacher", "tuned_32"]),
        (["experiment=paper/techer"], ["experiment=paper/techer", "experiment=paper/teacher?", "paper/student"]),
        (["quick"], ["quick: cannot be read", "Did you mean experiment=quick?"]),
        (["--temperature", "4"], ["--temperature", "write temperature=VALUE"]),
        (["--train-fraction=4"], ["--train-fraction", "write train_fraction=VALUE"]),
        (
            ["experiment=convnets", "model@student.model=mlp"],
            ["student.model.filters: there", "~student.model.filters"],
        ),
    ],
    ids=" ".join,
)
def test_what_was_meant_is_said(command, tmp_path, given, expected):
    assert_refused(command(*given), *expected)
    assert os.listdir(tmp_path) == []


MEANT = {
    "teacher.temprature=4": "temperature=4",
    "lr=0.1": "optimizer.learning_rate=0.1",
    "LR=0.1": "optimizer.learning_rate=0.1",
    "teacher.lr=0.1": "teacher.optimizer.learning_rate=0.1",
    "student.optimizer.lr=0.1": "student.optimizer.learning_rate=0.1",
    "bs=8": "batch_size=8",
    "wd=0": "optimizer.weight_decay=0",
    "T=4": "temperature=4",
    "epoch=3": "epochs=3",
    "student.epoch=3": "student.epochs=3",
    "stge=teacher": "stage=teacher",
    "optim=adam": "optimizer=adam",
    "arch=mlp": "model@student.model=mlp",
    "modle@student.model=mlp": "model@student.model=mlp",
    "dataset=mnist": "data=mnist",
    "model.growth_rate=8": "student.model.growth_rate=8",
    "flip=true": "data.augment.flip=true",
    "student.alpha=0.5": "alpha=0.5",
    "quick": "experiment=quick",
    "quik": "experiment=quick",
    "techer": "stage=teacher",
    "adam": "optimizer=adam",
}


@pytest.mark.parametrize("given", MEANT)
def test_what_was_meant_is_advised(command, given):
    ended = command(given)
    key, equals, value = given.partition("=")
    advised = re.search(r"Did you mean ([^?,]+)", ended.err)[1]
    assert_refused(ended, f"{key}: ")
    assert (f"{advised}={value}" if equals else advised) == MEANT[given]


def test_what_is_advised_can_be_typed(command):
    """Choices one by one, keys all at once."""
    advised = dict.fromkeys(MEANT.values())
    choices = [word for word in advised if re.match(r"stage|experiment|model@", word)]
    for words in (*([word] for word in choices), [word for word in advised if word not in choices]):
        assert command("--cfg", "job", *words).code == 0, words


@pytest.mark.parametrize(
    ("given", "goes_with"),
    [
        ("optimizer.momentum=0.5", "optimizer=sgd"),
        ("momentum=0.5", "optimizer=sgd"),
        ("student.model.depth=8", "model@student.model=resnet"),
        ("objective.dkd.target_weight=2", "objective=dkd"),
        ("data_dir=photos", "data=folder"),
        ("inputs=photos", "stage=predict"),
    ],
)
def test_a_key_of_another_choice_is_told_with_it(command, given, goes_with):
    ended = command(given)
    assert_refused(ended, "goes with", goes_with)
    meant = re.search(r"Did you mean ([^?]+)", ended.err)
    typed = f"{meant[1] if meant else given.partition('=')[0]}={given.partition('=')[2]}"
    assert command("--cfg", "job", goes_with, typed).code == 0


def test_other_names_of_keys_stand_for_keys_that_there_are():
    known = [*offers.keys([]), *offers.groups()]
    for word, meant in SYNONYMS.items():
        assert word not in known
        for each in meant:
            ends = [key for key in known if each in (key, key.split(".")[-1])]
            assert ends or offers.elsewhere(each), (word, each)


def test_a_presets_key_that_a_net_has_not_can_be_taken_out(command):
    given = ["stage=student", "experiment=convnets", "model@student.model=mlp", "~student.model.filters"]
    assert_gets_as_far_as_tensorflow(command(*given))


@pytest.mark.parametrize("place", [0, 1])
def test_version_is_kdruns_own(command, tmp_path, place):
    from importlib.metadata import version

    arguments = ["stage=student"]
    arguments.insert(place, "--version")
    assert command(*arguments) == (0, f"kdrun {version('kdrun')}\n", "")
    assert os.listdir(tmp_path) == []


RUNS_OR_WRITES = [
    "hydra.mode=MULTIRUN",
    "+hydra.callbacks.x._target_=os.abort",
    "hydra.callbacks={x:{a:1}}",
    "+hydra.job_logging.handlers.x.class=logging.FileHandler",
    "hydra.job_logging.root.level=DEBUG",
    "hydra/job_logging=default",
    "hydra.hydra_logging.formatters.plain.format=x",
    "hydra/hydra_logging=disabled",
    "hydra/callbacks=x",
    "+hydra.job.env_set.PYTHONSTARTUP=x.py",
    "hydra.searchpath=[file:///tmp]",
    "hydra.job.chdir=true",
    "hydra.output_subdir=../x",
    "++hydra.launcher._target_=os.system",
    "hydra.sweeper._target_=os.system",
    "hydra.launcher={_target_:os.system}",
    "hydra.launcher=${oc.decode:x}",
    "hydra/launcher=mine",
    "hydra/sweeper=mine",
    "hydra.sweeper.storage=sqlite:////tmp/x.db",
    "+hydra.launcher.setup=[ls]",
    "+hydra.launcher.submitit_folder=/tmp/x",
    "+teacher._target_=os.abort",
    "teacher.run={_target_:os.abort}",
    "~hydra.callbacks",
]


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["one run", "a sweep"])
@pytest.mark.parametrize("given", RUNS_OR_WRITES)
def test_hydras_keys_that_run_or_write_something_are_refused(command, tmp_path, given, multirun):
    ended = command(*multirun, *STUDENT, "seed=1", given)
    assert_refused(ended, given.lstrip("+~").partition("=")[0])
    assert os.listdir(tmp_path) == []


def test_a_config_file_of_the_users_own_may_use_them(command, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  job:\n    env_set: {KDRUN_TRIED: there}\n"
    (tmp_path / "mine/experiment/my.yaml").write_text(text)
    ended = command("--config-dir", "mine", *STUDENT, "experiment=my")
    assert_gets_as_far_as_tensorflow(ended)


@pytest.mark.parametrize("stage", ["student", "pipeline", "distill"])
def test_the_data_of_a_run_are_not_to_train_on(command, tmp_path, stage):
    assert_refused(command(f"stage={stage}", "data=of_run"), "data=of_run", "stage=evaluate")
    assert os.listdir(tmp_path) == []


def test_runs_that_are_nowhere_leave_no_directory(command, tmp_path):
    assert_refused(command("stage=compare", "runs=nowhere"), "nothing of kdrun's is in nowhere")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("stage", "swept", "unused"),
    [
        ("student", "temperature=1,2", "temperature"),
        ("student", "teacher.epochs=1,2", "teacher.epochs"),
        ("teacher", "student.model.hidden_units=[4],[8]", "student.model.hidden_units"),
        ("student", "seed=1,2", None),
        ("student", "optimizer.learning_rate=0.1,0.2", None),
        ("student", "threads=1,2", "threads"),
    ],
)
def test_a_swept_key_that_changes_nothing_is_named_before_training(command, write_npz, stage, swept, unused):
    models = ["model@teacher.model=mlp", "model@student.model=mlp", "batch_size=16"]
    ended = command("-m", f"stage={stage}", *models, *ON_NPZ, f"data.path={write_npz()}", swept)
    first = ended.out.splitlines()[0]
    assert first.startswith(f"kdrun: {unused} changes nothing") if unused else "changes nothing" not in ended.out
