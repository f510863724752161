"""Signals, sent to a real kdrun process."""

import json
import signal
import subprocess
import sys
import time

import pytest

COMMAND = (
    "stage=student experiment=convnets epochs=500 data.train_size=1280 data.validation_size=128 data.test_size=128"
)


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_between_steps_and_is_recorded(number, exit_code, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "kdrun", *COMMAND.split(), "outputs=out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/student/*/metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == exit_code
    (run_json,) = tmp_path.glob("out/student/*/run.json")
    run_dir = run_json.parent
    # on processors with AVX-512 TensorFlow says that it could not rewrite this graph
    ours = [line for line in said.splitlines() if "remapper failed" not in line]
    assert ours == [f"kdrun: Stopped by {number.name}. Go on with: kdrun resume={run_dir}"]
    assert json.loads(run_json.read_text())["status"] == "interrupted"
