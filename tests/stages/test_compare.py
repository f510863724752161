"""Sweeps that survive, and their comparison, through the command line; the page in a real browser."""

import html
import importlib.util
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reference
from held import bits, compiled
from processes import Kdrun
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as TensorBoard
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import backend_context

import kdrun
from kdrun.cli.main import main
from kdrun.runs import record as runs
from kdrun.storage import files
from kdrun.storage.manifest import sealed

SMALL = ["data.train_size=640", "data.validation_size=256", "data.test_size=200", "data.image_size=28"]
SMALL += ["batch_size=64", "model@teacher.model=convnet", "teacher.model.filters=[8,16]", "evaluation_batch_size=100"]
SMALL += [
    "model@student.model=convnet",
    "student.model.filters=[2,4]",
    "optimizer=adam",
    "tensorboard.histograms=false",
]
VALUES = ["temperature=2,8", "seed=0,1,2"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """The outputs of a teacher, students alone and distilled students over three seeds; one process."""
    outputs = tmp_path_factory.mktemp("swept") / "outputs"
    common = [*SMALL, f"outputs={outputs}"]
    assert main([*common, "stage=teacher", "epochs=3"]) == 0
    (teacher,) = outputs.glob("teacher/*")
    assert main(["-m", *common, "stage=student", "epochs=2", "seed=0,1,2", "sweep=alone"]) == 0
    distil = ["stage=distill", "epochs=2", f"teacher.run={teacher}", "sweep=distilled"]
    assert main(["-m", *common, *distil, *VALUES]) == 0
    return outputs


def jobs(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in folder.glob("*/run.json")}


def test_jobs_have_readable_names_and_the_order_of_the_command_line_does_not_matter(swept, capsys):
    found = jobs(swept / "sweeps/distilled")
    assert len(found) == 6
    assert all(re.fullmatch(r"seed-[012]__temperature-[28]-[0-9a-f]{8}", name) for name in found)
    (teacher,) = swept.glob("teacher/*")
    before = {name: (path / "run.json").read_bytes() for name, path in found.items()}
    values = ["seed=2,0,1", "temperature=8.0,2"]
    common = [*values, f"teacher.run={teacher}", "sweep=distilled", "epochs=2", "stage=distill", *reversed(SMALL)]
    assert main(["-m", *common, f"outputs={swept}"]) == 0
    said = capsys.readouterr().out
    assert said.count("is completed already") == 6
    assert {name: (path / "run.json").read_bytes() for name, path in jobs(swept / "sweeps/distilled").items()} == before


def test_new_values_are_added_and_only_they_are_computed(swept, tmp_path, capsys):
    outputs = shutil.copytree(swept, tmp_path / "outputs")
    assert main(["-m", *SMALL, "stage=student", "epochs=2", "seed=1,2,3", "sweep=alone", f"outputs={outputs}"]) == 0
    assert capsys.readouterr().out.count("is completed already") == 2
    assert len(jobs(outputs / "sweeps/alone")) == 4


def test_one_jobs_failure_never_stops_the_others(tmp_path, capsys):
    rates = "optimizer.learning_rate=1e-3,1e30,2e-3"
    command = ["-m", *SMALL, "stage=student", "optimizer=sgd", "epochs=1", rates, "sweep=s", f"outputs={tmp_path}"]
    assert main(command) == 1
    statuses = [runs.read(path)["status"] for path in jobs(tmp_path / "sweeps/s").values()]
    assert sorted(statuses) == ["completed", "completed", "diverged"]
    said = capsys.readouterr().out
    assert "job 1 of 3: learning_rate-0.001-" in said and "job 3 of 3" in said and "1 done, 1 failed" in said
    (diverged,) = (path for path in jobs(tmp_path / "sweeps/s").values() if runs.read(path)["status"] == "diverged")
    assert re.search(
        rf"{re.escape(diverged.name)}: Diverged: Training diverged.*{re.escape(str(diverged / 'kdrun.log'))}", said
    )


@pytest.mark.slow
def test_a_sweep_that_is_killed_until_it_is_done_ends_with_the_same_bits(swept, tmp_path):
    (teacher,) = swept.glob("teacher/*")
    outputs, generator, kills = tmp_path / "outputs", random.Random(1), 0
    common = [*SMALL, "stage=distill", "epochs=2", f"teacher.run={teacher}", "sweep=distilled", f"outputs={outputs}"]
    while True:
        process = Kdrun(["-m", *common, *VALUES], tmp_path)
        instant = time.monotonic() + generator.uniform(1, 6)
        if kills < 6:
            process.wait_until(lambda instant=instant: time.monotonic() > instant)
            process.signal(generator.choice([signal.SIGKILL, signal.SIGTERM]))
        code = process.wait()
        kills += code != 0
        if code == 0:
            break
        # a signal that comes while Python starts ends it at once
        assert code in (143, -signal.SIGTERM, -signal.SIGKILL), process.said()
        if code == 143:
            said = process.said()
            assert (
                ("Jobs" in said and "were not begun" in said)
                or "interrupted" in said
                or said.endswith(
                    "kdrun: Stopped by SIGTERM.\n"  # while it started
                )
            )
    expected, found = jobs(swept / "sweeps/distilled"), jobs(outputs / "sweeps/distilled")
    assert found.keys() == expected.keys() and kills
    for name, run_dir in found.items():
        assert bits(run_dir) == bits(expected[name])


@pytest.fixture(scope="module")
def compared(swept, tmp_path_factory) -> Path:
    """The directory of a comparison of everything, with a damaged and an unfinished run among it."""
    outputs = shutil.copytree(swept, tmp_path_factory.mktemp("compared") / "outputs")
    damaged, unfinished = sorted(jobs(outputs / "sweeps/alone").values())[:1] * 2
    broken = shutil.copytree(damaged, outputs / "sweeps/alone/broken")
    (broken / "predictions/test.npz").write_bytes(b"x")
    half = shutil.copytree(unfinished, outputs / "sweeps/alone/half")
    record = json.loads((half / "run.json").read_text()) | {"status": "interrupted"}
    (half / "run.json").write_text(json.dumps(sealed(record)))
    places = f"runs=[{outputs}/sweeps/*,{outputs}/teacher]"
    assert main(["stage=compare", places, f"outputs={outputs}"]) == 0
    (folder,) = outputs.glob("compare/*")
    return folder


def test_a_comparison_writes_sentence_tables_figures_and_page(compared):
    results = runs.read(compared)["results"]
    assert re.match(r"(Distilling|No gain|Not decided)", results["sentence"])
    assert "3 seeds, one teacher, 200 test images" in results["sentence"]
    assert "chosen on validation from 2 settings" in results["sentence"]
    assert sorted(path.name for path in compared.glob("comparison.*")) == [
        f"comparison.{s}" for s in ("csv", "json", "md", "tex")
    ]
    table = pd.read_csv(compared / "comparison.csv")
    assert sorted(table["stage"]) == ["distill", "distill", "student", "teacher"] and sorted(table["n"]) == [1, 3, 3, 3]
    assert (compared / "comparison.md").read_text().startswith(results["sentence"])
    figures = {
        "gains",
        "heat_maps",
        "learning_curves",
        "accuracy_against",
        "reliability",
        "confusion_difference",
        "what_the_teacher_knows",
    }
    for suffix in ("svg", "png"):
        assert {path.stem for path in (compared / "figures").glob(f"*.{suffix}")} == figures
    page = (compared / "report.html").read_text()
    claim = html.escape(results["sentence"].partition(" (")[0], quote=False)
    assert re.search(rf'<section class="verdict (|helped|harm)">\n<h1><span[^>]*>.</span>{re.escape(claim)}</h1>', page)
    commands = {
        shlex.join(["kdrun", *shlex.split(runs.read(path.parent)["command"])[1:]]) for path in found_runs(compared)
    }
    shown = [html.unescape(text) for text in re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)]
    assert commands <= set(shown) and set(results["studies"][0]["commands"]) <= set(shown)
    assert len(page) < 1_500_000
    (written,) = compared.glob("tensorboard/events.out.tfevents.*")
    assert set(TensorBoard(str(written)).Reload().Tags()["images"]) == figures
    problems = {Path(row["run"]).name: row["problem"] for row in results["not_used"]}
    assert "predictions/test.npz is not what run.json says" in problems["broken"]
    assert problems["half"] == "interrupted, not completed"


def found_runs(compared: Path) -> list[Path]:
    outputs = compared.parents[1]
    places = [*outputs.glob("sweeps/*/seed*/run.json"), *outputs.glob("teacher/*/run.json")]
    return [path for path in places if runs.read(path.parent)["status"] == "completed"]


def compare(outputs: Path, *runs: str | Path, **given) -> dict:
    """What a comparison says of its only study."""
    places = f"runs=[{','.join(map(str, runs))}]"
    before = set(outputs.glob("compare/*"))
    assert (
        main(["stage=compare", places, f"outputs={outputs}", *(f"{key}={value}" for key, value in given.items())]) == 0
    )
    (folder,) = set(outputs.glob("compare/*")) - before
    (study,) = json.loads((folder / "comparison.json").read_text())["studies"]
    assert runs_of(folder)["studies"] == [study]
    return study


def runs_of(folder: Path) -> dict:
    return runs.read(folder)["results"]


def predicted(run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(run_dir / "predictions/test.npz") as saved:
        return saved["labels"], saved["logits"]


def test_the_numbers_are_those_of_the_predictions(swept, tmp_path):
    """By the formula, written out, from the files of the runs."""
    outputs = shutil.copytree(swept, tmp_path / "outputs")
    study = compare(outputs, outputs / "sweeps")
    rights = {"student": {}, "distill": {}}
    for path in (*jobs(outputs / "sweeps/alone").values(), *jobs(outputs / "sweeps/distilled").values()):
        if group_of(path) in (study["chosen"], study["baseline"]):
            labels, logits = predicted(path)
            record = runs.read(path)
            rights[record["stage"]][record["seed"]] = logits.argmax(axis=1) == labels
    d = [
        [Fraction(int(a) - int(b)) for a, b in zip(rights["distill"][s], rights["student"][s], strict=True)]
        for s in range(3)
    ]
    gain, low, high, p = reference.crossed(d, 0.975)
    found = [study[key] for key in ("gain", "low", "high", "p_single", "p")]
    assert found == pytest.approx([gain, low, high, p, min(1, 2 * p)], abs=2e-6)
    written = json.loads((next(outputs.glob("compare/*")) / "comparison.json").read_text())["groups"][study["chosen"]]
    assert [written[key] for key in ("gain", "gain_low", "gain_high", "p")] == pytest.approx(
        reference.crossed(d), abs=2e-6
    )


@pytest.mark.slow
def test_classes_by_other_numbers_and_runs_twice_say_the_same(swept, tmp_path):
    outputs = shutil.copytree(swept, tmp_path / "outputs")
    sentence = compare(outputs, outputs / "sweeps")["sentence"]
    again = shutil.copytree(outputs / "sweeps", tmp_path / "copied")
    assert compare(outputs, again, outputs / "sweeps", again)["sentence"] == sentence
    for run_dir in [*jobs(outputs / "sweeps/alone").values(), *jobs(outputs / "sweeps/distilled").values()]:
        path, order = run_dir / "predictions/test.npz", np.roll(np.arange(10), 3)
        with np.load(path) as saved:
            arrays = {
                name: order[saved[name]] if name == "labels" else saved[name][:, np.argsort(order)] for name in saved
            }
        np.savez(path, **arrays)
        record = runs.read(run_dir)
        record["files"]["predictions/test.npz"] = files.sha256(path)
        (run_dir / "run.json").write_text(json.dumps(sealed(record)))
    assert compare(outputs, outputs / "sweeps")["sentence"] == sentence


@pytest.mark.slow
def test_the_commands_that_are_said_tell_more_and_looks_are_counted(swept, tmp_path, monkeypatch):
    """Two settings of three seeds; the printed commands train five fresh seeds of the chosen one, and of it alone."""
    monkeypatch.chdir(tmp_path)
    outputs = shutil.copytree(swept, tmp_path / "outputs")
    every = (outputs / "sweeps", outputs / "teacher")
    first = compare(outputs, *every)
    assert (first["candidates"], first["adjusted_for"], first["seeds"], first["fresh"]) == (2, 2, [0, 1, 2], False)
    assert first["p"] == pytest.approx(min(1, 2 * first["p_single"]))
    chosen = [path for path in jobs(outputs / "sweeps/distilled").values() if first["chosen"] == group_of(path)]
    assert len(chosen) == 3
    alone = outputs / "sweeps/alone"
    single = compare(outputs, alone, *chosen)
    assert (single["look"], single["level"], single["adjusted_for"]) == (1, 0.95, 1)
    assert len(first["commands"]) == 2
    for command in first["commands"]:
        name, *words = shlex.split(command.replace(str(swept), str(outputs)))
        assert name == "kdrun" and main(words) == 0
    fresh = compare(outputs, *every)
    assert fresh["fresh"] and (fresh["seeds"], fresh["chosen_on"]) == ([3, 4, 5, 6, 7], [0, 1, 2])
    assert "tested with seeds 3 to 7" in fresh["sentence"] and fresh["look"] == 1 and fresh["commands"] == []
    new = [
        path
        for path in (found.parent for found in (outputs / "sweeps").glob("2*/*/run.json"))
        if group_of(path) == first["chosen"]
    ]
    again = compare(outputs, outputs / "sweeps/2*", alone, *chosen)
    assert len(new) == 5 and again["chosen"] == first["chosen"]
    assert (again["seeds"], again["look"], again["level"]) == (list(range(8)), 3, 0.98)  # 0 to 2, then 3 to 7
    assert "(98 % " in again["sentence"] and ", look 3, p = " in again["sentence"]
    wide = compare(outputs, outputs / "sweeps/2*", alone, *chosen, **{"compare.margin": 100})
    assert wide["verdict"] == ("no gain that matters" if wide["low"] <= 0 <= wide["high"] else again["verdict"])


def group_of(run_dir: Path) -> str:
    return kdrun.frame(run_dir).loc[0, "group"]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs Debian's texlive-latex-recommended")
def test_latex_takes_the_table(compared, tmp_path):
    table = (compared / "comparison.tex").read_text()
    assert r"accuracy, \%" in table and table.count(r" \\") == 5
    compiled(table, tmp_path)


def test_a_frame_for_a_notebook(swept):
    frame = kdrun.frame(swept)
    assert len(frame) == 10 and set(frame["stage"]) == {"teacher", "student", "distill"}
    assert set(frame.loc[frame["stage"] == "distill", "config.temperature"]) == {2.0, 8.0}
    assert (frame["test_accuracy"] * frame["count"] + frame["errors"]).round(6).eq(200).all()


def test_tensorboards_hparams_tab_shows_a_sweep_with_its_metrics(swept):
    """As TensorBoard's own plugin reads it."""
    events = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(swept / "sweeps/distilled"))
    events.Reload()
    provider = data_provider.MultiplexerDataProvider(events, "")
    plugin = backend_context.Context(base_plugin.TBContext(data_provider=provider, logdir=""))
    request = RequestContext()
    metadata = plugin.hparams_metadata(request, "")
    found = plugin.hparams_from_data_provider(request, "", limit=None)
    experiment = plugin.experiment_from_metadata(request, "", True, metadata, found)
    assert len(metadata) == 6
    assert {"temperature", "alpha", "seed", "objective"} <= {info.name for info in experiment.hparam_infos}
    assert {"test/accuracy", "test/cross_entropy"} <= {info.name.tag for info in experiment.metric_infos}


@pytest.mark.slow
def test_comparing_imports_no_tensorflow(swept, tmp_path):
    code = f"""
import sys
from kdrun.cli.main import main
assert main(["stage=compare", "runs={swept}", "outputs={tmp_path}"]) == 0
assert not {{"tensorflow", "tf_keras"}} & set(sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_nothing_to_compare_is_refused(tmp_path, capsys):
    assert main(["stage=compare", f"runs={tmp_path}/nothing", f"outputs={tmp_path}"]) == 2
    assert "nothing of kdrun's is in" in capsys.readouterr().err


@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Debian's chromium and chromium-driver",
)
def test_the_page_in_a_real_browser(compared):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    from selenium.webdriver.support.wait import WebDriverWait

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1300,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        browser.get((compared / "report.html").as_uri())
        assert browser.get_log("browser") == []
        sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
        assert [url for url in urls if not url.startswith("data:")] == [(compared / "report.html").as_uri()]
        figures = browser.find_elements("css selector", ".figures svg")
        assert len(figures) == 7 and all(
            figure.size["width"] > 100 and figure.size["height"] > 100 for figure in figures
        )
        tops = [figure.location["y"] for figure in browser.find_elements("css selector", ".figures figure")]
        assert tops[0] == tops[1]  # side by side
        table = browser.find_element("css selector", ".settings table")

        def headings() -> list[str]:
            return [h.text for h in table.find_elements("css selector", "th") if h.is_displayed()]

        assert headings()[-1] == "95 % (t)"
        browser.find_element("css selector", "label[for=all-columns]").click()
        assert headings()[-1] == "group" and len(headings()) > 18
        browser.find_element("css selector", "#all-columns").click()
        assert headings()[-1] == "95 % (t)"
        column = headings().index("accuracy, %")
        cells = f"tbody td:nth-child({column + 1})"
        for factor in (1, -1):
            table.find_elements("css selector", "th")[column].click()
            values = [factor * float(cell.text) for cell in table.find_elements("css selector", cells)]
            assert values == sorted(values) and len(values) == 4
        column = headings().index("gain")
        for factor in (1, -1):  # what has none is last either way
            table.find_elements("css selector", "th button")[column].send_keys("\n")
            texts = [cell.text for cell in table.find_elements("css selector", f"tbody td:nth-child({column + 1})")]
            values = [factor * float(text) for text in texts[:2]]
            assert values == sorted(values) and texts[2:] == ["", ""]
        browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
        pasted = "navigator.clipboard.readText().then(arguments[0])"
        browser.find_elements("css selector", "summary")[-1].click()  # of many commands
        commands = browser.find_elements("css selector", ".command")
        for command, breaks in (
            (commands[0], ""),
            (commands[-1], "navigator.clipboard.writeText = () => Promise.reject()"),
        ):
            browser.execute_script(breaks)  # then it is copied as a selection
            button = command.find_element("css selector", "button")
            button.click()
            WebDriverWait(browser, 10).until(lambda _, button=button: button.text == "Copied")
            text = command.find_element("css selector", "code").text
            assert browser.execute_async_script(pasted) == text and text.startswith("kdrun ")
        media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        ground = "return getComputedStyle(document.body).backgroundColor"
        light = browser.execute_script(ground)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        assert light == "rgb(255, 255, 255)" != browser.execute_script(ground)
        overflow = "const box = arguments[0] || document.documentElement; return box.scrollWidth - box.clientWidth"
        for width in (400, 1280, 1920):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            assert browser.execute_script("return innerWidth") == width and browser.execute_script(overflow) <= 0
            if width >= 1280:
                assert browser.execute_script(overflow, browser.find_element("css selector", ".settings .scroll")) <= 0


LAUNCHERS = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "ray": "hydra_ray_launcher",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.slow
def test_more_than_one_process(launcher, swept, tmp_path):
    """The jobs end with the bits that they have in one process (of one thread, too)."""
    pytest.importorskip(f"hydra_plugins.{LAUNCHERS[launcher]}", reason=f"needs the extra for {launcher}")
    (teacher,) = swept.glob("teacher/*")
    command = [
        "-m",
        *SMALL,
        "stage=distill",
        "epochs=2",
        f"teacher.run={teacher}",
        "sweep=distilled",
        "temperature=2,8",
    ]
    command += [f"outputs={tmp_path}", f"hydra/launcher={launcher}"]
    code = f"from kdrun.cli.main import main; raise SystemExit(main({command}))"
    # two GPUs, as far as anybody can tell who does not use them; Ray looks for itself
    environment = os.environ | ({} if launcher == "ray" else {"CUDA_VISIBLE_DEVICES": "0,1"})
    process = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 300, "env": environment}
    ended = subprocess.run([sys.executable, "-c", code], **process)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = jobs(tmp_path / "sweeps/distilled")
    records = [runs.read(path) for path in found.values()]
    assert len(found) == 2 and {record["status"] for record in records} == {"completed"}
    if launcher != "ray":
        assert sorted(record["host"]["gpus"] for record in records) == [["0"], ["1"]]
    assert len(list((tmp_path / ".cache/teachers").glob("*/manifest.json"))) == 1


@pytest.mark.slow
def test_a_search_goes_on_where_it_was(swept, tmp_path, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    (teacher,) = swept.glob("teacher/*")
    command = [
        "-m",
        *SMALL,
        "stage=distill",
        "epochs=1",
        f"teacher.run={teacher}",
        "sweep=search",
        "hydra/sweeper=optuna",
    ]
    for trials in (2, 1):
        assert main([*command, f"hydra.sweeper.n_trials={trials}", f"outputs={tmp_path}"]) == 0
    found = jobs(tmp_path / "sweeps/search")
    assert len(found) == 3
    assert main([*command, "student.train_on_validation=true", f"outputs={tmp_path}"]) == 2
    assert "Add student.train_on_validation=false" in capsys.readouterr().err
    import optuna

    study = optuna.load_study("kdrun", f"sqlite:///{tmp_path}/sweeps/search/optuna.db")
    losses = sorted(runs.read(path)["results"]["validation"]["best"]["cross_entropy"] for path in found.values())
    assert sorted(trial.value for trial in study.trials) == pytest.approx(losses)


def test_a_search_finds_the_teacher_of_the_config_and_says_when_every_trial_fails(swept, tmp_path, capsys):
    """What is searched, the learning rate among it, is the student's."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    outputs = tmp_path / "outputs"
    shutil.copytree(swept / "teacher", outputs / "teacher")
    (teacher,) = outputs.glob("teacher/*")
    command = ["-m", *SMALL, "teacher.epochs=3", "stage=distill", "epochs=1", "hydra/sweeper=optuna"]
    command += ["hydra.sweeper.n_trials=2", f"outputs={outputs}"]
    assert main([*command, "sweep=search"]) == 0
    records = [runs.read(path) for path in jobs(outputs / "sweeps/search").values()]
    assert [record["teachers"][0]["run"] for record in records] == [str(teacher)] * 2
    assert len({record["config"]["student"]["optimizer"]["learning_rate"] for record in records}) == 2
    assert len({record["config"]["teacher"]["optimizer"]["learning_rate"] for record in records}) == 1
    capsys.readouterr()
    (tmp_path / "own.py").write_text(
        "from kdrun.registry import register\n\n\n"
        "@register('objective', 'own')\ndef own(batch, *, layers):\n    raise ValueError('own fault')\n"
    )
    own = ["objective=own", f"objective.module={tmp_path / 'own.py'}", "sweep=fails"]
    assert main([*command, *own]) == 1
    said = capsys.readouterr()
    assert "No trials" not in said.err and said.out.count("own fault") >= 2


def test_a_missing_extra_is_said(tmp_path, capsys):
    if importlib.util.find_spec("ray"):
        pytest.skip("ray is here")
    assert (
        main(["-m", "stage=student", "experiment=quick", "seed=1,2", "hydra/launcher=ray", f"outputs={tmp_path}"]) == 2
    )
    assert "pip install '.[ray]'" in capsys.readouterr().err
