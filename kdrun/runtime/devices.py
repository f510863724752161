"""One GPU a job where several processes share a machine. No TensorFlow in here."""

import os
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [gpu.strip() for gpu in said.split(",") if gpu.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(_DRIVER.glob("*"))))]


def pin(number: int) -> None:
    """Leave one GPU to this process: the next one for each job's number. Must come before TensorFlow is loaded.

    Nothing changes where there are fewer than two: then there is nothing to choose, or the launcher has chosen.
    """
    gpus = visible()
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
