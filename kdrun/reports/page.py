"""report.html: one file with the sentence, the tables, the figures and the commands; nothing is fetched to read it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from kdrun.reports import classes

_WIDE = 7.0 * 72  # points: a figure that is wider takes two columns


class _Heading(NamedTuple):
    name: str
    is_text: bool  # and no numbers, which stand on the right


def write(path: Path, figures: Mapping[str, tuple[Path, str]], tables: Mapping[str, pd.DataFrame], **texts) -> None:
    """Write the page. `figures` are (file of SVG, caption) by name; what is in `tables` and `texts` is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=loader)
    environment.filters |= {"percent": classes.percent, "points": classes.points}
    template = environment.get_template("page.html.j2")
    drawn = [_drawn(name, file, caption) for name, (file, caption) in figures.items()]
    shown = {name: _table(table) if len(table) else None for name, table in tables.items()}
    path.write_text(template.render(figures=drawn, **shown, **texts), "utf-8", "replace")


def commands(given: Sequence[str]) -> list[str]:
    """Each command once, in the order in which they first came."""
    return list(dict.fromkeys(command for command in given if command))


def _table(table: pd.DataFrame) -> dict[str, Any]:
    """A table's headings and its rows, as texts."""
    columns = [[_text(value) for value in values] for _, values in table.items()]  # two may have the same name
    headings = [_Heading(str(name), _is_text(texts)) for name, texts in zip(table.columns, columns, strict=True)]
    return {"headings": headings, "rows": list(zip(*columns, strict=True))}


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_text(values: Iterable[str]) -> bool:
    return any(value and not re.match(r"[-+−]?\.?\d", value) for value in values)


def _drawn(name: str, file: Path, caption: str) -> dict[str, Any]:
    """A figure as an svg element; its ids, which are the page's now, are made the figure's own."""
    text = file.read_text()
    svg = text[text.index("<svg") :]
    svg = re.sub(r'((?:id="|href="#|url\(#))', rf"\g<1>{name}-", svg)
    width = re.search(r'width="([\d.]+)pt"', svg)
    is_wide = width is not None and float(width[1]) > _WIDE
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{name.replace("_", " ")}"', 1)
    return {"name": name, "svg": Markup(svg), "caption": caption, "wide": is_wide}
