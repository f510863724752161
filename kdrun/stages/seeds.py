"""Seeds of a study: what one command trains over several of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kdrun.config.schema import overlaid
from kdrun.errors import InputError
from kdrun.teachers import sources


def of(config: Mapping) -> list[int]:
    """The seeds, in order: `seeds` of them from `seed` on, or those that it lists; null: `seed` alone."""
    given = config["seeds"]
    if given is None:
        return [config["seed"]]
    return given if isinstance(given, list) else [config["seed"] + number for number in range(given)]


def of_teachers(config: Mapping) -> list[int]:
    """The teachers' seeds: `teachers` of them, or one for each student's seed, from `teacher.seed` on."""
    count = {None: 1, "seeds": len(of(config))}.get(config["teachers"], config["teachers"])
    return [config["teacher"]["seed"] + number for number in range(count)]


class Student(NamedTuple):
    """A student that is to be trained: its name, its config, and which of the seeds it has, from 0."""

    name: str
    config: dict
    number: int


def students(name: str, config: Mapping) -> list[Student]:
    """A student of each seed; the first has the plain name."""
    return [
        Student(f"{name}, seed {seed}" if number else name, {**config, "seed": seed}, number)
        for number, seed in enumerate(of(config))
    ]


def distilled(config: Mapping, arms: Sequence[str]) -> list[Student]:
    """The distilled students and the controls; all seeds of one after each other."""
    kinds = {"distill": config} if "distill" in arms else {}
    kinds |= {name: overlaid(config, control) for name, control in config["controls"].items()}
    return [student for name, kind in kinds.items() for student in students(name, kind)]


def check(config: Mapping) -> None:
    """Raises InputError for seeds that there cannot be, and for teachers that are given and to be trained at once."""
    if max(*of(config), *of_teachers(config)) >= 2**31:
        raise InputError(f"seeds={config['seeds']}: seeds must be below {2**31}. Set seed to a smaller one.")
    if config["teachers"] is not None and sources.are_given(config):
        raise InputError(
            f"teachers={config['teachers']} are to be trained, and teacher.run, teacher.logits or teacher.file gives "
            "some. Leave one of them out."
        )
