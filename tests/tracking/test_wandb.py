"""Runs in Weights & Biases' own files, offline; and a server that does not work."""

import json
import os
import struct
from collections import Counter
from pathlib import Path

import pytest
from followed import STEPS, an_epoch, facts, finished, hangs, serving, wait_for

from kdrun.runtime import tensorflow as startup
from kdrun.tracking.tracker import Trackers, chosen

pytest.importorskip("wandb", reason="needs the extra wandb")
startup.load_tensorflow()

_BLOCK = 1 << 15  # of LevelDB's log format, in which wandb writes


def following(folder: Path, mode: str = "auto", seconds: float = 60.0) -> Trackers:
    keys = {"project": "kdrun", "mode": mode, "folder": None, "wait_seconds": seconds}
    return Trackers(facts(folder), chosen({"wandb": keys}))


def records(path: Path) -> list:
    """All records of one of wandb's files."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, found, begun, place = path.read_bytes(), [], b"", 7
    while place + 7 <= len(content):
        if _BLOCK - place % _BLOCK < 7:
            place += _BLOCK - place % _BLOCK
        _, size, kind = struct.unpack_from("<IHB", content, place)
        begun += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(begun))
            begun = b""
    return found


def history(found: list) -> Counter:
    """All points, however often."""
    points: Counter = Counter()
    for record in found:
        values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        points.update((name, values["_step"], value) for name, value in values.items() if not name.startswith("_"))
    return points


def of_epochs(*numbers: int) -> Counter:
    values = {n: {"epoch": n, "train/loss": 1 / n, "validation/accuracy": 0.5} for n in numbers}
    return Counter((name, STEPS * n, value) for n in numbers for name, value in values[n].items())


def files(folder: Path) -> list[Path]:
    return list((folder / "outputs/wandb").glob("offline-run-*/run-*.wandb"))


@pytest.fixture(autouse=True)
def without_key(monkeypatch, tmp_path):
    """No key of whoever runs the tests, and none of their settings."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


def test_a_run_without_a_key_is_offline_and_whole_when_it_goes_on(tmp_path):
    with following(tmp_path) as trackers:
        trackers.start(None)
        an_epoch(trackers, 1)
        saved = json.loads(json.dumps(trackers.state()))
        an_epoch(trackers, 2)
    (before,) = files(tmp_path)
    assert history(records(before)) == of_epochs(1, 2)
    with following(tmp_path) as trackers:
        trackers.start(saved, STEPS, 1)
        an_epoch(trackers, 2)
        an_epoch(trackers, 3)
        finished(trackers)
    (whole,) = files(tmp_path)
    found = records(whole)
    assert whole.name == before.name and history(found) == of_epochs(1, 2, 3)
    (run,) = [record.run for record in found if record.run.run_id]
    assert (run.project, run.display_name) == ("kdrun", "student run") and run.run_id in whole.name
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["outputs"] == f"{tmp_path}/outputs"
    summary = {item.key or "/".join(item.nested_key): item.value_json for r in found for item in r.summary.update}
    assert json.loads(summary["test/accuracy"]) == 0.8
    assert (whole.parent / "files/confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    (end,) = [record.exit.exit_code for record in found if record.HasField("exit")]
    assert end == 0


def test_a_server_that_hangs_is_one_line(tmp_path, caplog, monkeypatch, in_time):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with serving(hangs) as (uri, asked), following(tmp_path, seconds=1.0) as trackers:
        monkeypatch.setenv("WANDB_BASE_URL", uri)
        trackers.start(None)
        wait_for(asked)
        an_epoch(trackers, 1)
        finished(trackers)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("tracker wandb: it has not taken all") and files(tmp_path) == []
