"""Runs in MLflow, in a folder; and what becomes of a run whose tracker's server, or whose tracker, does not work."""

import json
import os
import shutil
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
from followed import STEPS, an_epoch, facts, finished, hangs, serving, wait_for
from held import bits
from tiny_images import write

from kdrun.cli.main import main
from kdrun.registry import register
from kdrun.runs import record as runs
from kdrun.runtime import tensorflow as startup
from kdrun.tracking import aside
from kdrun.tracking.tracker import Tracker, Trackers, chosen

pytest.importorskip("mlflow", reason="needs the extra mlflow")
startup.load_tensorflow()


@register("tracker", "stopped_once")
class StoppedOnce(Tracker):
    """Asks the run to end after its first epoch."""

    def epoch(self, epoch):
        if epoch.number == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return lambda folder: MlflowClient(folder.resolve().as_uri())


def tracked(client) -> list:
    """All runs of the only experiment."""
    (experiment,) = client.search_experiments(filter_string="name = 'kdrun'")
    return client.search_runs([experiment.experiment_id])


def points(client, run) -> dict:
    """All points that a tracked run has, however often."""
    return Counter(
        (name, point.step, point.value)
        for name in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, name)
    )


def of_lines(run_dir: Path) -> dict:
    """The points of a run's epochs, once each."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return Counter(
        {("epoch", line["step"], line["epoch"]) for line in lines}
        | {
            (f"{line['split']}/{name}", line["step"], value)
            for line in lines
            for name, value in line.items()
            if name not in ("epoch", "step", "split", "count", "errors")
        }
    )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[Path, list[Path]]:
    """Two jobs of a sweep, tracked; their outputs folder."""
    folder = tmp_path_factory.mktemp("sweep")
    outputs = folder / "outputs"
    given = [*write(folder / "my.npz"), "stage=student", "epochs=2", f"outputs={outputs}", "workers=1"]
    assert main(["-m", *given, "tracker=[jsonl,mlflow]", "seed=1,2", "sweep=mine"]) == 0
    return outputs, sorted(path.parent for path in outputs.glob("sweeps/mine/*/run.json"))


def test_a_sweeps_runs_are_below_its_own_with_params_curves_and_pictures(sweep, client):
    outputs, run_dirs = sweep
    client = client(outputs / "mlflow")
    by_name = {run.info.run_name: run for run in tracked(client)}
    assert by_name.keys() >= {"mine", *(f"student {run_dir.name}" for run_dir in run_dirs)} and len(run_dirs) == 2
    for run_dir in run_dirs:
        run, record = by_name[f"student {run_dir.name}"], runs.read(run_dir)
        assert run.data.tags["mlflow.parentRunId"] == by_name["mine"].info.run_id
        assert run.info.status == by_name["mine"].info.status == "FINISHED"
        params, config = run.data.params, record["config"]
        assert params["seed"] == str(config["seed"]) and params["student.model.hidden_units"] == "[8]"
        found = {key: count for key, count in points(client, run).items() if not key[0].startswith("test/")}
        assert found == of_lines(run_dir)
        assert run.data.metrics["test/accuracy"] == record["results"]["test"]["best"]["accuracy"]
        pictures = {each.path for each in client.list_artifacts(run.info.run_id)}
        assert "confusion_matrix.png" in pictures
        png = client.download_artifacts(run.info.run_id, "confusion_matrix.png")
        assert Path(png).read_bytes().startswith(b"\x89PNG")


def test_a_comparison_is_a_run_with_its_page(sweep, client, tmp_path):
    _, run_dirs = sweep
    given = ["stage=compare", f"runs=[{','.join(map(str, run_dirs))}]", f"outputs={tmp_path}", "tracker=[mlflow]"]
    assert main(given) == 0
    (run_dir,) = (path.parent for path in tmp_path.glob("compare/*/run.json"))
    client = client(tmp_path / "mlflow")
    (run,) = tracked(client)
    assert run.info.run_name == f"compare {run_dir.name}" and run.info.status == "FINISHED"
    page = client.download_artifacts(run.info.run_id, "report.html")
    assert Path(page).read_bytes() == (run_dir / "report.html").read_bytes()


def test_a_comparison_of_nothing_that_can_be_used_is_tracked_without_a_page(sweep, tmp_path, client):
    changed = tmp_path / "changed"
    shutil.copytree(sweep[1][0], changed)
    (changed / "predictions/test.npz").write_bytes(b"")
    assert main(["stage=compare", f"runs={changed}", f"outputs={tmp_path}", "tracker=[mlflow]"]) == 0
    assert not list(tmp_path.glob("compare/*/report.html"))
    (run,) = tracked(client(tmp_path / "mlflow"))
    assert run.info.status == "FINISHED"


def test_a_run_that_goes_on_is_the_same_tracked_run_with_the_same_bits(tmp_path, client):
    given = [*write(tmp_path / "my.npz"), "stage=student", "epochs=2", f"outputs={tmp_path}"]
    cut, whole = tmp_path / "student/cut", tmp_path / "student/whole"
    assert main([*given, f"hydra.run.dir={whole}", "tracker=[jsonl]"]) == 0
    (tmp_path / "mine/tracker").mkdir(parents=True)
    text = "# @package _global_\n# Ends a run.\ntracker:\n  stopped_once: {}\n"
    (tmp_path / "mine/tracker/stopped_once.yaml").write_text(text)
    mine = ["--config-dir", str(tmp_path / "mine")]
    stopped = [f"hydra.run.dir={cut}", "tracker=[stopped_once,jsonl,mlflow]"]
    assert main([*mine, *given, *stopped]) == 128 + signal.SIGTERM
    client = client(tmp_path / "mlflow")
    (run,) = tracked(client)
    assert run.info.status == "KILLED" and points(client, run) == of_lines(cut)
    assert main([f"resume={cut}", "tracker=[jsonl,mlflow]", "tracker.mlflow.wait_seconds=60"]) == 0
    (run,) = tracked(client)
    assert run.info.status == "FINISHED"
    assert {key: n for key, n in points(client, run).items() if not key[0].startswith("test/")} == of_lines(cut)
    assert bits(cut) == bits(whole)


# What the tool does, told without a network that is trained


def following(folder: Path, uri: str, seconds: float = 60.0) -> Trackers:
    keys = {"uri": uri, "experiment": "kdrun", "wait_seconds": seconds}
    return Trackers(facts(folder), chosen({"mlflow": keys}))


def test_points_after_the_last_saved_state_and_points_that_were_lost_are_there_once(tmp_path, client):
    uri = str(tmp_path / "mlflow")
    with following(tmp_path, uri) as trackers:
        trackers.start(None)
        an_epoch(trackers, 1)
        saved = json.loads(json.dumps(trackers.state()))
        an_epoch(trackers, 2)
        later = json.loads(json.dumps(trackers.state()))
    expected = {(name, STEPS * n) for n in (1, 2, 3) for name in ("epoch", "train/loss", "validation/accuracy")}
    with following(tmp_path, uri) as trackers:
        trackers.start(saved, STEPS, 1)
        an_epoch(trackers, 2)
        an_epoch(trackers, 3)
    (run,) = tracked(client(tmp_path / "mlflow"))
    assert {
        (name, step): n for (name, step, _), n in points(client(tmp_path / "mlflow"), run).items()
    } == dict.fromkeys(expected, 1)
    with following(tmp_path, str(tmp_path / "another")) as trackers:  # as if the first process had told nobody
        trackers.start(later, 2 * STEPS, 2)
        an_epoch(trackers, 3)
    (run,) = tracked(client(tmp_path / "another"))
    assert {(name, step) for name, step, _ in points(client(tmp_path / "another"), run)} == expected


def test_a_state_of_another_form_is_refused(tmp_path):
    trackers = following(tmp_path, str(tmp_path))
    saved = trackers.state() | {"trackers": {}}
    good = {"id": "a1", "points": [{"step": 3, "time": 1.0, "values": {"train/loss": 0.5}}]}
    whole = saved | {"clock": {**saved["clock"], "steps": 3, "first_step": "2026-01-01T00:00:00+00:00"}}
    wrong = [{}, {"id": "../x", "points": []}, {"id": "a1", "points": [{"step": 4, "time": 1.0, "values": {}}]}]
    assert trackers.wrong(whole | {"trackers": {"mlflow": good}}, 3, 0) is None
    for each in wrong:
        assert "trackers.mlflow" in trackers.wrong(whole | {"trackers": {"mlflow": each}}, 3, 0)


def dies(connection, listening):
    """It is gone in the middle of its first answer."""
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    listening.close()
    connection.close()


def refuses(connection, listening):
    """It answers that it does not want to."""
    connection.recv(10_000)
    body = b'{"error_code": "PERMISSION_DENIED", "message": "not for you"}'
    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    connection.close()


@pytest.mark.parametrize(
    ("does", "seconds", "said"),
    [(hangs, 1.0, "has not taken all"), (dies, 60.0, "127.0.0.1"), (refuses, 60.0, "not for you")],
)
def test_a_server_that_does_not_work_is_one_line(does, seconds, said, tmp_path, caplog, in_time):
    with serving(does) as (uri, asked), following(tmp_path, uri, seconds) as trackers:
        trackers.start(None)
        while does is not hangs and not trackers._trackers["mlflow"]._teller._trouble:
            time.sleep(0.05)
        for number in (1, 2, 3):
            an_epoch(trackers, number)
        finished(trackers)
        if does is hangs:  # what was called has returned, and nobody has answered
            wait_for(asked)
    assert asked
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("tracker mlflow: ") and said in line and "\n" not in line and len(line) < 500


def test_a_server_that_is_not_there_is_one_line(tmp_path, caplog, in_time):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with following(tmp_path, uri) as trackers:
        trackers.start(None)
        an_epoch(trackers, 1)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "Connection refused" in line


def test_a_process_that_is_killed_is_one_line(tmp_path, caplog, in_time):
    with serving(hangs) as (uri, asked), following(tmp_path, uri) as trackers:
        trackers.start(None)
        wait_for(asked)
        os.kill(trackers._trackers["mlflow"]._teller._child._process.pid, signal.SIGKILL)
        an_epoch(trackers, 1)
        finished(trackers)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "its process was ended by SIGKILL" in line


def test_what_waits_for_a_server_is_bounded(tmp_path, caplog, monkeypatch, in_time):
    monkeypatch.setattr(aside, "_MOST_WAITING", 2)
    with serving(hangs) as (uri, _), following(tmp_path, uri, 0.0) as trackers:
        trackers.start(None)
        for number in range(1, 6):
            an_epoch(trackers, number)
        assert trackers._trackers["mlflow"]._teller._queue.qsize() <= 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert "is far behind" in line


def test_a_package_that_is_not_installed_is_said_before_anything_is_made(command, monkeypatch, write_npz, tmp_path):
    def missing(name: str) -> str:
        raise aside.PackageNotFoundError(name)

    monkeypatch.setattr(aside, "version", missing)
    path = write_npz()
    given = ["stage=student", "data=npz", f"data.path={path}", "data.image_size=8", "data.validation_size=10"]
    ended = command(*given, "model@student.model=mlp", "tracker=[terminal,mlflow]")
    assert ended.code == 2 and "pip install 'kdrun[mlflow]'" in ended.err and ended.err.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
