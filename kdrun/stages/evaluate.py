"""A run's test metrics, computed again from its weights."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kdrun import runs
from kdrun.data import datasets
from kdrun.errors import KdrunError
from kdrun.recording import recording
from kdrun.registry import register
from kdrun.teachers import checkpoint
from kdrun.training import metrics, precision
from kdrun.training.inference import compiled_inference, logits

log = logging.getLogger(__name__)


@register("stage", "evaluate")
def evaluate(config: Mapping, run_dir: Path) -> dict:
    """Rebuild the network of `run`, load its best and its last weights, and measure them on the test set.

    Raises KdrunError when a metric differs from what the run's run.json says.
    """
    evaluated = Path(config["run"])
    theirs = runs.read(evaluated)
    with recording(run_dir, config, evaluated=str(evaluated)) as record:
        damaged = runs.damaged(evaluated, theirs)
        if damaged:
            raise KdrunError(f"{evaluated}: {', '.join(damaged)} is not what run.json says it was. Files were changed.")
        precision.prepare_machine()
        dataset = datasets.load(theirs["config"]["data"])
        batch_size, image_size = theirs["config"]["evaluation_batch_size"], theirs["image_shape"][0]
        record["results"] = {}
        for name in ("best", "last"):
            model = checkpoint.load(evaluated, theirs["precision"], name)
            infer = compiled_inference(model, dataset.test.images.shape[1:], batch_size, image_size)
            record["results"][name] = metrics.evaluate(logits(infer, dataset.test.images), dataset.test.labels)
        for name, found in record["results"].items():
            said = theirs["results"]["test"][name]
            different = [key for key in found if not np.isclose(found[key], said[key], rtol=1e-5, atol=1e-7)]
            for key in different:
                log.info("evaluate: %s weights, %s is %s, run.json says %s", name, key, found[key], said[key])
            if different:
                raise KdrunError(
                    f"{evaluated}: the {name} weights do not give the test metrics of run.json "
                    f"({', '.join(different)}). Record or data were changed, or this machine computes otherwise."
                )
            log.info(
                "evaluate: %s weights, accuracy %.4f, cross-entropy %.4f, as run.json says",
                name,
                found["accuracy"],
                found["cross_entropy"],
            )
        return record["results"]
