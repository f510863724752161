"""What the pages say: tables that are written from the code, keys and names that there are, a README that is short."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from config.test_config import KEYS

from kdrun import registry
from kdrun.config import schema

ROOT = Path(__file__).parents[1]
CHOSEN = {"experiment", "control", "controls"}
ENDINGS = {"py", "md", "json", "npz", "csv", "yaml"}
OF_EXAMPLES = {"objective.margins.power", "objective.margins.layers", "objective.margins"}  # a file of the user's own
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def script(name: str):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables():
    return script("tables")


@pytest.fixture(scope="module")
def listed(tables):
    """All keys that the page has."""
    return set(re.findall(r"^\| `([\w.]+)` \| \w+ ", tables.keys_page(), re.M))


def test_the_written_tables_are_those_of_the_code(tables):
    """python docs/tables.py writes them anew."""
    assert (ROOT / "docs/keys.md").read_text() == tables.keys_page()
    page = (ROOT / "docs/objectives.md").read_text()
    assert page == tables.written(page, tables.objectives_table())


def test_every_key_has_type_range_default_and_meaning(tables):
    for line in tables.keys_page().splitlines():
        if re.match(r"\| `[\w.]+` \| \w+ ", line):
            assert all(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]), line
    for key, said in {
        "alpha": "a number from 0 to 1",
        "seeds": "a whole number from 1 to 1000 or null; or a list of whole numbers of at least 0, not empty",
        "threads": "a whole number from 1 to 1024; or auto",
        "data.exclude_classes": "a list of whole numbers of at least 0",
        "objective.nkd.non_target_weight": "a number of at least 0",
    }.items():
        assert re.search(rf"^\| `{re.escape(key)}` \| [\w ]+ \| {said} \|", tables.keys_page(), re.M), key


def test_the_keys_page_has_every_key(listed):
    """Those of the default config, and of all nets, data sources, objectives, optimizers, trackers and stages."""
    for key in KEYS:
        assert as_listed(key) in listed | CHOSEN or re.search(r"\.name$|^stage$|^tracker\.\w+$", key), key
    start = {"data": "data.", "model": "model.", "optimizer": "optimizer.", "stage": "", "objective": "objective.{}."}
    for kind, prefix in (start | {"tracker": "tracker.{}."}).items():
        for name in registry.names(kind):
            entry = registry.get(kind, name)
            if entry.is_shipped and not (kind == "stage" and entry.is_part):
                assert schema.own_keys(entry, prefix.format(name)).keys() <= listed, (kind, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_keys_that_there_are(listed, page):
    """Dotted words in code whose first part is a group of keys, and all that commands set."""
    groups = {key.partition(".")[0] for key in listed if "." in key} - {"model"}
    parts = {".".join(key.split(".")[:end]) for key in listed for end in range(1, key.count(".") + 1)}
    has = listed | parts | set(registry.KINDS) | CHOSEN
    text = page.read_text()
    blocks = [
        block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if kind in ("", "sh", "bash")
    ]
    code = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    code += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    for words in code:
        named = re.findall(r"(?<![\w./@$])([a-z_]+(?:\.[a-z][a-z_0-9]*)+)(?![\w(/.]|: )", words)
        named += re.findall(r"(?:^|\s)'?(?:\+\+)?([a-z][a-z_.0-9]*)=", words) if words.startswith("kdrun ") else []
        for key in named:
            if "." not in key or (key.partition(".")[0] in groups and key.rpartition(".")[2] not in ENDINGS):
                assert as_listed(key) in has or key in OF_EXAMPLES, f"{key}, in {words[:200]}"


def test_readme_is_an_introduction():
    """Short, with the two commands as they are, of which .ci/run takes the second from here."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(re.findall(r"^python3 -m venv \.venv && .*pytest$", text, re.M)) == 1
    assert len(re.findall(r"^python3 -m venv \.venv && .*kdrun experiment=quick$", text, re.M)) == 1


def test_a_presets_time_is_the_one_in_its_file():
    """The line `# Time: ...` of conf/experiment/NAME.yaml is what the pages and --help say."""
    of_file = {}
    for path in (ROOT / "conf/experiment").glob("*.yaml"):
        if said := re.search(r"^# Time: (.*?)(?: (?:on|of) (?:one|two) cores?)?[,.]", path.read_text(), re.M):
            of_file[path.stem] = said[1]
    assert of_file.keys() >= {"quick", "convnets", "notebook"}
    help_text = yaml.safe_load((ROOT / "conf/hydra/help/kdrun.yaml").read_text())["template"]
    rows = dict(re.findall(r"^  (\w+) {2,}(.*(?:\n {15}.*)*)", help_text.split("Presets")[1].split("\n\n")[0], re.M))
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs/first-steps.md").read_text(), re.M))
    for preset, time in of_file.items():
        for row in (rows[preset], table[preset]):
            assert re.findall(_TIME, " ".join(row.split())) == [time], row
    (main_job,) = re.findall(r"The main job takes (.*?) \(", (ROOT / "README.md").read_text())
    assert main_job == of_file["quick"]


_NUMBER = r"(?:an?|one|two|three|four|five|six|seven|eight|nine|ten|\d+)"
_TIME = rf"{_NUMBER}(?: to \w+)? (?:minutes?|hours?)(?: and a half)?"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_hold(page):
    """As GitHub follows them; Sphinx looks at those among the pages, sections included."""
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_dead_links_of_the_site_are_found(tmp_path):
    (tmp_path / "a b.html").write_text('<h1 id="top">A</h1><a href="#top">1</a><a href="https://example.org/x#y">2</a>')
    good = '<a href="a%20b.html#top">1</a><a href="">2</a><img src="a%20b.html">'
    (tmp_path / "index.html").write_text(f'{good}<a href="b.html">3</a><a href="a%20b.html#end">4</a><img src="p.png">')
    assert script("links").dead(tmp_path) == [f"index.html: {link}" for link in ("b.html", "a%20b.html#end", "p.png")]


def as_listed(key: str) -> str:
    """A key as the page has it: a role's net and optimizer are in one table, and the weights of all objectives."""
    key = re.sub(r"^controls\.\w+\.", "", key)
    key = re.sub(r"^(?:teacher|student)\.(model|optimizer)\b", r"\1", key)
    return re.sub(r"^objective\.\w+\.(weight|weight_end|warmup_epochs)$", r"objective.NAME.\1", key)
