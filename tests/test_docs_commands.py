"""Every command in the pages: it is one, with keys and values that there are; and what it takes seconds to do is done.

Those of predicting.md and deploying.md are run in tests/stages/, where what comes of them is looked at.
"""

import itertools
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pictures
import pytest

from kdrun.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LACKS = (  # that and no more is missing where a page's reader is not: what a command before it makes, files, an extra
    "outputs: /dev/null/none/",  # where nothing can be written: all of the command has been checked by then
    "no completed teacher run",
    "is not a run directory",
    "nothing of kdrun's is in",
    "is not there",
    "there is no FILE",
    "does not exist",
    "No such file or directory",
    "there is no such file",
    "which is not installed",
)
QUICK = {"--help", "--cfg", "data", "compare", "predict", "evaluate", "export", "adjust_bias"}
TINY = """
    seeds=1 workers=1 experiment=quick controls=none epochs=1 teacher.epochs=1 teacher.batch_size=64
    data.train_size=640 data.validation_size=200 data.test_size=200 data.train_fraction=1
    teacher.model.hidden_units=[16] student.model.hidden_units=[8] measure_latency=false tracker=[jsonl]
"""


class Command(NamedTuple):
    """A page's command as it stands there, and its words after `kdrun`."""

    page: Path
    line: str
    words: tuple[str, ...]

    @property
    def takes_seconds(self) -> bool:
        """It shows, asks or looks, and trains nothing; a run that is completed has nothing left to do."""
        stages = {self.words[0], *(word.removeprefix("stage=") for word in self.words)}
        is_completed = len(self.words) == 1 and self.words[0].startswith("resume=")
        return is_completed or not QUICK.isdisjoint((*self.words, *stages))


def commands(page: Path) -> list[Command]:
    """Those in code, blocks and lines, once each; without names of stages alone, and what is cut short by dots."""
    text = page.read_text()
    blocks = [each for each in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if each[1] in ("", "sh", "bash")]
    spans = re.finditer(r"(?<!`)`()(kdrun [^`\n]+)`(?!`)", text)
    found = [
        (match[1], place.end())
        for place in (*blocks, *spans)
        for match in re.finditer(r"(?:^|\| )(kdrun .*)", place[2].replace("\\\n", " "), re.M)
    ]
    read = [(line, tuple(shlex.split(filled(line, text, end), comments=True)[1:])) for line, end in found]
    once = {words: Command(page, line, words) for line, words in read if "..." not in line}
    return [each for words, each in once.items() if len(words) > 1 or not words[0].startswith("stage=")]


def filled(line: str, text: str, end: int) -> str:
    """A command with what the page has names for: variables of the shell, of which the last one before it is meant, or
    else the next; KEYS; the first run of a stage."""
    for name in re.findall(r"\$([A-Z])\b", line):
        values = list(re.finditer(rf"^{name}=(['\"])(.*?)\1", text, re.M | re.S))
        said = max((value for value in values if value.start() < end), key=re.Match.start, default=values[0])
        line = line.replace(f"${name}", said[2].replace("\n", " "))
    if " KEYS " in line:
        keys = [
            re.search(rf"{said} `([^`]*)`", text, re.M)[1].replace("\n", " ") for said in (r"\(each with", "^KEYS:")
        ]
        line = line.replace("KEYS", " ".join(keys))
    return line.replace("$(ls -d outputs/distill/* | head -n 1)", "RUN").replace("SEED", "0")


def jobs(words: Sequence[str]) -> list[Sequence[str]]:
    """A command, and beside a sweep single jobs that have each of its values: what the first lacks hides others."""
    if words[0] != "-m":
        return [words]
    given = [re.match(r"([^=]+=)([^\[]*)$", word) for word in words[1:] if not word.startswith("sweep=")]
    values = [[each[1] + value for value in each[2].split(",")] for each in given if each]
    others = [each[1:] for each in itertools.zip_longest(["-m"], *values)]
    return [words, *([value or each[0] for value, each in zip(job, values, strict=True)] for job in others)]


def write_files(page: Path) -> None:
    """What a page tells its reader to have: a folder of pictures, and the files of Python that it shows."""
    pictures.write_folder(Path("photos"), pictures.arrays(200, 40))
    for name, code in re.findall(r"`(my_\w+\.py)`:\n```python\n(.*?)^```", page.read_text(), re.M | re.S):
        Path(name).write_text(code)


ASKED = {each.words: each for page in reversed(PAGES) for each in commands(page)}  # of two pages' the first one's


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=pytest.mark.slow if page.name == "results.md" else ())
        for page in PAGES
        if page in {each.page for each in ASKED.values()}
    ],
)
def test_a_pages_commands_can_be_asked_for(page, tmp_path, monkeypatch, capfd):
    """Up to where something would be written."""
    monkeypatch.chdir(tmp_path)
    write_files(page)
    for _, line, words in (each for each in ASKED.values() if each.page == page):
        for job in jobs(words):
            code = main([*job, "outputs=/dev/null/none", *["data.store=store"] * ("data=folder" in words)])
            _, err = capfd.readouterr()
            assert code == 0 or any(each in err for each in LACKS), f"{line}\n{err}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader may be who has done all that the pages say: one small study stands for each of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("reader"))
        assert main(TINY.split()) == 0
        outputs = Path("outputs").absolute()
        for name, stage in {
            "alone": "student",
            "distilled": "distill",
            "controls": "distill",
            "objectives": "distill",
        }.items():
            shutil.copytree(outputs / stage, outputs / "sweeps" / name)
        (teacher,) = (outputs / "teacher").iterdir()
        shutil.copytree(teacher, outputs / "teacher/2026-11-24_10-15-00")
        yield outputs.parent


HAVE_TESTS = ("predicting.md", "deploying.md")
DONE = [each for each in ASKED.values() if each.takes_seconds and each.page.name not in HAVE_TESTS]
SLOW = re.compile(r"\bFILE\b|export|controls\b|sweeps/objectives")


@pytest.mark.parametrize(
    "asked",
    [pytest.param(each, marks=pytest.mark.slow if SLOW.search(each.line) else ()) for each in DONE],
    ids=lambda asked: f"{asked.page.stem}: {asked.line[:40]}",
)
def test_a_pages_quick_commands_do_what_they_say(folder, asked, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    write_files(asked.page)
    stand_for = {"RUN_DIR": next(Path("outputs/teacher").iterdir()), "RUN": next(Path("outputs/distill").iterdir())}
    if "FILE" in asked.line:
        assert main(["export", f"run={stand_for['RUN']}", "export.format=[saved_model]", "outputs=exported"]) == 0
        (stand_for["FILE"],) = Path("exported/export").iterdir()
    capfd.readouterr()
    code = main([re.sub(r"\b(RUN_DIR|RUN|FILE)\b", lambda name: str(stand_for[name[0]]), word) for word in asked.words])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert out
