"""A training run in Weights & Biases: in files, or online. Its process is in here, too; it alone imports wandb."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from kdrun.config import rules
from kdrun.registry import register
from kdrun.tracking import aside

_ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}


def check(keys: Mapping) -> None:
    """Raises InputError where wandb is not installed."""
    aside.check_installed("wandb", "wandb")


@register("tracker", "wandb", check=check)
class WandB(aside.Aside):
    """A run of a project, in its sweep's group, with all keys as config, curves as history, the test's as summary."""

    def __init__(
        self,
        *,
        project: str,
        mode: Annotated[str, rules.one_of("auto", "online", "offline")],
        folder: rules.PathOrNone,
        wait_seconds: rules.Amount,
    ):
        environment = {key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()}
        own = {"project": project, "mode": mode, "folder": folder}
        super().__init__("wandb", __name__, environment, own, wait_seconds)


def main() -> None:
    """In the child: tell wandb."""
    aside.serve(_Tool())


class _Tool:
    def begin(self, run: aside.Tracked, *, project: str, mode: str, folder: str | None) -> None:
        """Begin the run, or go on with it: online by wandb's own means; offline all is told anew, which wandb has in a
        folder for each process, so that those of the processes before are in the way."""
        import wandb

        if mode == "auto":
            mode = "online" if _has_key() else "offline"
        place = Path(folder or run.folder).resolve()
        place.mkdir(parents=True, exist_ok=True)
        before = list((place / "wandb").glob(f"offline-run-*-{run.id}"))
        self._run = wandb.init(
            id=run.id,
            name=run.name,
            project=project,
            group=run.sweep and run.sweep["name"],
            config=dict(run.keys),
            resume="allow" if mode == "online" else None,
            mode=mode,
            settings=wandb.Settings(
                root_dir=str(place),
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
            ),
        )
        self._from = self._run.step
        if mode == "offline":
            for each in before:
                if each.resolve() != Path(self._run.dir).parent.resolve():
                    shutil.rmtree(each, ignore_errors=True)

    def points(self, *, step: int, time: float, values: Mapping[str, float]) -> None:
        """Note values from the step on that the run is at; of the test set there is one value each."""
        tested = {name: value for name, value in values.items() if name.startswith("test/")}
        if tested:
            self._run.summary.update(tested)
        elif step >= self._from:
            self._run.log({**values, "_timestamp": time}, step=step, commit=True)

    def file(self, *, name: str, content: bytes) -> None:
        """Keep a file; wandb takes it from its own folder."""
        (Path(self._run.dir) / name).write_bytes(content)

    def end(self, *, finished: bool) -> None:
        """Have the rest sent; a run that was interrupted counts as failed until it goes on."""
        self._run.finish(exit_code=0 if finished else 1)


def _has_key() -> bool:
    """Whether wandb knows how to log in, by what the user has set up; it is asked for nothing."""
    import wandb

    with suppress(wandb.Error):
        return bool(wandb.login(verify=False))
    return False
