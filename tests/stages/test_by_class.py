"""Accuracy by class, by name, from a run's record to the comparison's page: counted anew, image by image; and names
that somebody else may have written."""

import base64
import csv
import html
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as TensorBoard

from kdrun.cli.main import main
from kdrun.storage import files
from kdrun.storage.manifest import sealed

LONG = "a name as folders of photographs have them, n02085620, " * 4
NAMES = ["cat", "<script>alert(1)</script>", "\u732b", "\u0642\u0637\u0629", LONG, "x\ny\x1b[31m$_^"]
SHOWN = [*NAMES[:4], LONG.strip(), "x y [31m$_^"]
SOURCE = f'''
import numpy as np

from kdrun.data.source import Arrays
from kdrun.registry import register

NAMES = {NAMES!a}


@register("data", "named")
def named(*, count: int = 240, order: list[int] = (0, 1, 2, 3, 4, 5)):
    """Six classes, the later ones of more images; no test image is of the third."""
    random, arrays = np.random.default_rng(0), {{}}
    for split, n in (("train", count), ("test", count // 2)):
        labels = random.choice(6, n, p=np.arange(1, 7) / 21)
        labels = labels[(labels != 2) | (split == "train")]
        images = random.integers(0, 180, (len(labels), 8, 8, 3), np.uint8)
        images[np.arange(len(labels)), labels] += 75
        arrays |= {{f"x_{{split}}": images, f"y_{{split}}": labels}}
    source = Arrays(arrays, num_classes=6)
    source.class_names = [NAMES[number] for number in order]
    return source
'''
GIVEN = ["data=named", "data.image_size=8", "data.validation_size=48", "batch_size=32", "epochs=4"]
GIVEN += ["optimizer=adam", "optimizer.learning_rate=0.01", "temperature=2"]
GIVEN += ["model@teacher.model=mlp", "teacher.model.hidden_units=[16]", "model@student.model=mlp", "workers=1"]
GIVEN += ["student.model.hidden_units=[8]", "measure_latency=false", "tensorboard.histograms=false"]
STAGES = ("teacher", "student", "distill")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """The outputs of a pipeline over two seeds, on a file of the user's own with names."""
    folder = tmp_path_factory.mktemp("named")
    (folder / "source.py").write_text(SOURCE)
    assert main([f"plugins=[{folder}/source.py]", *GIVEN, "seeds=2", f"outputs={folder}/outputs"]) == 0
    return folder / "outputs"


@pytest.fixture
def kdrun(outputs, tmp_path, capsys):
    """Run a command that knows the data; returns its exit code, what it said, and the run directory that it made."""

    def run(*arguments: str):
        capsys.readouterr()
        before = set(tmp_path.glob("out/*/*/run.json"))
        code = main([f"plugins=[{outputs.parent}/source.py]", *arguments, f"outputs={tmp_path}/out"])
        made = set(tmp_path.glob("out/*/*/run.json")) - before
        return code, capsys.readouterr(), made.pop().parent if made else None

    return run


def record(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


def of_stage(outputs: Path, stage: str) -> list[Path]:
    return sorted(outputs.glob(f"{stage}/*"))


def expected(run_dir: Path, logits: str = "logits") -> dict:
    with np.load(run_dir / "predictions/test.npz") as saved:
        return reference.by_class(saved[logits].astype(np.float64), saved["labels"])


def mean(values):
    return None if None in values else sum(values) / len(values)


def copied(run_dir: Path, target: Path, change=lambda found: found) -> Path:
    """A run as another kdrun may have written it, sealed and with the right sums."""
    shutil.copytree(run_dir, target)
    found = change(record(target))
    found["files"] = {name: files.sha256(target / name) for name in found["files"]}
    (target / "run.json").write_text(json.dumps(sealed(found)))
    return target


def without(found: dict) -> dict:
    """A record of before classes had names and accuracies."""
    del found["class_names"], found["results"]["test"]["confusion"]
    for which in ("best", "last"):
        del found["results"]["test"][which]["balanced_accuracy"], found["results"]["test"][which]["class_accuracy"]
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_record_has_names_and_what_is_counted_of_each_class(stage, outputs):
    for run_dir in of_stage(outputs, stage):
        found = record(run_dir)
        assert found["class_names"] == NAMES and found["num_classes"] == 6
        for which, logits in (("best", "logits"), ("last", "last_logits")):
            counted, said = expected(run_dir, logits), found["results"]["test"][which]
            assert said["class_accuracy"] == counted["class_accuracy"] and counted["class_accuracy"][2] is None
            assert said["balanced_accuracy"] == pytest.approx(counted["balanced_accuracy"], rel=1e-14)
            assert abs(said["balanced_accuracy"] - said["accuracy"]) > 1e-3  # the test would notice
        assert found["results"]["test"]["confusion"] == expected(run_dir)["confusion"]
        assert "class_accuracy" not in found["results"]["validation"]["best"]
        text = (run_dir / "run.json").read_text()
        assert len(re.findall(r'^ +"class_accuracy": \[[^\[\]\n]+, null, [^\[\]\n]+\]$', text, re.MULTILINE)) == 2


def test_trackers_are_told_numbers_and_shown_pictures(outputs):
    for stage in STAGES:
        (events,) = of_stage(outputs, stage)[0].glob("tensorboard/test/events.*")
        shown = TensorBoard(str(events)).Reload()
        assert set(shown.Tags()["images"]) == {"confusion_matrix", "misclassified"}
        (event,) = shown.Tensors("test/balanced_accuracy")
        (balanced,) = event.tensor_proto.float_val
        assert balanced == pytest.approx(expected(of_stage(outputs, stage)[0])["balanced_accuracy"], rel=1e-6)


def test_evaluate_finds_the_same_by_class(outputs, kdrun, tmp_path):
    run_dir = of_stage(outputs, "distill")[0]
    code, _, evaluated = kdrun("stage=evaluate", f"run={run_dir}")
    assert code == 0
    found, counted = record(evaluated), expected(run_dir)
    assert found["class_names"] == NAMES and found["results"]["confusion"] == counted["confusion"]
    assert found["results"]["best"]["class_accuracy"] == counted["class_accuracy"]

    def changed(found: dict) -> dict:
        accuracies = found["results"]["test"]["best"]["class_accuracy"]
        accuracies[5], accuracies[4] = accuracies[4], accuracies[5]
        return found

    code, said, _ = kdrun("stage=evaluate", f"run={copied(run_dir, tmp_path / 'changed', changed)}")
    assert code == 1 and "do not give the test metrics of run.json (class_accuracy)" in said.err
    code, _, evaluated = kdrun("stage=evaluate", f"run={copied(run_dir, tmp_path / 'older', without)}")
    assert code == 0 and record(evaluated)["results"]["best"]["class_accuracy"] == counted["class_accuracy"]
    assert record(evaluated)["class_names"] == NAMES  # the data's


def test_on_other_data_a_class_is_the_one_of_its_name(outputs, kdrun):
    run_dir = of_stage(outputs, "student")[0]
    code, said, evaluated = kdrun("stage=evaluate", f"run={run_dir}", "data=named", "data.count=120")
    found = record(evaluated)["results"]["best"]
    assert code == 0 and "no test image of 1 of 6 classes" in said.out
    row = next(line for line in said.out.splitlines() if line.startswith("│ cat "))
    assert f"{found['class_accuracy'][0]:.2%}" in row
    assert any("balanced" in line and "cross-entropy" in line for line in said.out.splitlines())
    row = next(line for line in said.out.splitlines() if line.startswith("│ best weights "))
    assert [cell.strip() for cell in row.split("│")][2:4] == [
        f"{found[name]:.2%}" for name in ("accuracy", "balanced_accuracy")
    ]
    code, said, _ = kdrun("stage=evaluate", f"run={run_dir}", "data=named", "data.order=[3,1,2,0,4,5]")
    assert code == 2 and said.err.count("\n") == 1
    assert f"its class 0 is {NAMES[3]}, and cat to the run's network" in said.err


@pytest.fixture(scope="module")
def compared(outputs) -> Path:
    """The pipeline's own comparison."""
    (folder,) = of_stage(outputs, "pipeline")
    return folder


def by_hand(outputs: Path) -> dict[str, list[list[float | None]]]:
    """Accuracy by class of each run of each stage."""
    return {stage: [expected(run)["class_accuracy"] for run in of_stage(outputs, stage)] for stage in STAGES}


def test_a_comparison_has_means_over_seeds_and_gains_by_name(outputs, compared, kdrun):
    accuracies = {stage: list(map(mean, zip(*each, strict=True))) for stage, each in by_hand(outputs).items()}
    table = list(csv.DictReader(io.StringIO((compared / "classes.csv").read_text())))
    assert {row["class"] for row in table} == set(SHOWN)
    gains = []
    for row in table:
        label = SHOWN.index(row["class"])
        if label == 2:
            assert [row[key] for key in (*STAGES, "gain")] == [""] * 4 and row["images"] == "0"
            continue
        assert [float(row[stage]) for stage in STAGES] == pytest.approx([accuracies[stage][label] for stage in STAGES])
        gains.append(accuracies["distill"][label] - accuracies["student"][label])
        assert float(row["gain"]) == pytest.approx(gains[-1], abs=1e-12)
    assert gains == sorted(gains, reverse=True) and len(set(gains)) > 2 and table[-1]["class"] == SHOWN[2]
    code, said, again = kdrun("stage=compare", f"runs={outputs}")
    assert code == 0 and (again / "classes.csv").read_text() == (compared / "classes.csv").read_text()
    assert "\x1b" not in said.out and f"{SHOWN[5]} " in said.out
    balanced = [mean([value for value in accuracies[stage] if value is not None]) for stage in STAGES]
    row = next(line for line in said.out.splitlines() if line.startswith("│ balanced accuracy "))
    assert [cell.strip() for cell in row.split("│")][3:7] == [
        *(f"{value:.2%}" for value in balanced),
        f"{100 * (balanced[2] - balanced[1]):+.2f}",
    ]
    assert max(map(len, said.out[said.out.index("accuracy by class") :].splitlines()[1:12])) <= 80
    groups = json.loads((compared / "comparison.json").read_text())["groups"].values()
    found = {group["stage"]: group["balanced_accuracy"] for group in groups}
    assert [found[stage] for stage in STAGES] == pytest.approx(balanced)


def rows_of(page: str, start: str) -> list[list[str]]:
    """The cells' texts of a table's rows, the first one after `start`."""
    table = page[page.index("<table", page.index(start)) :]
    table = table[: table.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [
        [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in rows
    ]


def test_the_page_shows_them_the_confusions_and_the_surest_mistakes_by_name(outputs, compared):
    page = (compared / "report.html").read_text()
    assert "<script>alert" not in page and "\x1b" not in page
    head, *rows, balanced = rows_of(page, "<h2>By class")
    assert head[:6] == ["class", "test images", "teacher", "student alone", "distilled student", "gain, points"]
    assert {row[0] for row in rows} == set(SHOWN) and balanced[0] == "balanced accuracy"
    assert next(row for row in rows if row[0] == SHOWN[2])[1:6] == ["0", "–", "–", "–", "–"]

    confusions = [expected(run)["confusion"] for run in of_stage(outputs, "distill")]
    head, *rows = rows_of(page, "<summary>")
    assert head[1:] == SHOWN and [row[0] for row in rows] == SHOWN
    for label, row in enumerate(rows):
        counts = [mean([confusion[label][column] for confusion in confusions]) for column in range(6)]
        assert row[1:] == [f"{count:.1f}" if count else "" for count in counts]

    with np.load(of_stage(outputs, "distill")[0] / "predictions/test.npz") as saved:
        labels, z = saved["labels"].tolist(), saved["logits"].astype(np.float64)
    p = reference.softmax(z)
    wrong = [(-max(row), number) for number, row in enumerate(p.tolist()) if row.index(max(row)) != labels[number]]
    images = named_images(outputs)
    shown = re.findall(r'base64,([^"]*)"><figcaption><bdi>(.*?)</bdi> taken for <bdi>(.*?)</bdi>, ([\d.]+)%', page)
    assert len(shown) == min(24, len(wrong)) > 5
    for (picture, label, predicted, probability), (sure, number) in zip(shown, sorted(wrong), strict=False):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
        np.testing.assert_array_equal(pixels, images[number])
        assert float(probability) == pytest.approx(-100 * sure, abs=0.051)
        for text, name in ((label, SHOWN[labels[number]]), (predicted, SHOWN[int(p[number].argmax())])):
            said = html.unescape(text)
            assert said == name or (name == SHOWN[4] and name.startswith(said[:-1]) and len(said) == 40)


@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Debian's chromium and chromium-driver",
)
def test_the_page_by_class_in_a_real_browser(compared):
    """Long names widen nothing, a matrix is not sorted, and the pictures are pictures."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--window-size=800,900"):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        browser.get((compared / "report.html").as_uri())
        width = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.execute_script(width) <= 0
        names = browser.find_elements("css selector", "td.name, th.name")
        assert len(names) >= 12 and max(name.size["width"] for name in names) < 300
        headings = browser.find_elements("css selector", ".confusion thead div")
        assert [heading.get_attribute("title") for heading in headings] == SHOWN
        assert max(heading.size["height"] for heading in headings) < 200
        cell = ".confusion tbody th"
        before = [name.text for name in browser.find_elements("css selector", cell)]
        browser.find_element("css selector", ".confusion thead th:nth-child(2)").click()
        assert [name.text for name in browser.find_elements("css selector", cell)] == before
        pictures = browser.find_elements("css selector", ".mistakes img")
        assert pictures and {picture.get_property("naturalWidth") for picture in pictures} == {8}
        (table,) = [t for t in browser.find_elements("css selector", "table") if "balanced accuracy" in t.text]
        table.find_elements("css selector", "th")[0].click()  # by name; the mean stays where it is
        first = [row.text for row in table.find_elements("css selector", "tbody td:first-child")]
        assert first == sorted(first) and table.find_element("css selector", "tfoot td").text == "balanced accuracy"


def named_images(outputs: Path) -> np.ndarray:
    """The test images of the user's own file, by its own function."""
    held: dict = {}
    exec(SOURCE.replace('@register("data", "named")', ""), held)
    return held["named"]().read("x_test")


def test_runs_of_before_classes_had_names_are_compared_by_number(outputs, compared, kdrun, tmp_path):
    for stage in STAGES:
        for number, run_dir in enumerate(of_stage(outputs, stage)):
            copied(run_dir, tmp_path / f"older/{stage}{number}", without)
    code, said, folder = kdrun("stage=compare", f"runs={tmp_path}/older")
    assert code == 0 and said.err == "" and "not used" not in said.out
    named, numbered = (
        {row["class"]: row for row in csv.DictReader(io.StringIO((each / "classes.csv").read_text()))}
        for each in (compared, folder)
    )
    assert numbered == {str(SHOWN.index(name)): row | {"class": str(SHOWN.index(name))} for name, row in named.items()}
    assert "taken for <bdi>" in (folder / "report.html").read_text()


FOREIGN = {
    "too few names": (("class_names",), NAMES[:-1]),
    "a hundred thousand names": (("class_names",), ["x"] * 10**5),
    "names that are numbers": (("class_names",), [0, 1, 2, 3, 4, 5]),
    "no list of names": (("class_names",), {"0": "cat"}),
    "too many accuracies": (("results", "test", "best", "class_accuracy"), [0.5] * 7),
    "an accuracy above 1": (("results", "test", "last", "class_accuracy"), [0.5, 2, None, 0, 0, 0]),
    "texts": (("results", "test", "best", "class_accuracy"), ["x"] * 6),
    "a negative mean": (("results", "test", "best", "balanced_accuracy"), -0.1),
    "half a matrix": (("results", "test", "confusion"), [[1] * 6] * 3),
    "a ragged matrix": (("results", "test", "confusion"), [[1] * 6] * 5 + [[1] * 5]),
    "a matrix of texts": (("results", "test", "confusion"), [["x"] * 6] * 6),
    "no matrix": (("results", "test", "confusion"), 5),
}


def test_records_of_other_classes_are_damaged_in_one_line(outputs, kdrun, tmp_path):
    source = of_stage(outputs, "student")[0]

    def change(place: tuple, value):
        def changed(found: dict) -> dict:
            inside = found
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
            return found

        return changed

    for name, (place, value) in FOREIGN.items():
        run_dir = copied(source, tmp_path / "runs" / name, change(place, value))
        code, said, _ = kdrun("stage=evaluate", f"run={run_dir}")
        assert code == 2 and said.err.count("\n") == 1 and len(said.err) < 600, (name, said.err)
        assert "is damaged" in said.err and ".".join(place) in said.err, (name, said.err)
    copied(source, tmp_path / "runs/good")
    code, said, folder = kdrun("stage=compare", f"runs={tmp_path}/runs")
    assert code == 0 and said.err == ""
    unused = {Path(row["run"]).name for row in record(folder)["results"]["not_used"]}
    assert unused == set(FOREIGN)


def test_names_that_somebody_else_wrote_are_text(outputs, kdrun, tmp_path):
    names = [
        "</td><img src=x onerror=alert(2)>",
        "=cmd|' /C calc'!A0",
        "",
        "\ud800",
        "[/bold] [red]",
        "\x1b[2J\x07\r\n",
    ]
    for stage in STAGES:
        copied(of_stage(outputs, stage)[0], tmp_path / "runs" / stage, lambda found: found | {"class_names": names})
    code, said, folder = kdrun("stage=compare", f"runs={tmp_path}/runs")
    assert code == 0 and said.err == "" and "not used" not in said.out
    assert "\x1b" not in said.out and "\x07" not in said.out and "│ [/bold] [red] " in said.out
    page = (folder / "report.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page
    cells = [row["class"] for row in csv.DictReader(io.StringIO((folder / "classes.csv").read_text()))]
    assert sorted(cells) == sorted([names[0], f"'{names[1]}", "2", "3", names[4], "[2J"])
    code, said, _ = kdrun("stage=evaluate", f"run={tmp_path}/runs/student", "data=named")
    assert code == 2 and said.err.count("\n") == 1 and "\x1b" not in said.err
