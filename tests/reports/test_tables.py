"""Tables of made-up rows, in which no two numbers are alike: each in its cell."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdrun.reports import groups, jobs, tables


@pytest.fixture
def said(caplog, monkeypatch):
    """kdrun's log, whether or not a command was run in this process before."""
    monkeypatch.setattr(logging.getLogger("kdrun"), "propagate", True)
    caplog.set_level(logging.INFO, logger="kdrun")
    return caplog


def cells(text: str) -> list[dict[str, str]]:
    """The rows of a table as the terminal shows it."""
    lines = [line for line in text.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, lines), default=0) <= 120
    split = [[cell.strip() for cell in line[1:-1].split(line[0])] for line in lines]
    headings = [cells for line, cells in zip(lines, split, strict=True) if line[0] == "┃"]
    heading = [" ".join(filter(None, parts)) for parts in zip(*headings, strict=True)]
    return [dict(zip(heading, row, strict=True)) for row in split[len(headings) :]]


def of(stage: str, number: int) -> dict:
    """A row of a pipeline's table; its numbers have no digit in common with another number's row."""
    return {
        "stage": stage,
        "parameters": 1000 * number + 1,
        "test": {"accuracy": 0.9 + number / 100, "errors": 20 + number, "count": 5000, "cross_entropy": 0.3 + number},
        "test_last": {"accuracy": 0.5 + number / 100, "errors": 40 + number, "count": 5000, "cross_entropy": 0.6},
        "teacher_agreement": 0.7 + number / 100,
        "steps": 3000 + number,
        "training_seconds": 70.0 + number,
        "seconds_to_first_step": 1.0,
        "images_per_second": 8.0,
        "run": f"outputs/{stage}/run{number}",
    }


def test_a_pipelines_table(said):
    tables.comparison([of("teacher", 1), of("student", 2), of("distill", 3)])
    names = ("teacher", "student alone", "distilled student")
    assert cells(said.text) == [
        {
            "": name,
            "parameters": f"{number},001",
            "accuracy": f"9{number}.00%",
            "errors of 5,000": f"2{number}",
            "cross-entropy": f"{number}.3000",
            "agreement": f"7{number}.00%" if number > 1 else "",
            "last": f"5{number}.00%",
            "steps": f"3,00{number}",
            "seconds": f"7{number}",
        }
        for number, name in enumerate(names, start=1)
    ]
    for number, stage in enumerate(("teacher", "student", "distill"), start=1):
        assert f"{names[number - 1]}: outputs/{stage}/run{number}" in said.text


def test_a_table_of_networks_and_all_of_them_together(said):
    rows = [{"name": name, **of("student", n)} for n, name in enumerate(("generation 0", "generation 1"), start=1)]
    tables.networks([*rows, {"name": "ensemble of 2", **of("student", 3), "run": ""}])
    assert cells(said.text) == [
        {"": name, "accuracy": f"9{n}.00%", "errors of 5,000": f"2{n}", "cross-entropy": f"{n}.3000"}
        for n, name in enumerate(("generation 0", "generation 1", "ensemble of 2"), start=1)
    ]
    assert "generation 1: outputs/student/run2" in said.text and "ensemble of 2:" not in said.text


def test_a_sweeps_table(said):
    def completed(number: int) -> dict:
        results = {
            split: {which: {"accuracy": value + number / 100} for which, value in (("best", best), ("last", last))}
            for split, best, last in (("validation", 0.9, 0.4), ("test", 0.8, 0.3))
        }
        return {"stage": "student", "status": "completed", "results": {**results, "training_seconds": 70.0 + number}}

    records = {
        Path("s/one"): completed(1),
        Path("s/two"): completed(2),
        Path("s/bad"): {"stage": "student", "status": "failed", "error": "KdrunError: why"}
        | {"results": completed(3)["results"]},
        Path("s/odd"): "it cannot be read",
    }
    assert not jobs.show(records, {path.name for path in records}, 4)
    nothing = {"validation": "", "test": "", "seconds": ""}
    assert cells(said.text) == [
        {"job": "one", "status": "completed", "validation": "91.00%", "test": "81.00%", "seconds": "71"},
        {"job": "two", "status": "completed", "validation": "92.00%", "test": "82.00%", "seconds": "72"},
        {"job": "bad", "status": "failed", **nothing},
        {"job": "odd", "status": "damaged", **nothing},
    ]
    assert "bad: KdrunError: why (s/bad/kdrun.log)" in said.text and "odd: it cannot be read" in said.text
    assert jobs.show({Path("s/one"): completed(1)}, {"one"}, 1)
    assert not jobs.show({Path("s/one"): completed(1)}, {"one"}, 2)


def group(number: int, stage: str, control: str = "", **gained) -> dict:
    """A setting as settings.grouped and studies.judge make it."""
    return {
        "stage": stage,
        "kind": "control" if control else stage,
        "control": control,
        "model": "mlp",
        "student": "s",
        "study": "" if stage == "teacher" else "s",
        "overlap": 0,
        "quantize": "int8" if number == 2 else "",
        "made_by": "kdrun 1",
        "objective": {"distill": "kd"}.get(stage, ""),
        "temperature": 10.0 + number if stage == "distill" else None,
        "alpha": 0.1 * number if stage == "distill" else None,
        "n": number + 2,
        "seeds": number + 2,
        "teachers": 1 if stage == "distill" else 0,
        "test_accuracy": 0.9 + number / 100,
        "test_accuracy_std": 0.001 * number,
        "test_accuracy_low": 0.8 + number / 100,
        "test_accuracy_high": 0.95 + number / 100,
        "validation_accuracy": 0.5 + number / 100,
        "errors": 20.5 + number,
        "count": 5000,
        "cross_entropy": 0.3 + number,
        "brier": 0.4 + number,
        "calibration_error": 0.06 + number,
        "calibration_error_std": 0.0006 * number,
        "teacher_agreement": 0.7 + number / 100 if stage == "distill" else np.nan,
        "teacher_kl": 0.08 + number if stage == "distill" else np.nan,
        "parameters": 1000 * number + 1,
        "multiply_adds": 2000 * number + 2,
        "weights_bytes": 3000 * number,
        "latency_batch_1_median": 0.004 + number / 1000,
        "latency_batch_1_p95": 0.014 + number / 1000,
        "latency_batch_128_median": 0.024 + number / 1000,
        "latency_batch_128_p95": 0.034 + number / 1000,
        "training_seconds": 70.0 + number,
        **dict.fromkeys(("gain", "gain_low", "gain_high", "p", "p_adjusted", "gains"), np.nan),
        **gained,
    }


def test_the_table_of_a_comparison():
    gained = {"gain": 0.0123, "gain_low": -0.0034, "gain_high": 0.0456, "p": 0.021, "p_adjusted": 0.042}
    gained["gains"] = {number: 0.01 * number for number in range(6)}
    found = pd.DataFrame.from_dict(
        {
            "best": group(4, "distill", **gained),
            "shuffled": group(3, "distill", "shuffled teacher"),
            "alone": group(2, "student"),
            "teacher": group(1, "teacher"),
        },
        orient="index",
    )
    shown = groups.table(found, {"best"}, {"s": "mlp on mnist"})
    assert list(shown["group"]) == ["teacher", "alone", "shuffled", "best"]
    assert list(shown[""]) == ["teacher", "student alone, for int8", "shuffled teacher", "distilled student (chosen)"]
    row = shown.iloc[3].to_dict()
    assert row == {
        "": "distilled student (chosen)",
        "T": "14",
        "alpha": "0.4",
        "seeds": "6",
        "gain": "+1.23",
        "95 % of gain": "-0.34 to +4.56",
        "adjusted p": "0.042",
        "accuracy, %": "94.00",
        "± std": "0.40",
        "95 % (t)": "84.00 to 99.00",
        "errors of 5,000": "24.5",
        "CE": "4.3000",
        "Brier": "4.4000",
        "ECE, 15 bins": "4.0600",
        "± std of ECE": "0.0024",
        "agreement, %": "74.00",
        "KL": "4.0800",
        "parameters": "4,001",
        "multiply-adds": "8,002",
        "weights, kB": "12",
        "latency 1, ms": "8.00 (p95 18.00)",
        "latency 128, ms": "28.00 (p95 38.00)",
        "seconds": "74",
        "single gains": "+0.00 +1.00 +2.00 +3.00 +4.00 …",
        "group": "best",
    }
    others = shown.set_index("group")
    assert list(others["accuracy, %"]) == ["91.00", "92.00", "93.00", "94.00"]
    for column in ("gain", "95 % of gain", "adjusted p", "single gains"):
        assert list(others[column])[:3] == ["", "", ""]
    assert [line[2] for line in (row.split(" | ") for row in groups.markdown(shown).splitlines()[2:])] == list(
        shown["alpha"]
    )
    rows = [row for row in cells(groups.text(shown)) if row["T"] or row["seeds"]]  # a long name goes on below
    assert {"gain", "95 % of gain", "accuracy, %"} <= rows[0].keys() and len(rows[0]) < 12  # as many as fit, whole
    for column in rows[0].keys() - {"", "study", "objective"}:
        assert [row[column] for row in rows] == list(shown[column]), column
