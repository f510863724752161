"""What a network says of images that nobody has labelled."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from kdrun.config import rules
from kdrun.data import inputs as images
from kdrun.data.inputs import Block
from kdrun.errors import InputError, KdrunError
from kdrun.registry import register
from kdrun.runs.recording import recording
from kdrun.stages import checks
from kdrun.stages.checks import OF_RUN
from kdrun.storage import files
from kdrun.teachers import predictor

log = logging.getLogger(__name__)

_FEW = 10  # images whose classes are said on the terminal, too
_NAMED = 3  # pictures that could not be read, in the line that a command ends with


class Keys(TypedDict):
    """What is written of each image."""

    top: rules.Count


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError for a run whose network cannot be asked, and where there are no images."""
    given = [word for word in overrides if word.lstrip("+~").startswith("data.")]
    if config["data"]["name"] != OF_RUN or given:
        said = given[0] if given else f"data={config['data']['name']}"
        raise InputError(f"{said}: stage=predict is asked about images without labels. Write inputs=FOLDER instead.")
    checks.taken(config["run"])
    record = predictor.check(Path(config["run"]))
    images.check(config["inputs"], images.decoding_of(record))


@register("stage", "predict", check=check)
def predict(config: Mapping, run_dir: Path, *, run: rules.RunDirectory, inputs: rules.Path, predict: Keys) -> dict:
    """Say what is on `inputs`, by the best weights of `run`; writes predictions.csv and predictions.jsonl.

    Pictures that cannot be read are named there, and the others done; then KdrunError is raised.
    """
    from kdrun.reports import predicted

    network = predictor.Predictor(Path(run))
    asked_about = images.opened(inputs, network.decoding)

    def said() -> Iterator[tuple[Block, np.ndarray]]:
        for block in images.blocks(asked_about, network.at_once):
            yield block, network(block.images)

    with recording(run_dir, config, predicted=run, class_names=network.class_names) as record:
        told = predicted.write(said(), network.class_names, predict["top"], run_dir)
        record["files"] = {name: files.sha256(run_dir / name) for name in (predicted.CSV, predicted.LINES)}
        record["results"] = {"images": told.images, "broken": told.broken, "counts": told.counts}
        for line in told.lines if told.images <= _FEW else ():
            log.info("%s", line)
        log.info("predict: %s images by %s -> %s", f"{told.images:,}", run, run_dir / predicted.CSV)
        if told.broken:
            more = told.broken - _NAMED
            raise KdrunError(
                f"{told.broken:,} of {told.images:,} pictures could not be read: {'; '.join(told.why[:_NAMED])}"
                f"{f' and {more:,} more' if more > 0 else ''}. The others are in {run_dir / predicted.CSV}."
            )
        return record["results"]
