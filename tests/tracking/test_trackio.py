"""Runs in Trackio's folder."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest
from followed import STEPS, an_epoch, facts, finished

from kdrun.runtime import tensorflow as startup
from kdrun.tracking.tracker import Trackers, chosen

pytest.importorskip("trackio", reason="needs the extra trackio")
startup.load_tensorflow()

# in a process of its own, since trackio takes its folder from the environment when it is imported
_READ = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
for run in trackio.Api().runs("kdrun"):
    print(json.dumps([run.name, run.config, SQLiteStorage.get_logs("kdrun", run.name)], default=str))
"""


def following(folder: Path, where: Path | None = None) -> Trackers:
    keys = {"project": "kdrun", "folder": where and str(where), "wait_seconds": 60.0}
    return Trackers(facts(folder), chosen({"trackio": keys}))


def read(folder: Path) -> list:
    """Name, config and logs of each run."""
    environment = {**os.environ, "TRACKIO_DIR": str(folder)}
    said = subprocess.run([sys.executable, "-c", _READ], env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in said.stdout.splitlines() if line.startswith("[")]


def points_in(database: Path) -> int:
    """How many lines of values are written."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT count(*) FROM metrics").fetchone()[0]
    return 0


def test_a_run_is_in_a_folder_below_outputs_and_goes_on_with_each_point_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/elsewhere")  # where nothing is to go
    with following(tmp_path) as trackers:
        trackers.start(None)
        an_epoch(trackers, 1)
        saved = json.loads(json.dumps(trackers.state()))
        an_epoch(trackers, 2)
    with following(tmp_path) as trackers:
        trackers.start(saved, STEPS, 1)
        an_epoch(trackers, 2)
        an_epoch(trackers, 3)
        finished(trackers)
    folder = tmp_path / "outputs/trackio"
    ((name, config, logs),) = read(folder)
    assert name.startswith("student run ") and config["outputs"] == f"{tmp_path}/outputs"
    points = Counter((key, log["step"], log[key]) for log in logs for key in log.keys() - {"step", "timestamp"})
    values = {n: {"epoch": n, "train/loss": 1 / n, "validation/accuracy": 0.5} for n in (1, 2, 3)}
    expected = Counter((key, STEPS * n, value) for n in values for key, value in values[n].items())
    assert points == expected + Counter([("test/accuracy", 3 * STEPS, 0.8)])
    kept = [path.read_bytes() for path in folder.rglob("blobs/sha256/*/*")]
    assert any(content.startswith(b"\x89PNG") for content in kept)


def test_a_folder_that_is_none_is_one_line(tmp_path, caplog, in_time):
    (tmp_path / "file").write_text("")
    with following(tmp_path, tmp_path / "file") as trackers:
        trackers.start(None)
        an_epoch(trackers, 1)
        finished(trackers)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("tracker trackio: ") and "file" in line


def test_what_cannot_be_written_is_one_line(tmp_path, caplog, in_time):
    database = tmp_path / "outputs/trackio/kdrun.db"
    with following(tmp_path) as trackers:
        trackers.start(None)
        an_epoch(trackers, 1)
        while not points_in(database):
            time.sleep(0.05)
        for path in database.parent.glob("kdrun.db*"):
            path.unlink()
        database.mkdir()
        an_epoch(trackers, 2)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("tracker trackio: ")
