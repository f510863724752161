"""What machines elsewhere do with the repository: workflows, and recipes of containers. None of them runs here."""

import fnmatch
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from kdrun import __version__

ROOT = Path(__file__).parents[1]


def workflow(name: str) -> dict:
    read = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())
    return read | {"on": read[True]}  # YAML 1.1 takes the word for a truth


@pytest.mark.parametrize("name", ["ci", "release"])
def test_a_workflow_may_read_and_names_the_versions_of_what_it_uses(name):
    read = workflow(name)
    assert read["permissions"] == {"contents": "read"}
    for job in read["jobs"].values():
        used = [job["uses"]] if "uses" in job else [step["uses"] for step in job["steps"] if "uses" in step]
        for action in used:
            assert action.startswith("./") or re.fullmatch(r"[\w/-]+@v\d+(\.\d+)*", action), action
        assert "uses" in job or job["timeout-minutes"] <= 90


def test_ci_runs_on_the_oldest_and_the_newest_python():
    read = workflow("ci")
    assert {"push", "pull_request", "workflow_call"} == set(read["on"])
    assert read["jobs"]["ci"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert read["jobs"]["ci"]["steps"][-1] == {"run": ".ci/run"}


def test_a_tag_is_released_without_a_password():
    """By the one job that may show the index who it is, and after all others."""
    read = workflow("release")
    jobs = read["jobs"]
    assert read["on"] == {"push": {"tags": ["v*"]}}
    assert [jobs["build"]["needs"], jobs["publish"]["needs"]] == ["ci", "build"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "pypi"
    assert [step["uses"].partition("@")[0] for step in jobs["publish"]["steps"]][-1] == "pypa/gh-action-pypi-publish"
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()


@pytest.mark.parametrize(("tag", "code"), [(f"v{__version__}", 0), ("v99.0", 1)])
def test_a_tag_must_be_the_version(tag, code, tmp_path):
    (step,) = [step for step in workflow("release")["jobs"]["build"]["steps"] if "tag" in step.get("name", "")]
    done = subprocess.run(
        ["bash", "-c", step["run"].replace("python ", "python3 ")], cwd=ROOT, env={"GITHUB_REF_NAME": tag, "PATH": PATH}
    )
    assert done.returncode == code


PATH = "/usr/local/bin:/usr/bin:/bin"


def copied(name: str) -> list[str]:
    """What a recipe takes from the repository."""
    if name == "kdrun.def":
        return [line.split()[0] for line in sections()["files"].splitlines()]
    steps = [step["value"].split() for step in dockerfile() if step["instruction"] == "COPY"]
    return [source for words in steps for source in words[:-1]]


def dockerfile() -> list[dict]:
    return DockerfileParser(str(ROOT)).structure


def sections() -> dict[str, str]:
    """Of the Apptainer recipe: the header, and what follows each %name."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "kdrun.def").read_text(), flags=re.M)
    header, *rest = re.split(r"^%(\w+)\n", text, flags=re.M)
    return {"header": header} | {
        name: "\n".join(map(str.strip, body.strip().splitlines()))
        for name, body in zip(rest[::2], rest[1::2], strict=True)
    }


@pytest.mark.parametrize("name", ["Dockerfile", "kdrun.def"])
def test_a_container_takes_what_a_wheel_is_made_of(name):
    taken = copied(name)
    assert {"pyproject.toml", "README.md", "LICENSE", "conf", "kdrun", "constraints.txt"} == set(taken)
    if name == "Dockerfile":
        allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        assert all(any(fnmatch.fnmatch(each, pattern) for pattern in allowed) for each in taken)


def test_the_dockerfile_is_one():
    steps = [step for step in dockerfile() if step["instruction"] != "COMMENT"]
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {step["instruction"] for step in steps} <= known
    last = {step["instruction"]: step["value"] for step in steps}
    assert (last["USER"], last["ENTRYPOINT"], last["VOLUME"]) == ("kdrun", '["kdrun"]', "/work")
    for step in steps:
        if step["instruction"] == "RUN":
            script = re.sub(r"^--mount=\S+ ", "", step["value"])
            assert subprocess.run(["sh", "-n", "-c", script]).returncode == 0, script


def test_the_apptainer_recipe_is_one():
    found = sections()
    assert list(found) == ["header", "arguments", "files", "post", "environment", "runscript", "help"]
    assert dict(line.split(": ") for line in found["header"].splitlines() if line)["Bootstrap"] == "docker"
    given = dict(line.split("=") for line in found["arguments"].splitlines())
    used = set(re.findall(r"\{\{ (\w+) \}\}", found["header"] + found["post"]))
    assert used == set(given)
    assert all(given.values())
    for name in ("post", "environment", "runscript"):
        assert subprocess.run(["sh", "-n", "-c", found[name]]).returncode == 0, name
    assert found["runscript"] == 'exec kdrun "$@"'


def test_both_recipes_are_of_the_same_versions():
    args = dict(step["value"].split("=") for step in dockerfile() if step["instruction"] == "ARG")
    assert args == dict(line.split("=") for line in sections()["arguments"].splitlines())
