"""The terminal, where standard output is one: lines that fit it, what moves on it, and what is being done just now.

Elsewhere, in a file or a pipe, a line of the log is one line, and nothing moves; so also on a terminal that is told by
TERM=dumb to obey no escape codes, or by NO_COLOR to show none.
"""

import logging
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kdrun.runtime import progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

WIDTH = 120  # columns that a line has at most, if its words allow it
_COMMAND = re.compile(r"\bkdrun(?: (?:-\S+|'[^']*'|[^\s'=]+=\S*|[a-z_]+(?= \S+=)))+")
_GLUE = "\0"  # in place of a blank at which a line is not to be broken
_spinner: list["Status"] = []  # the one that turns, if one does


class Lines(logging.Handler):
    """Prints to whatever standard output is at the moment, above what moves there; where that is gone or has no room,
    a run goes on without them."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            _print(fitted(self.format(record), record.args))


def log_to_terminal() -> None:
    """Print kdrun's log lines; safe to call again."""
    logger = logging.getLogger("kdrun")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not any(isinstance(handler, Lines) for handler in logger.handlers):
        logger.addHandler(Lines())


def is_animated() -> bool:
    """Whether something may move: on a terminal that obeys escape codes, which no other process draws on for us."""
    obeys = os.environ.get("TERM", "dumb") not in ("dumb", "unknown") and not os.environ.get("NO_COLOR")
    return obeys and _is_terminal(sys.stdout) and not progress.is_elsewhere()


def canvas() -> "Console":
    """The console to draw bars and tables on, where `is_animated`; a spinner makes room for them."""
    while _spinner:
        _spinner.pop().stop()
    return _console()


@contextmanager
def doing(what: str) -> Iterator[None]:
    """While inside, a spinner says what takes a while, or the process that shows how far this one is does."""
    progress.tell(doing=what)
    if not is_animated() or sys.stdout is sys.stderr:  # with print=json
        yield
        return
    if _spinner:  # a part of what it says
        whole, before = _spinner[0], _spinner[0].status
        whole.update(_shown(what))
        try:
            yield
        finally:
            whole.update(before)
        return
    from rich.errors import LiveError

    status = _console().status(_shown(what), spinner="dots")
    with suppress(LiveError):  # something else moves there already
        status.start()
        _spinner.append(status)
    try:
        yield
    finally:
        status.stop()
        _spinner.clear()


def _shown(what: str) -> "Text":
    from rich.text import Text

    return Text(f"{what} ...")  # whatever is in it, a path's brackets too, as it stands


def fitted(text: str, arguments: Any = (), stream: Any = None) -> str:
    """A line as a stream, by default standard output, shows it: on a terminal broken between words where it is too
    long, the rest indented. Neither a command is broken nor a path among the `arguments` that the line is made of; a
    table, which has lines already, is left alone."""
    stream = sys.stdout if stream is None else stream
    if "\n" in text or not _is_terminal(stream) or len(text) <= (columns := _columns(stream)):
        return text
    text = text.expandtabs(4)
    glued = _COMMAND.sub(lambda found: found[0].replace(" ", _GLUE), text)
    for path in map(str, arguments if isinstance(arguments, tuple) else ()):
        if " " in path and len(path) < 4096 and os.path.lexists(path):
            glued = glued.replace(path, path.replace(" ", _GLUE))
    indent = " " * (len(text) - len(text.lstrip(" ")))
    if "  " in text.strip():  # between its parts, of which each stays whole
        glued = re.sub(r"(?<! ) (?! )", _GLUE, glued.strip())
    wrapper = textwrap.TextWrapper(columns, indent, f"{indent}  ", break_long_words=False)
    wrapper.break_on_hyphens = False
    lines = wrapper.wrap(glued.strip())
    return "\n".join(lines).replace(_GLUE, " ")


def _print(text: str) -> None:
    if is_animated():
        from rich.text import Text

        _console().print(Text(text), soft_wrap=True)  # above what moves, and as it stands
    else:
        print(text, file=sys.stdout, flush=True)


def _columns(stream: Any) -> int:
    """How wide a line may be: as the terminal is, and WIDTH at most."""
    given = os.environ.get("COLUMNS", "")
    with suppress(OSError, ValueError):
        found = int(given) if given.isdecimal() else os.get_terminal_size(stream.fileno()).columns
        return min(found or WIDTH, WIDTH)
    return WIDTH


def _is_terminal(stream: Any) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # it is none, or closed
        return False


def _console() -> "Console":
    return _console_that(is_animated())


@lru_cache
def _console_that(is_animated: bool) -> "Console":
    """One console for all that moves, so that lines and bars know of each other."""
    from rich.console import Console

    return Console(force_terminal=is_animated)
