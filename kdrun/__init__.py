"""kdrun: knowledge-distillation experiments on image classifiers, from a Hydra config.

The public face for a notebook: `frame` and `load_run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from kdrun.runs.loaded import LoadedRun

__version__ = "0.1.0"


def frame(*places: str | Path) -> pd.DataFrame:
    """A row for each run in `places`: run directories, folders of them, or glob patterns.

    See kdrun.comparison.gathering.frame for its columns. Raises InputError where there is no run at all.
    """
    from kdrun.comparison import gathering  # and with it pandas, for who asks

    return gathering.frame(*places)


def load_run(path: str | Path, plugins: Sequence[str] = ()) -> LoadedRun:
    """A run directory: config, record, metrics and predictions, and on demand its network; see kdrun.runs.loaded.

    `plugins` are the files of your own that its net or data come from. Raises InputError where it is no run.
    """
    from kdrun import plugins as files
    from kdrun.runs.loaded import LoadedRun

    files.load(plugins)
    return LoadedRun(path)
