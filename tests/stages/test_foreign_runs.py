"""Run directories that somebody else may have written, through the command line: damaged ones end in a line, never take
others with them, and what they are called is text wherever it is shown."""

import copy
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from held import bits, compiled

import kdrun
from kdrun.cli.main import main
from kdrun.storage import files
from kdrun.storage.manifest import sealed

TINY = ["data=npz", "model@teacher.model=mlp", "model@student.model=mlp", "teacher.model.hidden_units=[32]"]
TINY += ["student.model.hidden_units=[16]", "optimizer=adam", "data.image_size=8", "data.validation_size=64"]
TINY += ["batch_size=32", "measure_latency=false", "tensorboard.histograms=false"]
TRAINED = ("teacher", "student", "distill")


pytestmark = pytest.mark.usefixtures("in_time")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """The override that names a dataset of 320 + 64 images of 8×8, 4 classes, row `label` brightened."""
    random, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 320), ("test", 64)):
        labels = np.arange(n) % 4
        images = random.integers(0, 128, (n, 8, 8)).astype(np.uint8)
        images[np.arange(n), labels] += 100
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    path = tmp_path_factory.mktemp("data") / "ok.npz"
    np.savez(path, **arrays)
    return f"data.path={path}"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> dict[str, Path]:
    """A completed run of each stage that trains, of two epochs of 8 steps, and their comparison."""
    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    assert main([*TINY, data, "epochs=2", f"outputs={outputs}"]) == 0
    return {stage: next(outputs.glob(f"{stage}/*")) for stage in (*TRAINED, "pipeline")}


def record_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


def written(run_dir: Path, record: dict, resum: bool = False) -> Path:
    """A run's record written anew, sealed again; with the sums of its files, if they are to be right again."""
    if resum:
        record = record | {"files": {name: files.sha256(run_dir / name) for name in record["files"]}}
    (run_dir / "run.json").write_text(json.dumps(sealed(record)))
    return run_dir


def linked(source: Path, target: Path, record: dict | None = None) -> Path:
    """A run directory with the same files, and perhaps another record."""
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns("tensorboard", "state-*"))
    (target / "run.json").unlink()
    return written(target, record or record_of(source))


def refused(code: int, captured, *said: str) -> str:
    assert code in (1, 2) and "Traceback" not in captured.err, captured
    assert captured.err.count("\n") == 1 and captured.err.startswith("kdrun: "), captured
    assert all(part in captured.err for part in said), captured.err
    return captured.err


def places(value, path=()) -> Iterator[tuple]:
    """Where a value is in a record: every key, of every depth."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


WRONG = [None, "x", "[/b]", 5, -1, 10**400, float("inf"), float("nan"), [], ["x"], {}, {"x": {"x": None}}, True]


def changed(record: dict, place: tuple, value) -> dict:
    record = copy.deepcopy(record)
    inside = record
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return record


@pytest.mark.slow
def test_no_change_of_a_run_json_takes_down_a_comparison(trained, tmp_path, capsys):
    """Every value of a distil run's record replaced by some others, missing, and all of them compared at once."""
    good = [linked(trained[stage], tmp_path / "runs" / stage) for stage in TRAINED]
    record, odd = record_of(trained["distill"]), []
    del record["sealed_sha256"]
    for number, place in enumerate(places(record)):
        for value in (WRONG[number % len(WRONG)], WRONG[(5 * number + 3) % len(WRONG)]):
            odd.append(linked(trained["distill"], tmp_path / f"runs/odd{len(odd)}", changed(record, place, value)))
    for key in record:
        odd.append(linked(trained["distill"], tmp_path / f"runs/odd{len(odd)}", {**record, key: 0}))
        lacking = {name: value for name, value in record.items() if name != key}
        odd.append(linked(trained["distill"], tmp_path / f"runs/odd{len(odd)}", lacking))
    assert main(["stage=compare", f"runs={tmp_path}/runs", f"outputs={tmp_path}/outputs"]) == 0
    said = capsys.readouterr()
    (compared,) = (tmp_path / "outputs/compare").iterdir()
    unused = {Path(each["run"]): each["problem"] for each in record_of(compared)["results"]["not_used"]}
    assert said.err == "" and not set(good) & unused.keys() and len(unused) > 200
    assert all(re.match(r"damaged: |\w+, not completed", problem) for problem in unused.values())
    assert all(f"not used: {run_dir}: {problem}\n" in said.out for run_dir, problem in unused.items())
    frame = kdrun.frame(tmp_path / "runs")
    assert len(frame) == len(good) + len(odd) and set(frame[frame["problem"] == ""]["stage"]) == set(TRAINED)


def test_what_is_in_a_run_directory_is_read_only_where_it_is_a_regular_file(trained, tmp_path, capsys):
    specials = {
        "fifo": os.mkfifo,
        "folder": os.mkdir,
        "endless": lambda path: os.symlink("/dev/zero", path),
        "gone": lambda path: os.symlink("nowhere", path),
    }
    bare = record_of(trained["student"]) | {"files": {}}  # nothing is compared with a sum
    for name, make in specials.items():
        for file in ("run.json", "metrics.jsonl", "predictions/test.npz", "checkpoints/best.weights.h5"):
            run_dir = linked(trained["student"], tmp_path / f"runs/{name}-{Path(file).name}", bare)
            (run_dir / file).unlink()
            make(run_dir / file)
    assert main(["stage=compare", f"runs={tmp_path}/runs", f"outputs={tmp_path}/outputs"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for name in specials:
        # a folder of that name is no run.json, and a link to nowhere is one that cannot be read
        for file in ("run.json", "metrics.jsonl", "test.npz"):
            shown = f"not used: {tmp_path}/runs/{name}-{file}: damaged: "
            assert (shown in said.out) == ((name, file) != ("folder", "run.json")), (name, file)


BAD_PREDICTIONS = {
    "labels beyond the classes": lambda a: a | {"labels": np.full_like(a["labels"], 4)},
    "labels that are floats": lambda a: a | {"labels": a["labels"].astype(float)},
    "other images": lambda a: {name: array[:-1] for name, array in a.items()},
    "other classes": lambda a: a | {"logits": a["logits"][:, :-1]},
    "infinite": lambda a: a | {"logits": np.full_like(a["logits"], np.inf)},
    "beyond float32": lambda a: a | {"logits": a["logits"] + 1e60},
    "objects": lambda a: a | {"labels": a["labels"].astype(object)},
    "no logits": lambda a: {"labels": a["labels"]},
    "a number": lambda a: a | {"logits": np.float32(1)},
    "none": lambda a: {name: array[:0] for name, array in a.items()},
}


def test_predictions_that_are_none_are_not_compared(trained, tmp_path, capsys):
    with np.load(trained["student"] / "predictions/test.npz") as held:
        arrays = dict(held)
    for name, change in BAD_PREDICTIONS.items():
        run_dir = linked(trained["student"], tmp_path / "runs" / name)
        (run_dir / "predictions/test.npz").unlink()
        np.savez(run_dir / "predictions/test.npz", **change(arrays))
        written(run_dir, record_of(run_dir), resum=True)
    assert main(["stage=compare", f"runs={tmp_path}/runs", f"outputs={tmp_path}/outputs"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert all(f"not used: {tmp_path}/runs/{name}: damaged: " in said.out for name in BAD_PREDICTIONS)


def test_students_of_other_test_labels_are_no_baseline(trained, tmp_path, capsys):
    """Their record says that they are of the same data; with the labels in another order no image can be paired."""
    linked(trained["distill"], tmp_path / "runs/distill")
    other = linked(trained["student"], tmp_path / "runs/other")
    with np.load(other / "predictions/test.npz") as held:
        arrays = dict(held)
    (other / "predictions/test.npz").unlink()
    np.savez(other / "predictions/test.npz", **arrays | {"labels": np.roll(arrays["labels"], 1)})
    written(other, record_of(other), resum=True)
    assert main(["stage=compare", f"runs={tmp_path}/runs", f"outputs={tmp_path}/outputs"]) == 0
    assert "it has another test_labels" in capsys.readouterr().out


HOSTILE = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(A1)",
    "-2+3+cmd|' /C calc'!A0",
    "＝1+1",
    "\t=1",
    r"\input{/etc/passwd}",
    r"\write18{touch owned}%",
    "$x_1^2$ & #~{}",
    "[x] \\\\ [2cm]",
    "*",
    "a|b|c",
    "`code` ![x](http://example.com/x.png)",
    "<script>alert(1)</script>",
    "</pre><img src=x onerror=alert(2)>",
    "one\ntwo\r\n| three |",
    "\x1b[31mred\x1b[0m\x07",
    "[/bold] [red]",
    "größe ← 目的",
    "\ud800",
]


def test_what_a_run_is_called_is_text_in_every_file_and_on_the_terminal(trained, tmp_path, capsys):
    linked(trained["student"], tmp_path / "runs/student")
    linked(trained["teacher"], tmp_path / "runs/teacher")
    for number, name in enumerate(HOSTILE):
        record = record_of(trained["distill"])
        record["identity"]["objective"] = {name: {"weight": 1.0}}
        record |= {"command": f"kdrun stage=distill {name}"}
        record["config"]["cache_dir"] = name
        linked(trained["distill"], tmp_path / f"runs/hostile{number}", record)
    failed = record_of(trained["distill"]) | {"status": "failed", "error": "<script>alert(3)</script>\n\x1b[31m=1"}
    linked(trained["distill"], tmp_path / "runs/failed", failed)
    assert main(["stage=compare", f"runs={tmp_path}/runs", f"outputs={tmp_path}/outputs"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "\x1b" not in said.out and "\x07" not in said.out
    (folder,) = (tmp_path / "outputs/compare").iterdir()
    assert [row["problem"] for row in record_of(folder)["results"]["not_used"]] == ["<script>alert(3)</script> [31m=1"]

    table = list(csv.DictReader(io.StringIO((folder / "comparison.csv").read_text())))
    named = [row["objective"] for row in table if row["stage"] == "distill"]
    assert len(named) == len(HOSTILE) and "'=cmd|' /C calc'!A0" in named and "'＝1+1" in named
    for cell in (cell for row in table for cell in row.values()):
        assert not re.match(r"[\t\r\n]|\s*[=+\-@＝＋－＠]", cell) or re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell), cell

    lines = (folder / "comparison.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == len(HOSTILE) + 4 and len({row.count("|") for row in rows}) == 1
    (study,) = record_of(folder)["results"]["studies"]
    said = [study["sentence"], *study["notes"], *study["commands"]]
    assert len([line for line in lines if line and not line.startswith("|")]) == len(said)
    assert all(line.isprintable() for line in said)
    assert not re.search(r"<\w|`|\]\(", "\n".join(lines)) and "&lt;script&gt;alert(1)&lt;/script&gt;" in rows[
        -1
    ] + "".join(rows)

    page = (folder / "report.html").read_text()
    ours = r' alt="" src="data:image/png;base64,[\w+/=]*">'
    assert (
        not re.search(rf"<script>alert|<img(?!{ours})|</pre><", page)
        and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    )

    tex = (folder / "comparison.tex").read_text()
    assert r"\input{" not in tex and r"\write18{" not in tex and r"\textbackslash{}input\{/etc/passwd\}" in tex
    assert tex.isascii() and tex.count("\n") == len(HOSTILE) + 2 + 6
    if shutil.which("pdflatex"):
        compiled(tex, tmp_path)


def test_a_comparison_of_stages_that_were_called_from_python(trained, tmp_path, capsys):
    """They have no command to recommend: kdrun itself writes null."""
    for stage in TRAINED:
        linked(trained[stage], tmp_path / "runs" / stage, record_of(trained[stage]) | {"command": None})
    assert main(["stage=compare", f"runs={tmp_path}/runs", f"outputs={tmp_path}/outputs"]) == 0
    said = capsys.readouterr()
    assert (
        said.err == ""
        and "Not enough seeds to tell" in said.out
        and "with the same seeds, three or more, to find out" in said.out
    )
    assert "not used" not in said.out


def test_no_command_is_recommended_that_is_more_than_keys(trained, tmp_path):
    odd = ["kdrun --config-dir /tmp/evil seed=1", "kdrun 'a", "kdrun 'x=1\n2'", "kdrun hydra.run.dir=x", "", None]
    for number, command in enumerate([*odd, "kdrun +x=1 'data.path=my data' ~y"]):
        linked(trained["student"], tmp_path / f"runs/{number}", record_of(trained["student"]) | {"command": command})
    frame = kdrun.frame(tmp_path / "runs")
    assert list(frame["command"]) == [""] * len(odd) + ["kdrun +x=1 'data.path=my data' '~y'"]
    assert not frame["problem"].any()


def other_network(path: Path, other: Path) -> None:
    shutil.copyfile(other / "checkpoints/best.weights.h5", path)


def no_hdf5(path: Path, other: Path) -> None:
    path.write_bytes(b"weights" * 1000)


def truncated(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def with_link(link) -> Callable:
    def change(path: Path, other: Path) -> None:
        shutil.copyfile(path, path.with_name("elsewhere.h5"))
        with h5py.File(path, "r+") as file:
            name = next(name for name, item in walked(file) if isinstance(item, h5py.Dataset))
            del file[name]
            file[name] = link("elsewhere.h5", name)

    return change


def walked(file: h5py.File) -> list:
    found = []
    file.visititems(lambda name, item: found.append((name, item)) if item is not None else None)
    return found


def replaced(**keys) -> Callable:
    def change(path: Path, other: Path) -> None:
        with h5py.File(path, "r+") as file:
            name = next(name for name, item in walked(file) if isinstance(item, h5py.Dataset))
            del file[name]
            file.create_dataset(name, **keys)

    return change


def external_storage(path: Path, other: Path) -> None:
    raw = path.with_name("raw")
    raw.write_bytes(bytes(64 * 16 * 4))
    replaced(shape=(64, 16), dtype="<f4", external=[(str(raw), 0, 64 * 16 * 4)])(path, other)


def cyclic(path: Path, other: Path) -> None:
    """A group that holds itself, and a variable too many."""
    with h5py.File(path, "r+") as file:
        group = next(item for _, item in walked(file) if isinstance(item, h5py.Group) and "0" in item)
        group["again"] = file["/"]


BAD_WEIGHTS = {
    "another network's": other_network,
    "not HDF5": no_hdf5,
    "truncated": truncated,
    "an external link": with_link(h5py.ExternalLink),
    "a soft link": with_link(lambda *_: h5py.SoftLink("/nowhere")),
    "stored elsewhere": external_storage,
    "186 GiB": replaced(shape=(50_000_000_000,), dtype="<f4", chunks=(1000,)),
    "texts": replaced(data=["a", "b"]),
    "a number": replaced(data=np.float32(1)),
    "another shape": replaced(data=np.zeros((16, 64), np.float32)),
    "a circle": cyclic,
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_weights_that_are_none_of_the_network_end_in_one_line(kind, trained, data, tmp_path, capsys):
    """Their sums are right: somebody redid them. They are to be evaluated, and to teach."""
    for stage in ("student", "teacher"):
        run_dir = shutil.copytree(trained[stage], tmp_path / stage)
        for name in ("best", "last"):
            other = trained["teacher" if stage == "student" else "student"]
            BAD_WEIGHTS[kind](run_dir / f"checkpoints/{name}.weights.h5", other)
        written(run_dir, record_of(run_dir), resum=True)
    capsys.readouterr()
    outputs = f"outputs={tmp_path}/outputs"
    code = main(["stage=evaluate", f"run={tmp_path}/student", outputs])
    refused(code, capsys.readouterr(), "best.weights.h5", "damaged, or of another network")
    code = main([*TINY, data, "stage=distill", "epochs=1", f"teacher.run={tmp_path}/teacher", outputs])
    refused(code, capsys.readouterr(), "best.weights.h5", "damaged, or of another network")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("num_classes",), 10**9),
        (("model", "hidden_units"), [10**9]),
        (("model", "hidden_units"), "x"),
        (("model", "hidden_units"), {"x": 1}),
        (("model", "name"), "nowhere"),
        (("model", "more"), 1),
        (("model", "hidden_units"), 5),
        (("config", "data", "train_size"), "x"),
        (("image_shape",), [10**6, 10**6, 1]),
        (("image_shape",), [8]),
        (("normalisation",), {"mean": [0.5, 0.5], "std": [1.0, 1.0]}),
        (("normalisation",), {"mean": [0.5], "std": [0]}),
        (("normalisation",), {"mean": [0.5]}),
        (("precision",), "float31"),
        (("seed",), None),
        (("config", "data", "name"), "../../etc"),
        (("config", "data", "name"), "nowhere"),
        (("config", "data", "path"), None),
        (("config", "data", "validation_size"), "x"),
        (("config", "data", "image_size"), -8),
        (("config", "evaluation_batch_size"), 0),
        (("results", "test", "best"), None),
        (("results", "test", "best", "accuracy"), "x"),
        (("results",), []),
        (("files",), {"../../../etc/passwd": "0" * 64}),
        (("files",), {"checkpoints/best.weights.h5": 3}),
    ],
)
def test_a_record_of_no_network_ends_in_one_line(place, value, trained, tmp_path, capsys):
    run_dir = shutil.copytree(trained["student"], tmp_path / "run")
    written(run_dir, changed(record_of(run_dir), place, value))
    code = main(["stage=evaluate", f"run={run_dir}", f"outputs={tmp_path}/outputs"])
    refused(code, capsys.readouterr())


def stopped(source: Path, target: Path) -> Path:
    """A run as if it had been stopped after its last epoch but one."""
    shutil.copytree(source, target)
    record = {key: value for key, value in record_of(target).items() if key not in ("results", "files", "finished")}
    record["config"]["outputs"] = str(target.parent)
    shutil.rmtree(target / "checkpoints/state-16")
    return written(target, record | {"status": "interrupted"})


BAD_STATES = {
    ("progress", "step"): [10**18, -1, "8", None, 8.0, True, 7],
    ("progress", "epochs"): [0, 2, -1, None, [1]],
    ("progress", "sums"): [[], [0.0] * 9, ["x"] * 3, None, [None, 0.0, 0.0]],
    ("progress", "best"): [None, 3, {}, {"epoch": 1}, []],
    ("progress", "last"): [None, "x"],
    ("progress", "best", "cross_entropy"): [None, "x", float("nan")],
    ("progress",): [None, [], {}],
    ("clock",): [None, {}, 5],
    ("clock", "steps"): [10**18, None, 3],
    ("clock", "training_seconds"): ["x", None],
    ("clock", "first_step"): ["yesterday", None, 5, "2026-01-01"],
    ("trackers",): [None, [], 5],
    ("trackers", "jsonl"): [None, {}, 5],
    ("trackers", "jsonl", "since"): [None, 1, 10**18],
    ("trackers", "jsonl", "lines"): [None, {}, ["x"], [{"epoch": 1}], []],
    ("trackers", "jsonl", "lines", 0, "loss"): [None, "x"],
    ("files",): [None, [], {"../../run.json": "0" * 64}, {"/dev/zero": "0" * 64}, {"..": "0" * 64}],
    ("files", "variables.index"): ["0" * 64, None, 5],
}


def test_states_that_cannot_be_are_set_aside_and_the_one_before_is_used(trained, tmp_path, capsys):
    """Dozens of them, all newer than the good one: all are passed over, and the run ends with the same bits."""
    run_dir = stopped(trained["student"], tmp_path / "outputs/student")
    good = run_dir / "checkpoints/state-8"
    facts = json.loads((good / "manifest.json").read_text())
    bad = [(place, value) for place, values in BAD_STATES.items() for value in values]
    for number, (place, value) in enumerate(bad, start=9):
        state = shutil.copytree(good, run_dir / f"checkpoints/state-{number}")
        (state / "manifest.json").write_text(json.dumps(sealed(changed(facts, place, value))))
    outside = shutil.copytree(good, run_dir / f"checkpoints/state-{9 + len(bad)}")
    sums = facts["files"] | {"../state-8/variables.index": facts["files"]["variables.index"]}
    (outside / "manifest.json").write_text(json.dumps(sealed(facts | {"files": sums})))
    specials = ("manifest.json", "variables.index", "best.weights.h5", "variables.data-00000-of-00002")
    for number, name in enumerate(specials, start=10 + len(bad)):
        state = shutil.copytree(good, run_dir / f"checkpoints/state-{number}")
        (state / name).unlink(missing_ok=True)
        os.mkfifo(state / name)
    without = shutil.copytree(good, run_dir / "checkpoints/state-1000000000000000000")
    (without / "best.weights.h5").unlink()
    kept = {name: total for name, total in facts["files"].items() if name != "best.weights.h5"}
    (without / "manifest.json").write_text(json.dumps(sealed(facts | {"files": kept})))
    assert main([f"resume={run_dir}"]) == 0
    said = capsys.readouterr()
    count = len(bad) + len(specials) + 2
    assert said.out.count("is damaged: ") == count and len(list((run_dir / "checkpoints").glob("*.damaged"))) == count
    assert "going on after step 8, with 1 epochs done" in said.out and said.err == ""
    assert bits(run_dir) == bits(trained["student"])


@pytest.mark.parametrize("name", ["kdrun.log", "tensorboard/train/events.out.tfevents.1", "metrics.jsonl"])
def test_a_run_with_special_files_in_it_does_not_go_on(name, trained, tmp_path, capsys):
    run_dir = stopped(trained["student"], tmp_path / "outputs/student")
    for make in (os.mkfifo, lambda path: os.symlink(tmp_path / "mine", path)):
        (tmp_path / "mine").write_text("precious")
        (run_dir / name).unlink(missing_ok=True)
        make(run_dir / name)
        code = main([f"resume={run_dir}"])
        refused(code, capsys.readouterr(), f"{name} in it is no regular file")
        assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("file", ["best.weights.h5", "variables.index", "variables.data-00000-of-00001"])
def test_a_state_of_another_network_ends_in_one_line(file, trained, tmp_path, capsys):
    run_dir = stopped(trained["student"], tmp_path / "outputs/student")
    state = run_dir / "checkpoints/state-8"
    shutil.copyfile(trained["teacher"] / "checkpoints/state-8" / file, state / file)
    facts = json.loads((state / "manifest.json").read_text())
    facts["files"][file] = files.sha256(state / file)
    (state / "manifest.json").write_text(json.dumps(sealed(facts)))
    code = main([f"resume={run_dir}"])
    refused(code, capsys.readouterr(), "state-8", "damaged, or of another network")


def test_a_sweeps_end_beside_jobs_of_somebody_else(trained, command, data, tmp_path):
    """No TensorFlow: the sweep's own job fails, and the table of all jobs is still shown."""
    sweep, record = tmp_path / "outputs/sweeps/s", record_of(trained["student"])
    changes = {
        "error": {"status": "failed", "error": 5},
        "marked": {"status": "failed", "error": "[/b] a\n\x1b[31mb"},
        "results": {"results": {"test": "x"}},
        "none": {"results": None},
        "[red]": {},
    }
    for name, change in changes.items():
        linked(trained["student"], sweep / name, record | change)
    (sweep / "fifo").mkdir()
    os.mkfifo(sweep / "fifo/run.json")
    ended = command("-m", "stage=student", *TINY, data, "epochs=1", "seed=1,2", "sweep=s")
    assert ended.code == 1 and "Traceback" not in ended.err + ended.out and "\x1b" not in ended.out
    assert re.search(r"│ error +│ damaged", ended.out) and re.search(r"│ \[red\] +│ completed", ended.out)
    assert "marked: [/b] a [31mb (" in ended.out and ended.out.count("│ damaged") == 4


def test_clearing_the_cache_follows_nothing_and_removes_nothing_that_is_not_its_own(tmp_path, capsys):
    cache, mine = tmp_path / "cache", tmp_path / "mine"
    kinds = ("good", "link", "folder", "fifo", "file", "inside", "locked")
    names = {kind: cache / f"{number:032x}" for number, kind in enumerate(kinds)}
    for kind in ("good", "folder", "fifo", "inside", "locked"):
        names[kind].mkdir(parents=True)
        (names[kind] / "manifest.json").write_text("{}")
    mine.mkdir()
    (mine / "train.npy").write_text("precious")
    names["link"].symlink_to(mine)
    (names["folder"] / "train.npy").mkdir()
    (names["folder"] / "train.npy/diary.txt").write_text("precious")
    os.mkfifo(names["fifo"] / "test.npy")
    names["file"].write_text("precious")
    (names["inside"] / "train.npy").symlink_to(mine / "train.npy")
    names["locked"].with_suffix(".lock").mkdir()
    names["dangling"] = names["good"].with_suffix(".partial")
    names["dangling"].symlink_to("nowhere")

    def held() -> dict:
        found = [path for path in tmp_path.rglob("*") if "outputs" not in path.parts and path.suffix != ".lock"]
        return {path: path.read_bytes() if path.is_file() else path.lstat().st_mode for path in found}

    before = held()
    arguments = ["stage=cache", "cache.clear=true", f"cache_dir={cache}", f"outputs={tmp_path}/outputs"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == "" and held() == before
    assert set(re.findall(r"(\S+) stays", said.out)) == {str(names[kind]) for kind in ("link", "file", "dangling")}
    assert main([*arguments, "cache.yes=true"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and re.findall(r"deleted (\S+)", said.out) == [str(names["good"])]
    assert set(re.findall(r"(\S+) stays: ", said.out)) == {str(path) for kind, path in names.items() if kind != "good"}
    gone = {names["good"], names["good"] / "manifest.json"}
    assert held() == {path: content for path, content in before.items() if path not in gone}


def test_a_pipeline_of_before_a_key_came_goes_on(trained, tmp_path):
    """Its saved config lacks what no result depends on: that is as it is now."""
    outputs = tmp_path / "outputs"
    shutil.copytree(trained["pipeline"].parents[1], outputs)
    run_dir = next(outputs.glob("pipeline/*"))
    record = record_of(run_dir) | {"status": "interrupted"}
    del record["config"]["compare"], record["results"], record["finished"]
    written(run_dir, record)
    assert main([f"resume={run_dir}", f"outputs={outputs}", "compare.margin=0.5"]) == 0
    assert record_of(run_dir)["status"] == "completed"
    assert record_of(run_dir)["results"]["studies"][0]["margin"] == 0.005


def test_a_teacher_of_other_data_in_the_same_folder_is_a_row_of_its_own(data, trained, tmp_path):
    """What outputs/teacher comes to hold: a column of errors for each size of a test split, empty for others."""
    other = [*TINY, data, "stage=teacher", "epochs=1", "data.test_size=40", f"outputs={tmp_path}"]
    assert main(other) == 0
    places = f"runs=[{','.join(str(trained[each].parent) for each in TRAINED)},{tmp_path}/teacher]"
    assert main(["stage=compare", places, f"outputs={tmp_path / 'compared'}"]) == 0
    (page,) = (tmp_path / "compared").glob("compare/*/report.html")
    assert {"errors of 40", "errors of 64"} <= set(re.findall(r"errors of \d+", page.read_text()))
