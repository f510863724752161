"""Files of the user's own, through the command line: each kind is added, goes on, is swept, is refused in a line."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from held import bits
from plugin_files import ALL, NET
from test_golden import NETS, TINY

import kdrun
from kdrun.cli.main import main
from kdrun.storage import files

PLUGINS = f"plugins=[{','.join(ALL)}]"
SMALL = [*TINY, "measure_latency=false", "model@teacher.model=mlp", "teacher.model.hidden_units=[8]"]
STUDENT = [PLUGINS, "stage=student", *SMALL, "model@student.model=my_net"]
STRIPES = ["data=stripes", "data.train_size=64", "data.validation_size=32", "data.test_size=30"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to be in, with all plug-in files in it."""
    monkeypatch.chdir(tmp_path)
    for name, text in ALL.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def done(capfd):
    """Run a command that works; returns its newest run directory with the record."""

    def run(*arguments: str) -> tuple[Path, dict]:
        code = main(list(arguments))
        assert code == 0, capfd.readouterr().err
        runs = [(json.loads(path.read_text()), path.parent) for path in Path("outputs").rglob("run.json")]
        record, run_dir = max(runs, key=lambda run: run[0].get("resumed", [run[0]["started"]])[-1])
        return run_dir, record

    return run


@pytest.fixture
def refused(capfd):
    """What a command that is refused says, in its one line; nothing is made."""

    def run(*arguments: str) -> str:
        before = set(Path().rglob("run.json"))
        capfd.readouterr()
        code = main(list(arguments))
        said = capfd.readouterr().err
        assert (code, said.count("\n")) == (2, 1) and "Traceback" not in said, (code, said)
        assert set(Path().rglob("run.json")) == before
        return said

    return run


def test_a_net_whose_keys_are_named_like_other_keys(folder, done):
    keys = ["student.model.layers=2", "student.model.weights=he", "student.model.order=[3,1]"]
    run_dir, record = done(*STUDENT, *keys)
    assert record["model"] == {"name": "my_net", "layers": 2, "weights": "he", "order": [3, 1]}
    assert record["config"]["student"]["model"] == record["model"] == record["identity"]["model"]
    assert record["identity"]["code"]["model/my_net"] == files.sha256(folder / "net.py")
    assert main([PLUGINS, "stage=evaluate", f"run={run_dir}"]) == 0


def test_a_net_that_is_a_teacher_with_features(folder, done):
    nets = ["model@teacher.model=my_net", "teacher.model.layers=2", "model@student.model=my_net"]
    done(PLUGINS, "stage=teacher", *TINY, *nets)
    given = [PLUGINS, "stage=distill", *TINY, *nets, "objective=[kd,fitnet]"]
    _, record = done(*given, "objective.fitnet.layers=[trunk]")
    assert record["teachers"][0]["identity"]["model"]["name"] == "my_net"


def test_a_data_source_with_two_keys_of_its_own(folder, done):
    _, record = done(*STUDENT, *STRIPES, "data.bright=0.5")
    _, other = done(*STUDENT, *STRIPES, "data.bright=0.75")
    for each, bright in ((record, 0.5), (other, 0.75)):
        for data in (each["config"]["data"], each["identity"]["data"]):
            assert (data["count"], data["bright"], data["name"]) == (96, bright, "stripes")
        assert each["identity"]["code"]["data/stripes"] == files.sha256(folder / "source.py")
        assert each["num_classes"] == 3
    assert record["dataset_sha256"] != other["dataset_sha256"] and record["fingerprint"] != other["fingerprint"]


def test_a_teachers_logits_are_kept_by_a_data_sources_keys(folder, done):
    given = [*SMALL, "model@student.model=my_net", *STRIPES]
    for bright in ("0.5", "0.75"):
        done(PLUGINS, "stage=teacher", *given, f"data.bright={bright}")
        done(PLUGINS, "stage=distill", *given, f"data.bright={bright}")
    manifests = [json.loads(path.read_text()) for path in Path("outputs/.cache").rglob("manifest.json")]
    assert sorted(each["depends"]["data"]["bright"] for each in manifests) == [0.5, 0.75]


def test_an_objective_on_labels_alone_asks_for_no_teacher(folder, done, refused):
    given = [PLUGINS, "stage=distill", *SMALL, "model@student.model=my_net", "objective=confident"]
    run_dir, record = done(*given, "objective.confident.strength=0.25")
    assert record["teachers"] == [] and "teacher_agreement" not in record["results"]["test"]["best"]
    assert record["identity"]["objective"]["confident"]["strength"] == 0.25
    assert record["identity"]["code"]["objective/confident"] == files.sha256(folder / "objective.py")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["confident"] < 0.25 for line in lines if line["split"] == "train")
    assert "no completed teacher" in refused(*given[:-1], "objective=[confident,kd]")
    assert "mixup" in refused(*given, "alpha=1", "distill.mixup=1")  # which mixes images that then have no label


def test_an_optimizer(folder, done):
    _, record = done(*STUDENT, "optimizer=heavy_ball", "optimizer.friction=0.2", "optimizer.schedule=cosine")
    expected = {
        "name": "heavy_ball",
        "learning_rate": 0.05,
        "friction": 0.2,
        "schedule": "cosine",
        "warmup_epochs": 0.0,
    }
    assert record["identity"]["optimizer"] == expected
    one, _ = done(*STUDENT, "optimizer=heavy_ball", "optimizer.friction=0.1", "optimizer.learning_rate=0.01")
    other, _ = done(*STUDENT, "optimizer=sgd", "optimizer.momentum=0.9", "optimizer.learning_rate=0.01")
    assert bits(one)["predictions/test.npz"] == bits(other)["predictions/test.npz"]  # the same thing by another name


def test_a_tracker_that_goes_on_where_it_was(folder, done, refused):
    given = [*STUDENT, "tracker=[terminal,jsonl,lines]", "tracker.lines.file=mine.txt", "optimizer.schedule=constant"]
    run_dir, record = done(*given, "epochs=1")
    assert not (run_dir / "tensorboard").exists()
    assert [line.split()[:2] for line in (folder / "mine.txt").read_text().splitlines()] == [["1", "1"]]
    grown = ["epochs=3", "outputs=outputs"]
    assert "uses code of the user's own, net.py" in refused(f"resume={run_dir}", *grown)
    _, record = done(f"resume={run_dir}", PLUGINS, *grown)
    assert [line.split()[:2] for line in (folder / "mine.txt").read_text().splitlines()] == [
        ["1", "1"],
        ["2", "2"],
        ["3", "3"],
    ]
    assert record["results"]["steps"] == 3 * 6


def test_a_run_does_not_go_on_with_another_file(folder, done, capfd):
    run_dir, _ = done(*STUDENT, "epochs=1")
    (folder / "net.py").write_text(NET.replace("Conv2D(2,", "Conv2D(3,"))
    assert main([f"resume={run_dir}", PLUGINS, "epochs=2"]) == 2
    assert "code changed since it began" in capfd.readouterr().err


def test_a_stage_with_keys_and_a_check_of_its_own(folder, done, refused, monkeypatch):
    given = [PLUGINS, "stage=count_words", "threshold=0.25", "words=[a,b]"]
    given += ["data=npz", "data.path=nowhere.npz"]  # which it does not need, so that nobody looks at it
    _, record = done(*given)
    assert record["results"] == {"count": 2, "threshold": 0.25} and record["stage"] == "count_words"
    assert record["config"]["words"] == ["a", "b"]
    assert "a share is at most 1" in refused(*given, "threshold=2")
    assert "treshold: there is no such key. Did you mean threshold?" in refused(*given, "treshold=0.5")
    assert "words must be a list" in refused(*given[:3], "words=a")


def test_all_of_them_in_a_sweep_that_goes_on(folder, done, capfd):
    given = ["-m", *STUDENT, *STRIPES, "optimizer=heavy_ball", "tracker=[lines]", "sweep=mine"]
    done(*given, "student.model.layers=1,2")
    assert len(list(Path("outputs/sweeps/mine").glob("layers-*/run.json"))) == 2
    capfd.readouterr()
    assert main([*given, "student.model.layers=1,2,3", "student.model.order=[3,3,3]"]) == 0
    assert len(list(Path("outputs/sweeps/mine").glob("layers-*/run.json"))) == 5  # another order is another net
    assert main([*given, "student.model.layers=1,2"]) == 0
    assert capfd.readouterr().out.count("is completed already") == 2


def test_a_notebook_loads_such_a_run(folder, done):
    run_dir, record = done(*STUDENT)
    run = kdrun.load_run(run_dir, plugins=["net.py"])
    assert run.config["student"]["model"]["name"] == "my_net" and run.record["fingerprint"] == record["fingerprint"]
    assert list(run.metrics["split"]) == ["train", "validation"] * 2
    labels, logits = run.predictions
    from kdrun.data import datasets

    test = datasets.load(run.config["data"]).test
    found = run.network()(run.prepared(test.images), training=False).numpy()
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
    assert (labels == test.labels).all()


def test_cfg_job_shows_a_plug_ins_keys(folder, capfd):
    chosen = ["model@student.model=my_net", "data=stripes", "objective=confident", "optimizer=heavy_ball"]
    assert main(["--cfg", "job", PLUGINS, *chosen, "tracker=[lines]", "data.bright=0.5"]) == 0
    shown = capfd.readouterr().out
    for line in ("layers: 1", "weights: glorot", "count: 96", "bright: 0.5", "strength: 0.5", "friction: 0.1"):
        assert re.search(rf"^ +{line}$", shown, re.MULTILINE), line
    assert "  lines:\n    file: lines.txt\n" in shown


def test_a_plug_ins_keys_in_a_file_of_the_config_folder(folder, done):
    (folder / "mine/model").mkdir(parents=True)
    (folder / "mine/model/deep.yaml").write_text("name: my_net\nlayers: 2\n")  # and what it leaves out by default
    _, record = done("--config-dir", "mine", *STUDENT[:-1], "model@student.model=deep")
    assert record["model"] == {"name": "my_net", "layers": 2, "weights": "glorot", "order": [3, 5]}


def test_a_roles_own_optimizer_may_be_one(folder, done):
    _, record = done(*STUDENT, "optimizer@student.optimizer=heavy_ball", "student.optimizer.friction=0.3")
    assert record["identity"]["optimizer"]["friction"] == 0.3
    assert record["config"]["optimizer"]["name"] == record["config"]["teacher"]["optimizer"]["name"] == "adam"


CHOSEN = {
    "net.py": ["stage=student", "model@student.model=my_net"],
    "source.py": ["stage=student", "data=stripes", *STRIPES[1:]],
    "objective.py": ["stage=distill", "objective=confident"],
    "optimizer.py": ["stage=student", "optimizer=heavy_ball"],
    "tracker.py": ["stage=student", "tracker=[lines]"],
    "stage.py": ["stage=count_words"],
}
TYPOS = {
    "net.py": ("student.model.layrs=2", "student.model.layers"),
    "source.py": ("data.brigth=1", "data.bright"),
    "objective.py": ("objective.confident.strenth=1", "objective.confident.strength"),
    "optimizer.py": ("optimizer.fricton=1", "optimizer.friction"),
    "tracker.py": ("tracker.lines.fle=x", "tracker.lines.file"),
    "stage.py": ("wrods=[a]", "words"),
}
WRONG = {
    "net.py": ("student.model.layers=4", "student.model.layers must be a whole number from 1 to 3, got 4"),
    "source.py": ("data.bright=x", "data.bright must be a number, got 'x'"),
    "objective.py": ("objective.confident.strength=[1]", "objective.confident.strength must be a number, got [1]"),
    "optimizer.py": ("optimizer.friction=null", "optimizer.friction must be a number, got null"),
    "tracker.py": ("tracker.lines.file=3", "tracker.lines.file must be a text"),
    "stage.py": ("threshold=true", "threshold must be a number, got true"),
}
NAMES = {"net.py": "my_net", "source.py": "stripes", "objective.py": "confident", "optimizer.py": "heavy_ball"}
NAMES |= {"tracker.py": "lines", "stage.py": "count_words"}


def small(name: str) -> list[str]:
    nets = [word for word in NETS if name != "net.py" or "student.model" not in word]
    return [f"plugins=[{name}]", *TINY[:-2], "measure_latency=false", *nets, *CHOSEN[name]]


@pytest.mark.parametrize("name", ALL)
def test_a_typo_gets_the_nearest_key(folder, refused, name):
    typo, meant = TYPOS[name]
    said = refused(*small(name), typo)
    assert "there is no such key" in said and meant in said


@pytest.mark.parametrize("name", ALL)
def test_a_value_of_the_wrong_type_is_refused(folder, refused, name):
    given, expected = WRONG[name]
    assert expected in refused(*small(name), given)


@pytest.mark.parametrize("name", ALL)
def test_a_name_that_the_file_does_not_register_is_refused(folder, refused, name):
    (folder / name).write_text(ALL[name].replace(f'"{NAMES[name]}"', '"another"'))
    assert NAMES[name] in refused(*small(name))
    (folder / name).write_text("x = 1\n")
    assert "registers nothing" in refused(*small(name))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("error", ["1 / 0", "raise KeyError('gone')", "x = (", "import nowhere_at_all"])
def test_an_error_in_a_file_is_said_with_its_line(folder, refused, name, error):
    (folder / name).write_text(f"{error}\n{ALL[name]}")
    said = refused(*small(name))
    assert f"plugins: {name} cannot be run" in said and "line" in said


INSIDE = {
    "net.py": ("    x = inputs\n", "    x = inputs['nowhere']\n"),
    "source.py": ("    labels = np.arange(count) % 3\n", "    labels = {}['nowhere']\n"),
    "objective.py": ("    return strength", "    {}['nowhere']\n    return strength"),
    "optimizer.py": ("    import tf_keras\n", "    {}['nowhere']\n"),
    "tracker.py": ("        self.file, self.seen", "        {}['nowhere']\n        self.file, self.seen"),
    "stage.py": ("    with recording", "    {}['nowhere']\n    with recording"),
}


@pytest.mark.parametrize("name", ALL)
def test_an_error_inside_of_a_function_is_said_with_its_line(folder, capfd, name):
    """Not swallowed, and not taken for a missing name."""
    before, after = INSIDE[name]
    assert before in ALL[name]
    (folder / name).write_text(ALL[name].replace(before, after))
    code = main(small(name))
    said = capfd.readouterr().err
    assert code == 2 and "Traceback" not in said and said.count("\n") == 1, said
    assert re.search(rf"{name}, line \d+", said), said
    assert "TypeError" in said if name == "net.py" else "KeyError: 'nowhere'" in said


def test_a_name_that_is_taken_is_refused(folder, refused):
    (folder / "taken.py").write_text(NET.replace('"my_net"', '"mlp"'))
    assert "the model mlp is kdrun's own already" in refused("plugins=[taken.py]", "stage=student", *SMALL)
    (folder / "again.py").write_text(NET)
    assert "the model my_net is registered by" in refused("plugins=[net.py,again.py]", "stage=student", *SMALL)


def test_a_fact_that_there_is_not_is_refused(folder, refused):
    (folder / "net.py").write_text(NET.replace("maps=", "mpas="))
    assert "mpas=...): a model has no such fact. Allowed: features, maps" in refused(*small("net.py"))


def test_a_file_that_the_next_command_does_not_name_is_not_there(folder, done, refused):
    done(*STUDENT)
    assert "there is no such model" in refused("stage=student", *SMALL, "model@student.model=my_net")
    assert "count_words" in refused("stage=count_words")
    (folder / "other.py").write_text(NET)  # whose name is nobody's any more
    done("plugins=[other.py]", "stage=student", *SMALL, "model@student.model=my_net")


def test_a_file_that_a_config_file_names_is_not_run(folder, refused):
    (folder / "mine/experiment").mkdir(parents=True)
    (folder / "mine/experiment/my.yaml").write_text("# @package _global_\nplugins: [net.py]\n")
    (folder / "net.py").write_text(f"open('ran', 'w')\n{NET}")
    said = refused("--config-dir", "mine", "stage=student", *SMALL, "model@student.model=mlp", "experiment=my")
    assert "a config file names code" in said
    assert not (folder / "ran").exists()


def test_files_are_for_all_jobs_of_a_sweep(folder, refused):
    assert "the same for all jobs" in refused("-m", "stage=student", *SMALL, "plugins=net.py,other.py")
    assert "nowhere.py is not a file" in refused("plugins=[nowhere.py]", "stage=student", *SMALL)


@pytest.mark.slow
def test_a_student_of_ones_own_as_the_page_shows_it_and_its_dropout_goes_on(folder, done):
    page = (Path(__file__).parents[1] / "docs/models.md").read_text()
    code, command = re.search(r"`my_net.py`:\n```python\n(.*?)```\n```\nkdrun (.*?)\n```", page, re.S).groups()
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    (folder / "my_net.py").write_text(code)
    given = [*TINY[:-1], "optimizer=sgd", "measure_latency=false", "tensorboard.histograms=false", "workers=1"]
    done(*shlex.split(command), *given, "teacher.model.depth=8", "data.image_size=16")
    records = [json.loads(path.read_text()) for path in Path("outputs").rglob("run.json")]
    (distilled,) = [record for record in records if record["stage"] == "distill"]
    assert distilled["model"] == {"name": "small", "width": 8, "dropout": 0.1}
    assert distilled["identity"]["code"]["model/small"] == files.sha256(folder / "my_net.py")
    alone = ["plugins=[my_net.py]", "stage=student", *given, "model@student.model=small", "student.model.dropout=0.5"]
    whole, _ = done(*alone, "epochs=2")
    half, _ = done(*alone, "epochs=1", "outputs=outputs/half")
    grown, _ = done(f"resume={half}", "plugins=[my_net.py]", "epochs=2", "outputs=outputs/half")
    assert bits(grown)["predictions/test.npz"] == bits(whole)["predictions/test.npz"]
