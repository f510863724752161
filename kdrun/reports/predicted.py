"""What a network says of images, for spreadsheets and for programs: predictions.csv and predictions.jsonl."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from kdrun.comparison import texts
from kdrun.data.inputs import Block
from kdrun.storage import files

CSV, LINES = "predictions.csv", "predictions.jsonl"
_SHOWN = 10  # images, and broken ones, that are kept for the terminal


@dataclass
class Told:
    """What was written: how many images of each class, how many could not be read, and the first lines of both."""

    counts: list[int]
    broken: int = 0
    lines: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        """How many images there were, broken ones among them."""
        return sum(self.counts) + self.broken


def write(said: Iterable[tuple[Block, np.ndarray]], class_names: Sequence[str], top: int, folder: Path) -> Told:
    """Write both files below a folder, all or nothing: a row for each image, in their order, as they come.

    `said` are images with probabilities, float32 [k, classes], of those of them that could be read; `top` how many of
    the best classes a row has. In the CSV, a text that a spreadsheet would compute is begun with an apostrophe; the
    lines of JSON have names as they are.
    """
    names, top = list(class_names), min(top, len(class_names))
    told = Told([0] * len(names))

    def both(table: str, lines: str) -> None:
        # a file's name may be of bytes that are no UTF-8
        how: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
        with open(table, "w", **how) as of_table, open(lines, "w", **how) as of_lines:
            _write(said, names, top, of_table, of_lines, told)

    files.write_with(folder / CSV, lambda table: files.write_with(folder / LINES, lambda lines: both(table, lines)))
    return told


def _write(
    said: Iterable[tuple[Block, np.ndarray]], names: Sequence[str], top: int, table: IO, lines: IO, told: Told
) -> None:
    rows = csv.writer(table, lineterminator="\n")
    further = [f"{what}_{place}" for place in range(2, top + 1) for what in ("class", "probability")]
    rows.writerow(["file", "class", "probability", *further, "error"])
    for name, best, why in _by_image(said, top):
        if why is not None:
            rows.writerow([texts.csv(name), *[""] * (2 * top), texts.csv(why)])
            lines.write(json.dumps({"file": name, "error": why}) + "\n")
            _add(told.why, f"{name!a} ({why})")
            told.broken += 1
            continue
        found = [(names[number], probability) for number, probability in best]
        rows.writerow([texts.csv(name), *(texts.csv(each) for pair in found for each in pair), ""])
        of_all = [{"class": each, "probability": probability} for each, probability in found]
        lines.write(json.dumps({"file": name, **of_all[0], "best": of_all}) + "\n")
        told.counts[best[0][0]] += 1
        _add(told.lines, f"{texts.one_line(name)}: {', '.join(f'{texts.one_line(c)} {p:.1%}' for c, p in found)}")


def _by_image(
    said: Iterable[tuple[Block, np.ndarray]], top: int
) -> Iterator[tuple[str, list[tuple[int, float]], str | None]]:
    """Of each image its name, its best classes by number with their probabilities, or why it could not be read."""
    for block, probabilities in said:
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        row = 0
        for place, name in enumerate(block.names):
            if place in block.broken:
                yield name, [], block.broken[place]
                continue
            # the shortest text that is this float32
            best = [(int(number), float(str(probabilities[row, number]))) for number in order[row]]
            yield name, best, None
            row += 1


def _add(lines: list[str], line: str) -> None:
    if len(lines) <= _SHOWN:
        lines.append(line)
