"""docs/deploying.md: its commands and its script, run as they stand there, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs/deploying.md"


@pytest.mark.slow
def test_the_pages_commands_and_its_script_do_what_it_says(tmp_path):
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.S)
    commands = [block for kind, block in blocks if kind == "bash" and block.startswith("kdrun")]
    (script,) = (block for kind, block in blocks if kind == "python")
    assert len(commands) == 2 and len(script.splitlines()) <= 13
    where = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    where["PYTHONPATH"] = str(PAGE.parents[1])
    for command in commands:
        ended = subprocess.run(["bash", "-euc", command], cwd=tmp_path, env=where, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    assert "In int8 (model_int8.tflite" in (tmp_path / "outputs").glob("pipeline/*/kdrun.log").__next__().read_text()
    export = max((tmp_path / "outputs/export").iterdir())
    Image.new("L", (40, 50), 200).save(export / "picture.png")
    ended = subprocess.run([sys.executable, "-c", script], cwd=export, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    label, probability = ended.stdout.split()
    assert label in "0123456789" and 0 < float(probability) <= 1
