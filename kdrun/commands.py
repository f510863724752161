"""Words of a command line, quoted for who reads them."""

import re
import shlex
from pathlib import Path


def quoted(text: str) -> str:
    """A value as Hydra reads it, whatever is in it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def value(text: str) -> str:
    """A value as Hydra reads it, quoted where that is needed."""
    return text if re.fullmatch(r"[\w./+-]+", text, re.ASCII) else quoted(text)


def resume(run_dir: Path) -> str:
    """The command that goes on with a run, quoted for Hydra and for the shell where that is needed."""
    return f"kdrun {shlex.quote(f'resume={value(str(run_dir))}')}"
