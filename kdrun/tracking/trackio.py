"""A training run in Trackio, in a folder here. Its process is in here, too; it alone imports trackio."""

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from kdrun.config import rules
from kdrun.errors import KdrunError
from kdrun.registry import register
from kdrun.tracking import aside

_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # variables that have it send what it gets


def check(keys: Mapping) -> None:
    """Raises InputError where trackio is not installed."""
    aside.check_installed("trackio", "trackio")


@register("tracker", "trackio", check=check)
class Trackio(aside.Aside):
    """A run of a project, in its sweep's group, with all keys as config, curves as logs, pictures as artifacts."""

    def __init__(self, *, project: str, folder: rules.PathOrNone, wait_seconds: rules.Amount):
        super().__init__("trackio", __name__, _ENVIRONMENT, {"project": project, "folder": folder}, wait_seconds)


def main() -> None:
    """In the child: tell trackio."""
    for name in _ELSEWHERE:
        os.environ.pop(name, None)
    aside.serve(_Tool())


class _Tool:
    def begin(self, run: aside.Tracked, *, project: str, folder: str | None) -> None:
        """Begin the run. One that goes on is written anew, since all is told again: trackio would keep points twice."""
        os.environ["TRACKIO_DIR"] = str(Path(folder or f"{run.folder}/trackio").resolve())
        import trackio

        self._trouble: list[str] = []  # which it raises no error for
        warnings.showwarning = lambda message, *where, **more: self._trouble.append(str(message))
        name = f"{run.name} {run.id[:8]}"  # a name is all that a run is known by
        with_project = Path(os.environ["TRACKIO_DIR"]).glob(f"{project}.db")
        for before in trackio.Api().runs(project) if any(with_project) else ():
            if before.name == name:
                before.delete()
        self._run = trackio.init(
            project,
            name=name,
            group=run.sweep["name"] if run.sweep else None,
            config=dict(run.keys),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def points(self, *, step: int, time: float, values: Mapping[str, float]) -> None:
        """Note values."""
        self._run.log(dict(values), step=step)

    def file(self, *, name: str, content: bytes) -> None:
        """Keep an artifact."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            self._run.log_artifact(path)

    def end(self, *, finished: bool) -> None:
        """Have the rest written, and see that it is."""
        self._run.finish()
        if self._trouble:
            raise KdrunError(self._trouble[0])
