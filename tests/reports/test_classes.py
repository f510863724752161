"""Accuracy by class of made-up networks, two classes to more than a hundred: the terminal's table and the page's."""

import logging
import re
from pathlib import Path

import gathered
import numpy as np
import pandas as pd
import pytest

from kdrun.reports import classes, comparison


def made_up(folder: Path, labels: np.ndarray, names: tuple[str, ...]) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """A teacher, two students alone and two distilled, each with mistakes of its own; and the predictions of each."""
    random, rows, predicted = np.random.default_rng(3), [], {}
    for kind, group, right, seeds in (("teacher", "t", 0.9, 1), ("student", "a", 0.6, 2), ("distill", "d", 0.7, 2)):
        for seed in range(seeds):
            found = np.where(random.random(len(labels)) < right, labels, (labels + 1) % len(names))
            run = folder / f"{group}{seed}"
            (run / "predictions").mkdir(parents=True)
            z = 3 * np.eye(len(names), dtype=np.float32)[found]
            np.savez(run / "predictions/test.npz", labels=labels, logits=z, last_logits=z)
            more = {"weights": "t"} if kind == "teacher" else {}
            more |= {"run": str(run), "class_names": names, "balanced_accuracy": 0.5}
            rows.append(gathered.run(kind, group, seed, found == labels, **more))
            predicted[f"{group}{seed}"] = found
    return pd.DataFrame(rows), predicted


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("kdrun"), "propagate", True)
    caplog.set_level(logging.INFO, logger="kdrun")
    return caplog


@pytest.mark.parametrize(("count", "listed"), [(2, 2), (100, 10), (101, 10)])
def test_of_many_classes_those_that_won_and_lost_most_are_listed(count, listed, tmp_path, said):
    names = tuple(f"class {number}" for number in range(count))
    labels = np.random.default_rng(0).permutation(np.arange(12 * count) % count)
    rows, predicted = made_up(tmp_path, labels, names)
    comparison.report(rows, tmp_path, 0.005)

    gains = {}
    for number, name in enumerate(names):
        of_class = labels == number
        means = [
            np.mean([np.mean(predicted[f"{group}{seed}"][of_class] == number) for seed in (0, 1)]) for group in "ad"
        ]
        gains[name] = means[1] - means[0]
    order = sorted(names, key=lambda name: (-gains[name], names.index(name)))
    shown = [line.split("│")[1].strip() for line in said.text.splitlines() if line.startswith("│ class")]
    assert shown == (order if listed == count else [*order[:5], *order[-5:]])
    assert (f"… {count - listed:,} more" in said.text) == (listed < count)

    page = (tmp_path / "report.html").read_text()
    table = page[page.index("<h2>By class") :]
    assert re.findall(r'<td class="name" title="(class \d+)">', table)[:count] == order
    assert ("<details open>" in page) == (count == 2)
    assert page.count('class="right') == (count if count <= 100 else 0)  # the matrix' diagonal
    confused = {}
    for run in ("d0", "d1"):
        for label, found in zip(labels.tolist(), predicted[run].tolist(), strict=True):
            if label != found:
                confused[label, found] = confused.get((label, found), 0) + 0.5
    most = sorted(confused.items(), key=lambda item: (-item[1], item[0]))[:20]
    found = re.findall(
        r'<tr><td class="name">([^<]*)</td><td class="text name">([^<]*)</td><td>([\d.]+)</td><td>([\d.]+)%</td>', page
    )
    expected = [
        (names[label], names[other], f"{images:.1f}", f"{100 * images / 12:.2f}") for (label, other), images in most
    ]
    assert found == (expected if count > 20 else [])


def test_runs_that_were_tested_on_other_images_are_left_out(tmp_path):
    labels = np.arange(40) % 4
    _, predicted = made_up(tmp_path, labels, tuple("abcd"))
    made_up(tmp_path / "other", np.roll(labels, 1), tuple("abcd"))
    runs = {"student": [str(tmp_path / "other/a0"), str(tmp_path / "a1")], "distill": [str(tmp_path / "d0")]}
    test = classes.tested({"teacher": [], **runs})
    assert list(test.predicted) == ["student", "distill"]
    np.testing.assert_array_equal(test.predicted["student"], [predicted["a1"]])
    assert classes.tested({"teacher": [], "student": []}) is None


def test_the_lowest_classes_are_said_in_a_line():
    test = {"class_accuracy": [0.5, None, 0.25, 1.0, 0.125], "balanced_accuracy": 0.46875}
    names = ["cat", "dog", "a\x1b[31m\nb", "bird", "x" * 99]
    said = classes.lowest(names, test)
    assert said == f"balanced accuracy 46.88%; lowest of its classes: {'x' * 23}… 12.50%, a [31m b 25.00%, cat 50.00%"
