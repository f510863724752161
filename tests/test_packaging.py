"""The wheel, built and used from an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("kdrun-*.whl")
    return path


def test_the_wheel_holds_config_data_and_licence_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in ROOT.glob("conf/**/*.yaml"):
        assert f"kdrun/{path.relative_to(ROOT)}" in names
    assert {"kdrun/data/mnist.npz", "kdrun/data/README.md"} <= names
    assert {f"kdrun/cli/completion.{shell}" for shell in ("bash", "zsh", "fish")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith("kdrun") for name in names)


def test_the_wheel_works_from_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    script = "import kdrun, sys; print(kdrun.__file__); from kdrun.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "--cfg", "job", "experiment=quick"]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(site / "kdrun" / "__init__.py")
    assert "learning_rate: 0.002" in done.stdout
    assert list(empty.iterdir()) == []
