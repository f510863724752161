"""Overlap of a student's validation images with what its teachers have trained on, which makes it no fair judge.

Of one data set, as positions among its training images: what a run trains on is a range of them. The test images are
never trained on.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

from kdrun.config.schema import for_role
from kdrun.data import datasets
from kdrun.errors import InputError

log = logging.getLogger(__name__)

Range = tuple[int, int | None]  # from a position to below another; None: to the end


def trained_on(record: Mapping) -> list[Range]:
    """What the network of a run has learned from, those who taught it, and the one that it began as."""
    parents = [*record.get("teachers", ()), *(record[key] for key in ("adjusted", "initial_weights") if key in record)]
    of_parents = [tuple(each) for parent in parents for each in parent.get("trained_on", ())]
    data = record["config"]["data"]
    held_out = record.get("validation_images", data["validation_size"])  # before it was recorded, it was a number
    return sorted({_range(data, held_out), *of_parents}, key=str)


def configured(config: Mapping) -> list[Range]:
    """What the configured teacher is to learn from."""
    data = for_role(config, "teacher")["data"]
    return [_range(data, datasets.validation_count(data))]


def count(config: Mapping, learned_from: Iterable[Range]) -> int:
    """How many of the student's validation images are in these ranges; 0 where it is trained on them itself."""
    data = for_role(config, "student")["data"]
    if data["train_on_validation"]:
        return 0
    held_out = datasets.validation_count(data)
    seen = {place for first, end in learned_from for place in range(first, held_out if end is None else end)}
    return sum(place < held_out for place in seen)


def found(config: Mapping, who: str, parents: Iterable[Mapping]) -> dict[str, int]:
    """What a run's record says of the student's validation images that its parents, as a record has them, have trained
    on; nothing where there are none. It is logged, of `who`."""
    seen = count(config, [each for parent in parents for each in parent.get("trained_on", ())])
    if seen:
        log.warning("%s: %s has trained on %s of the student's validation images", config["stage"], who, f"{seen:,}")
    return {"overlap": seen} if seen else {}


def check(config: Mapping, learned_from: Sequence[Range], teacher: str) -> None:
    """Raises InputError where a teacher has trained on validation images, unless that is allowed."""
    if config["teacher"]["overlap"] == "refuse" and (seen := count(config, learned_from)):
        held_out = datasets.validation_count(config["data"])
        raise InputError(
            f"{teacher} has trained on {seen:,} of the {held_out:,} images that validate the student, so that "
            "validation would flatter. Give a teacher with the same data.validation_size and without "
            "teacher.train_on_validation, or set teacher.overlap=allow: the result then says so."
        )


def _range(data: Mapping, held_out: int) -> Range:
    used = data.get("train_size")
    return 0 if data.get("train_on_validation") else held_out, None if used is None else held_out + used
