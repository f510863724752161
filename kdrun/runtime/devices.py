"""Which devices a job has: how many of its own, and one GPU a job where several processes share a machine. No
TensorFlow in here."""

import os
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [gpu.strip() for gpu in said.split(",") if gpu.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(_DRIVER.glob("*"))))]


def count(asked: int | str) -> int:
    """How many devices a job has that asks for so many; `auto`: the GPUs that are there, else one for each core."""
    if asked != "auto":
        return int(asked)
    return len(visible()) or len(os.sched_getaffinity(0))


def share(number: int, size: int) -> list[str]:
    """The GPUs of a process, of several of which each has so many: the next ones for each process's number. None where
    there are no GPUs."""
    gpus = visible()
    return [gpus[(number * size + each) % len(gpus)] for each in range(min(size, len(gpus)))]


def pin(number: int, size: int = 1) -> None:
    """Leave so many GPUs to this process, as `share` has it. Must come before TensorFlow is loaded.

    Nothing changes where there are fewer than two: then there is nothing to choose, or the launcher has chosen.
    """
    if len(visible()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share(number, size))
