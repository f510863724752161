"""Rich's tables as text that fits a terminal, wherever it goes."""

import io
from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from kdrun.runtime.terminal import WIDTH

_FOLDED = 20  # columns that a text has at least, before it goes on in the next line


def text(table: Table) -> str:
    """A table in lines of at most WIDTH columns; what is too wide for that is folded, where its column may be."""
    return _printed(table, WIDTH)


def widest(table_of: Callable[[Sequence[str]], Table], columns: Sequence[str], spare: Sequence[str]) -> str:
    """A table of as many columns as fit: those that are `spare` are left out first, in that order, then the last."""
    kept = list(columns)
    for each in [*spare, *reversed([column for column in columns if column not in spare])]:
        if _least_width(table_of(kept)) <= WIDTH or len(kept) == 1:
            break
        if each in kept:
            kept.remove(each)
    return _printed(table_of(kept), WIDTH)


def add_column(table: Table, name: str, cells: Sequence[str], folds: bool = False) -> None:
    """Add a column that keeps its width; where it `folds`, to the left, long cells go on in the next line instead."""
    heading = _heading(name, max(map(cell_len, cells), default=0))
    width = max(map(cell_len, [*cells, *heading.split("\n")]))
    table.add_column(
        heading,
        justify="left" if folds or not name else "right",
        no_wrap=not folds,
        overflow="fold",
        min_width=min(_FOLDED, width) if folds else width,
    )


def _heading(text: str, most: int) -> str:
    """A heading in lines that are not longer than so much, or than its longest word."""
    lines: list[str] = []
    most = max(most, *map(cell_len, text.split()), 0)
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _least_width(table: Table) -> int:
    console = Console(width=10 * WIDTH)
    return Measurement.get(console, console.options, table).minimum


def _printed(table: Table, width: int) -> str:
    said = io.StringIO()
    Console(file=said, width=width, color_system=None, markup=False, emoji=False).print(table)
    return said.getvalue().rstrip()
