"""report.html: one file with the sentence, the tables, the figures and the commands; nothing is fetched to read it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from kdrun.reports import classes


def write(path: Path, figures: Mapping[str, tuple[Path, str]], tables: Mapping[str, str], **texts) -> None:
    """Write the page. `figures` are (file of SVG, caption) by name, `tables` HTML made by pandas."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=loader)
    environment.filters |= {"percent": classes.percent, "points": classes.points}
    template = environment.get_template("page.html.j2")
    drawn = [
        {"name": name, "svg": Markup(_inline(name, file)), "caption": caption}
        for name, (file, caption) in figures.items()
    ]
    tables = {name: Markup(table) for name, table in tables.items()}
    path.write_text(template.render(figures=drawn, **tables, **texts), "utf-8", "replace")


def commands(given: Sequence[str]) -> str:
    """Each command once, in the order in which they first came."""
    return "\n".join(dict.fromkeys(command for command in given if command))


def _inline(name: str, file: Path) -> str:
    """A figure as an svg element; its ids, which are the page's now, are made the figure's own."""
    text = file.read_text()
    svg = text[text.index("<svg") :]
    return re.sub(r'((?:id="|href="#|url\(#))', rf"\g<1>{name}-", svg)
