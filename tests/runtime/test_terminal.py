"""What a terminal is shown: lines that fit it, a spinner, and neither where it obeys no escape codes."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from terminals import ESCAPE, Terminal

ROOT = Path(__file__).parents[2]
PHOTOS = "a folder of photos that has a name of many words"  # which no line may break
SPINNING = re.compile(r"[\u2800-\u28ff] ([^\n\r\x1b]*)")
TRAINED = ["stage=student", "data=npz", "data.path=my.npz", "model@student.model=mlp", "student.model.hidden_units=[8]"]
TRAINED += ["data.image_size=8", "data.validation_size=10", "batch_size=8", "epochs=2", "measure_latency=false"]


@pytest.fixture
def on_a_terminal(tmp_path):
    """Run a command on a terminal of its own; gives back its exit code and all that it wrote."""

    def run(*words: str, columns: int = 100, **variables: str) -> tuple[int, str]:
        unwanted = ("NO_COLOR", "COLUMNS", "FORCE_COLOR")
        environment = {name: value for name, value in os.environ.items() if name not in unwanted}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment |= {"TERM": "xterm", "PYTHONPATH": path, **variables}
        terminal = Terminal([sys.executable, "-m", "kdrun", *words], tmp_path, environment, columns)
        return terminal.end(), terminal.said

    return run


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures, two of which are alike; the words of a command that looks at them."""
    random = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (tmp_path / PHOTOS / label).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 256, (9, 9, 3), np.uint8) if number else np.zeros((9, 9, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / PHOTOS / label / f"{number}.png")
    return ["data", "data=folder", f"data.path='{PHOTOS}'", "data.image_size=8"]


def waited_for(said: str) -> list[str]:
    """What a spinner said, one after the other."""
    return list(dict.fromkeys(SPINNING.findall(ESCAPE.sub("", said))))


def lines(said: str) -> list[str]:
    """What stays on the screen: of what was written over, the last."""
    return [line.split("\r")[-1].rstrip() for line in ESCAPE.sub("", said).replace("\r\n", "\n").split("\n")]


def test_lines_fit_and_paths_are_whole(on_a_terminal, photos):
    code, said = on_a_terminal(*photos, columns=60)
    assert code == 0, said
    assert waited_for(said)[0].startswith("reading the images of a folder of photos")
    shown = [line for line in lines(said) if not SPINNING.match(line)]
    long = [line for line in shown if len(line) > 60]
    assert all(" " not in line.strip().replace(PHOTOS, "") for line in long), long  # a path that is longer
    assert PHOTOS in "\n".join(shown)
    assert any(line.startswith("  ") for line in shown)  # the rest of one that was too long


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_no_escape_code_is_written_where_none_is_wanted(on_a_terminal, write_npz, variables):
    """A command that reads data, and is refused then."""
    write_npz()
    code, said = on_a_terminal(*TRAINED, "batch_size=5000", **variables)
    assert code == 2 and "kdrun: " in said
    assert waited_for(said) == ([] if variables else ["reading the images of my.npz ..."])
    if variables:
        assert "\x1b" not in said and not re.search(r"\r(?!\n)", said)  # nothing is written over


def test_an_error_fits_the_terminal_too(on_a_terminal):
    code, said = on_a_terminal("distill", "experiment=convnets", "temperature=4", "seed=3", columns=110)
    assert code == 2
    shown = lines(said)
    assert max(map(len, shown)) <= 110 and len([line for line in shown if line]) > 1
    assert any("kdrun stage=teacher experiment=convnets seed=3" in line for line in shown)  # to be copied


def test_where_there_is_no_terminal_a_line_is_one_line(command):
    folder = "o" * 60 + "/" + "p" * 60
    ended = command("cache", "cache.clear=true", f"cache_dir={folder}")
    assert ended.code == 0 and f"cache: nothing of kdrun's is in {folder}" in ended.out.splitlines(), ended


@pytest.mark.slow
def test_a_training_run_says_what_it_waits_for(on_a_terminal, write_npz):
    write_npz()
    code, said = on_a_terminal(*TRAINED, columns=120)
    assert code == 0, said
    waited = waited_for(said)
    assert waited == ["reading the images of my.npz ...", "loading TensorFlow ...", "building the network ..."]
    first_line = said.index("2 epochs of")
    assert all(said.rindex(what) < first_line for what in waited)
    assert max(len(line) for line in lines(said)) <= 120
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        code, said = on_a_terminal(*TRAINED, **variables)
        assert code == 0 and "\x1b" not in said and len(re.findall(r"epoch \d/2", said)) == 2


@pytest.mark.slow
def test_with_json_nothing_but_the_object_is_on_standard_output(on_a_terminal, write_npz, tmp_path):
    """Standard error is the terminal, standard output a file."""
    write_npz()
    program = tmp_path / "sh"
    program.write_text(f'{sys.executable} -m kdrun "$@" print=json > answer.json\n')
    terminal = Terminal(["sh", str(program), *TRAINED], tmp_path, {**os.environ, "TERM": "xterm"})
    assert terminal.end() == 0
    assert (tmp_path / "answer.json").read_text().count("\n") == 1
    assert not waited_for(terminal.said)
