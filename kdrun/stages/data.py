"""What there is to learn from: counts, what hurts, and a sheet of pictures, before anything is trained."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdrun.data import datasets, transfer
from kdrun.registry import register
from kdrun.runs.recording import recording
from kdrun.stages import checks
from kdrun.storage import files

log = logging.getLogger(__name__)


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where the data cannot be used."""
    checks.students_data(config)


@register("stage", "data", check=check, role="student", needs_tensorflow=False)
def look(config: Mapping, run_dir: Path) -> dict:
    """Say how many images each class has in each split, and what hurts; draw some of each class.

    Writes contact_sheet.png, which TensorBoard shows, too.
    """
    from kdrun.data import report
    from kdrun.reports import contact_sheet, tables
    from kdrun.tracking import events, links

    dataset = datasets.load(config["data"], config["seed"])
    with recording(run_dir, config, dataset_sha256=dataset.sha256) as record:
        counts, said = report.counts(dataset), report.findings(config["data"])
        tables.classes(dataset.class_names, counts)
        figure = contact_sheet.draw(dataset)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        sheet = run_dir / "contact_sheet.png"
        files.write_bytes(sheet, buffer.getbuffer())
        events.write(run_dir / links.EVENTS, {"contact_sheet": sheet})
        links.add(config["outputs"], run_dir, f"data {run_dir.name}")
        height, width, channels = dataset.train.images.shape[1:]
        log.info(
            "data: %dx%d pixels, %d channel(s), %d classes, sha256 %s",
            *(height, width, channels, dataset.num_classes, dataset.sha256[:12]),
        )
        if unlabelled := transfer.load(config["data"]):
            log.info("data: %s images without labels in %s", f"{len(unlabelled.images):,}", config["data"]["transfer"])
        log.info("data: %s", f"{len(said)} things to look at, above" if said else "nothing to complain about")
        log.info("data: some of each class are in %s", sheet)
        record["results"] = {"classes": list(dataset.class_names), "counts": counts, "findings": said}
        return record["results"]
