"""Texts that somebody else may have written, made harmless where they are shown: an objective's name, a command."""

import re
import unicodedata

# how a formula begins in a spreadsheet, in wide characters, too
_FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@＝＋－＠]")
_MARKDOWN = str.maketrans({character: f"&#{ord(character)};" for character in "|`\\"})
_MARKDOWN |= str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_LATEX = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"})
_LATEX |= str.maketrans({"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})
_LATEX |= str.maketrans({"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"})
_LATEX |= str.maketrans({"±": r"$\pm$", "–": "--", "−": "$-$", "…": r"\dots{}"})
_LATEX |= str.maketrans({character: f"{{{character}}}" for character in "[]*"})  # else arguments of a row's end


def one_line(text: str) -> str:
    """A text on one line, without what a terminal would obey."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def short(text: str, most: int) -> str:
    """A text on one line of at most so many characters; what is cut off is an ellipsis."""
    text = one_line(text)
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def csv(value):
    """A cell of a table for spreadsheets: a text that one would compute is begun with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value) else value


def markdown(text: str) -> str:
    """A text in Markdown, in a table's cell, too."""
    return re.sub(r"\](?=[(\[:])", "&#93;", one_line(text).translate(_MARKDOWN))  # no link, and no picture


def latex(text: str) -> str:
    """A text in LaTeX, in a table's cell, too; what pdflatex has no sign for becomes its nearest letter, or `?`."""
    return "".join(_known(each) for each in one_line(text)).translate(_LATEX)


def _known(character: str) -> str:
    if character.isascii() or ord(character) in _LATEX:
        return character
    letters = "".join(each for each in unicodedata.normalize("NFKD", character) if each.isascii())
    return letters or "?"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
