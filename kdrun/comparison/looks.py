"""Comparisons that were made before: seeds that are added until a test says yes make it say yes too often."""

from pathlib import Path

from kdrun.errors import InputError
from kdrun.runs import record as runs
from kdrun.storage import forms

_STAGES = ("compare", "pipeline")  # that compare
_STUDY = {"study": str, "chosen": str, "seeds": [forms.whole]}


def earlier(outputs: str | Path, but: Path) -> list[dict]:
    """The studies of the completed comparisons below `outputs`, but for the run that asks: study, chosen, seeds.

    What is damaged, or was made before comparisons had studies, is passed over.
    """
    found = []
    for path in sorted(path for stage in _STAGES for path in Path(outputs, stage).glob("*/run.json")):
        if path.parent.resolve() == but.resolve():
            continue
        try:
            record = runs.read(path.parent)
        except InputError:
            continue
        studies = record.get("results", {}).get("studies", []) if record["status"] == "completed" else []
        found += [each for each in studies if forms.problem(each, _STUDY) is None] if isinstance(studies, list) else []
    return found
