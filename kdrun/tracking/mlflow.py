"""A training run in MLflow: a folder, or a server. Its process is in here, too; it alone imports MLflow."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdrun.config import rules
from kdrun.registry import register
from kdrun.tracking import aside

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # which needs no database, and is not to be had without saying so
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # it is tried again here, after it was said
}
_OURS = "kdrun.id"  # the tag that our id of a run is
_AT_ONCE = 100  # params that a server takes in one request
_LONGEST = 6000  # characters of one


def check(keys: Mapping) -> None:
    """Raises InputError where MLflow is not installed; mlflow-skinny is enough, and either brings it."""
    aside.check_installed("mlflow", "mlflow-skinny")


@register("tracker", "mlflow", check=check)
class MLflow(aside.Aside):
    """A run of an experiment, below its sweep's, with all keys as params, curves as metrics, pictures as artifacts."""

    def __init__(self, *, uri: rules.PathOrNone, experiment: str, wait_seconds: rules.Amount):
        environment = {key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()}
        super().__init__("mlflow", __name__, environment, {"uri": uri, "experiment": experiment}, wait_seconds)


def main() -> None:
    """In the child: tell MLflow."""
    aside.serve(_Tool())


class _Tool:
    def begin(self, run: aside.Tracked, *, uri: str | None, experiment: str) -> None:
        """Find or make experiment, the sweep's run and the run; note the keys that it lacks: a param cannot change."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = client = MlflowClient(_address(uri or f"{run.folder}/mlflow"))
        lock = Path(run.folder) / ".locks" / "mlflow.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):  # jobs beside each other are of one experiment, and of one sweep
            found = client.get_experiment_by_name(experiment)
            self._experiment = found.experiment_id if found else client.create_experiment(experiment)
            tags = {}
            if run.sweep:
                tags["mlflow.parentRunId"], is_new = self._found_or_made(run.sweep["id"], run.sweep["name"], {})
                if is_new:
                    client.set_terminated(tags["mlflow.parentRunId"])
            self._run, is_new = self._found_or_made(run.id, run.name, tags)
        self._steps: dict[str, set[int]] | None = {} if is_new else None
        tracked = client.get_run(self._run)
        if tracked.info.status != "RUNNING":
            client.update_run(self._run, status="RUNNING")
        missing = [Param(key, _shown(value)) for key, value in run.keys.items() if key not in tracked.data.params]
        for first in range(0, len(missing), _AT_ONCE):
            client.log_batch(self._run, params=missing[first : first + _AT_ONCE])

    def points(self, *, step: int, time: float, values: Mapping[str, float]) -> None:
        """Note those values that the run has not at this step. MLflow would keep a point twice."""
        from mlflow.entities import Metric

        steps, self._steps = self._known(values), None  # after an error: nobody knows
        new = {name: value for name, value in values.items() if step not in steps[name]}
        metrics = [Metric(name, value, int(1000 * time), step) for name, value in new.items()]
        self._client.log_batch(self._run, metrics=metrics)
        for name in new:
            steps[name].add(step)
        self._steps = steps

    def file(self, *, name: str, content: bytes) -> None:
        """Keep an artifact."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            self._client.log_artifact(self._run, str(path))

    def end(self, *, finished: bool) -> None:
        """Finished, or killed: it may go on."""
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")

    def _found_or_made(self, id: str, name: str, tags: Mapping[str, str]) -> tuple[str, bool]:
        """MLflow's id of the run that has ours, and whether it was made just now."""
        found = self._client.search_runs([self._experiment], f"tags.`{_OURS}` = '{id}'", max_results=1)
        if found:
            return found[0].info.run_id, False
        made = self._client.create_run(self._experiment, run_name=name, tags={_OURS: id, **tags})
        return made.info.run_id, True

    def _known(self, names: Any) -> dict[str, set[int]]:
        """The steps that the run has values of, by name."""
        if self._steps is None:
            has = self._client.get_run(self._run).data.metrics
            history = self._client.get_metric_history
            self._steps = {name: {point.step for point in history(self._run, name)} for name in has}
        return {**self._steps, **{name: set() for name in names if name not in self._steps}}


def _address(uri: str) -> str:
    """A URI, as which MLflow takes a folder, too."""
    return uri if "://" in uri or uri.startswith("databricks") else Path(uri).resolve().as_uri()


def _shown(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:_LONGEST]
