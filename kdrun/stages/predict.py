"""What a network says of images that nobody has labelled."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from kdrun.config import rules
from kdrun.data import inputs as images
from kdrun.data.inputs import Block
from kdrun.errors import InputError, KdrunError
from kdrun.export import exported
from kdrun.export.facts import SUM
from kdrun.registry import register
from kdrun.runs.recording import recording
from kdrun.stages import checks
from kdrun.stages.checks import OF_RUN
from kdrun.storage import files
from kdrun.teachers import predictor
from kdrun.teachers.predictor import Predictor

log = logging.getLogger(__name__)

_FEW = 10  # images whose classes are said on the terminal, too
_NAMED = 3  # pictures that could not be read, in the line that a command ends with


class Keys(TypedDict):
    """What is written of each image."""

    top: rules.Count


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError for a run, or a file, whose network cannot be asked, and where there are no images."""
    given = [word for word in overrides if word.lstrip("+~").startswith("data.")]
    if config["data"]["name"] != OF_RUN or given:
        said = given[0] if given else f"data={config['data']['name']}"
        raise InputError(f"{said}: stage=predict is asked about images without labels. Write inputs=FOLDER instead.")
    checks.one_network(config["run"], config["file"])
    if config["file"] is not None:
        found = exported.found(config["file"])
        images.check(config["inputs"], found.decoding, found.size)
        return
    checks.taken(config["run"])
    record = predictor.check(Path(config["run"]))
    images.check(config["inputs"], images.decoding_of(record))


@register("stage", "predict", check=check, needs_tensorflow=lambda config: config["file"] is None)
def predict(
    config: Mapping,
    run_dir: Path,
    *,
    run: rules.RunDirectoryOrNone,
    file: rules.PathOrNone,
    inputs: rules.Path,
    predict: Keys,
) -> dict:
    """Say what is on `inputs`, by the best weights of `run`, or by `file`, which stage=export has made; writes
    predictions.csv and predictions.jsonl.

    Pictures that cannot be read are named there, and the others done; then KdrunError is raised.
    """
    from kdrun.reports import predicted

    with _of_run(run) if file is None else _of_file(file, config["threads"]) as (network, facts):
        asked_about = images.opened(inputs, network.decoding, network.size)

        def said() -> Iterator[tuple[Block, np.ndarray]]:
            for block in images.blocks(asked_about, network.at_once):
                yield block, network(block.images)

        with recording(run_dir, config, class_names=network.class_names, **facts) as record:
            told = predicted.write(said(), network.class_names, predict["top"], run_dir)
            record["files"] = {name: files.sha256(run_dir / name) for name in (predicted.CSV, predicted.LINES)}
            record["results"] = {"images": told.images, "broken": told.broken, "counts": told.counts}
            for line in told.lines if told.images <= _FEW else ():
                log.info("%s", line)
            log.info("predict: %s images by %s -> %s", f"{told.images:,}", facts["predicted"], run_dir / predicted.CSV)
            if told.broken:
                more = told.broken - _NAMED
                raise KdrunError(
                    f"{told.broken:,} of {told.images:,} pictures could not be read: {'; '.join(told.why[:_NAMED])}"
                    f"{f' and {more:,} more' if more > 0 else ''}. The others are in {run_dir / predicted.CSV}."
                )
            return record["results"]


@contextmanager
def _of_run(run: str | None) -> Iterator[tuple[Predictor, dict[str, Any]]]:
    """A run's network, and what is recorded of it."""
    assert run is not None  # of both, one is given
    yield predictor.of_run(Path(run)), {"predicted": run}


@contextmanager
def _of_file(file: str, threads: int | str) -> Iterator[tuple[Predictor, dict[str, Any]]]:
    """An exported file's, likewise."""
    found, count = exported.found(file), exported.threads(threads)
    with exported.predictor(found, count) as network:
        yield network, {"predicted": str(found.path), "threads": count, SUM: found.facts[SUM]}
