"""What the pages say: tables that are written from the code, keys and names that there are, a README that is short."""

import importlib.util
import re
from pathlib import Path

import pytest

from kdrun import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def keys(tables):
    """All keys that the page has, and those of other places that a key may be written for."""
    return set(re.findall(r"^\| `([\w.]+)` \| \w+", tables.keys_page(), re.M))


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


def test_the_keys_page_has_every_key(tables, keys):
    from kdrun.config import schema

    for stage in registry.names("stage"):
        if not registry.get("stage", stage).is_part:
            assert schema.own_keys(registry.get("stage", stage)).keys() <= keys
    for model in registry.names("model"):
        assert {f"model.{key}" for key in schema.own_keys(registry.get("model", model))} <= keys
    for objective in registry.names("objective"):
        assert schema.own_keys(registry.get("objective", objective), f"objective.{objective}.").keys() <= keys
