"""The notebook, as a reader runs it: every cell, in a kernel of its own, beside nothing."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples/quick_study.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_holds_nothing_of_whoever_ran_it_last(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None), cell.source
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.slow
def test_the_notebook_says_what_it_promises(notebook, tmp_path, monkeypatch):
    root = NOTEBOOK.parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = ["".join(map(shown, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"]
    study, table, gains, curves, confused, asked = said[1:]
    assert "Distilling helped" in study
    assert "report.html" in study
    assert table.count("distill") == table.count("student") == 3
    assert gains.count("\n") >= 4
    assert "image/png" in curves
    assert confused.startswith("Most often, a ")
    assert asked.startswith("1: ")


def shown(output) -> str:
    """What a cell shows: its text, and which kinds of pictures."""
    return output.get("text", "") or "".join(output.get("data", {}).get("text/plain", "")) + " ".join(
        output.get("data", {})
    )
