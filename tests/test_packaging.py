"""What is handed out: a source distribution, the wheel that it makes, and what is said of them."""

import itertools
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kdrun import __version__

ROOT = Path(__file__).parents[1]
OWN_VERSIONS = {"trackio", "benchmarks"}  # extras that do not go with the others, or that no test needs
BUILD = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with a source distribution and the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([*BUILD, str(folder), str(ROOT)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("kdrun-*.whl")
    return path


def test_the_wheel_holds_config_data_and_licence_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in ROOT.glob("conf/**/*.yaml"):
        assert f"kdrun/{path.relative_to(ROOT)}" in names
    assert {"kdrun/data/mnist.npz", "kdrun/data/README.md"} <= names
    assert {f"kdrun/cli/completion.{shell}" for shell in ("bash", "zsh", "fish")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith("kdrun") for name in names)


def test_the_source_distribution_makes_the_wheel_of_the_work_tree(wheel, tmp_path):
    subprocess.run([*BUILD, str(tmp_path), "--wheel", str(ROOT)], check=True, capture_output=True)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_a_package_index_takes_both(dist):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_version_is_said_in_one_place(dist, wheel, command):
    """kdrun/__init__.py: the others are made of it, but for the file for citations, which is held to it."""
    said = command("--version").out
    described = zipfile.ZipFile(wheel).read(f"kdrun-{__version__}.dist-info/METADATA").decode()
    assert said == f"kdrun {__version__}\n"
    assert message_from_string(described)["Version"] == __version__
    assert f"kdrun-{__version__}.tar.gz" in os.listdir(dist)
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == __version__
    assert not re.search(r"^version *=", (ROOT / "pyproject.toml").read_text(), re.M)


def test_the_index_shows_the_readme_without_links_to_files_that_it_has_not(wheel):
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA")]
    page = message_from_string(zipfile.ZipFile(wheel).read(name).decode())
    text = page.get_payload()
    assert page["Description-Content-Type"] == "text/markdown"
    assert "First steps has the tables" in text
    assert re.findall(r"\]\((?!https?://)[^)]*\)", text) == []


def test_what_the_tests_need_is_in_the_source_distribution(dist):
    """All that git has but for settings of tools."""
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    if not any(tracked):
        pytest.skip("no git repository")
    apart = (".ci/", ".github/ISSUE_TEMPLATE/", ".pre-commit-config.yaml", "justfile", "outputs/")
    assert {name for name in tracked if name and not name.startswith(apart)} <= names


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


def test_constraints_pin_what_is_asked_for():
    """Within the bounds of pyproject.toml, for every Python alike."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(pinned) == len(lines)
    extras = {name: each for name, each in project["optional-dependencies"].items() if name not in OWN_VERSIONS}
    for asked in map(Requirement, [*project["dependencies"], *itertools.chain(*extras.values())]):
        assert asked.specifier.contains(pinned[canonicalize_name(asked.name)]), asked
