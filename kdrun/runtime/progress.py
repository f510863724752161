"""Progress of this process's training: for its own terminal, or for the process that has it as a worker."""

from collections.abc import Callable, Mapping

_tell: list[Callable[[Mapping], None]] = []


def goes_to(tell: Callable[[Mapping], None]) -> None:
    """From now on, what is told here is handed to `tell`, and no bar is drawn in this process."""
    _tell[:] = [tell]


def is_elsewhere() -> bool:
    """Whether another process shows how far this one is."""
    return bool(_tell)


def tell(**values: str | float) -> None:
    """Say how far a run is: `step` of `steps`, `epoch` of `epochs`, `accuracy`, `images_per_second`; before its first
    step, what it is `doing`."""
    for each in _tell:
        each(values)
