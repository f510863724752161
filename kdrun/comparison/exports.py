"""Exported files of a comparison's runs: what each network is worth on a device, beside what it was before."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kdrun.comparison.kinds import ALONE, DISTILLED
from kdrun.runs import record as runs
from kdrun.storage import forms

_AS_IT_WAS = "as it was trained"
_FORM = {
    "run": str,
    "exports": [
        {
            "file": str,
            "format": forms.word,
            "quantize": forms.word,
            "bytes": forms.count,
            "parity": {
                "accuracy": forms.fraction,
                "accuracy_before": forms.fraction,
                "change": {"gain": forms.number, "low": forms.number, "high": forms.number},
            },
            "latency": {"one_thread": {"median": forms.number, "p95": forms.number}},
        }
    ],
}


class Row(NamedTuple):
    """A network as a file: of which kind and seed, what the file is; test accuracy, bytes, and seconds for one image
    with one thread in its own runtime, median and p95, None where it was not timed; accuracy before, and the change
    with its 95 % interval."""

    kind: str
    seed: int
    file: str
    format: str
    quantize: str
    accuracy: float
    bytes: int
    median: float | None
    p95: float | None
    before: float
    change: tuple[float, float, float]
    run: str


def rows(table: pd.DataFrame) -> list[Row]:
    """The files of all exports among a comparison's runs, whose networks are among them, too, and the teachers of these
    as they are; students alone before distilled ones."""
    exports = table[table["stage"].map(_exports) & (table["status"] == "completed")] if "stage" in table else table[:0]
    if exports.empty or "kind" not in table:
        return []
    networks = {str(Path(row["run"]).resolve()): row for _, row in table[table["kind"].notna()].iterrows()}
    files: dict[tuple[str, str], Row] = {}  # by network and name: of one that was exported again, the last
    taught_by: dict[str, None] = {}
    for export in exports["run"]:
        results = runs.read(export)["results"]
        if forms.problem(results, _FORM):
            continue
        network = networks.get(str(Path(results["run"]).resolve()))
        if network is None:
            continue
        taught_by |= dict.fromkeys(str(Path(each).resolve()) for each in network["teacher"])
        files |= {(network["run"], each["file"]): _of_file(each, network) for each in results["exports"]}
    order = {kind: number for number, kind in enumerate((ALONE, DISTILLED))}
    found = sorted(files.values(), key=lambda row: order.get(row.kind, len(order)))
    return [_as_it_was(networks[each]) for each in taught_by if each in networks] + found


def _exports(stage: str) -> bool:
    entry = runs.stage_of({"stage": stage})
    return entry is not None and entry.exports_network


def _of_file(each: dict, network: pd.Series) -> Row:
    parity, latency = each["parity"], each["latency"]["one_thread"]
    change = tuple(parity["change"][key] for key in ("gain", "low", "high"))
    return Row(
        *(network["kind"], int(network["seed"]), each["file"], each["format"], each["quantize"], parity["accuracy"]),
        *(each["bytes"], latency["median"], latency["p95"], parity["accuracy_before"], change, network["run"]),
    )


def _as_it_was(network: pd.Series) -> Row:
    accuracy = float(network["test_accuracy"])
    size = int(network["weights_bytes"])
    return Row(
        *(network["kind"], int(network["seed"]), _AS_IT_WAS, "", "none", accuracy, size, None, None, accuracy),
        *((0.0, 0.0, 0.0), network["run"]),
    )


def said(found: Sequence[Row], helped: bool) -> list[str]:
    """A line for each format that has a distilled student in int8: what that is worth, and, where distilling has
    `helped`, how much of the gain over the student alone it keeps."""
    lines = []
    for row in found:
        if row.kind != DISTILLED or row.quantize != "int8":
            continue
        alone = next((each for each in found if each.kind == ALONE and each.format == row.format), None)
        gain = row.before - alone.before if alone else 0.0
        change, low, high = (100 * each for each in row.change)
        line = (
            f"In int8 ({row.file}, {row.bytes / 1e3:,.0f} kB, {1e3 * (row.median or 0):.2g} ms an image) the distilled "
            f"student of seed {row.seed} has {100 * row.accuracy:.2f} % test accuracy, {change:+.2f} points (95 % "
            f"{low:+.2f} to {high:+.2f}) by int8"
        )
        if alone and helped and gain > 0:
            kept = (row.accuracy - alone.before) / gain
            line += (
                f": it keeps {100 * kept:.0f} % of its gain over the student alone (seed {alone.seed}, in floats, "
                f"{100 * alone.before:.2f} %)"
            )
        lines.append(f"{line}.")
    return lines
