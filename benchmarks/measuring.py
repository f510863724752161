"""What the tools compared have in common: the data, the hyper-parameters, and a clock."""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

TEMPERATURE, ALPHA, LEARNING_RATE = 10.0, 0.9, 1e-3
GROWTH = {"teacher": 32, "student": 12}  # of the notebook's DenseNets
UNITS = {"teacher": (1200, 1200), "student": (800, 800)}  # of the MLPs of Hinton, Vinyals, Dean 2015, section 3
PHASES = ("teacher", "student", "distill")
SPAWNED = "BENCHMARK_SPAWNED"  # the environment variable with the time at which a process was started


def arguments() -> argparse.Namespace:
    """What a tool's process is asked to measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("net", choices=("densenet", "mlp"))
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--bfloat16", action="store_true", help="PyTorch: autocast, and its fused Adam")
    parser.add_argument("--compile", action="store_true", help="PyTorch: torch.compile")
    return parser.parse_args()


def steps_per_execution(asked: argparse.Namespace) -> int:
    """The notebook's 16, except where 16 steps take a minute and would hide when the first one was finished."""
    return 16 if asked.steps >= 48 else 1


def roles(phase: str) -> tuple[str, ...]:
    """The nets that a phase needs."""
    return ("teacher", "student") if phase == "distill" else (phase,)


def training_images() -> tuple[np.ndarray, np.ndarray]:
    """MNIST's training split as the notebook has it: uint8 [50000, 28, 28], and labels."""
    path = Path(__file__).resolve().parents[1] / "kdrun" / "data" / "mnist.npz"
    with np.load(path, allow_pickle=False) as mnist:
        return mnist["x_train"][10_000:], mnist["y_train"][10_000:]


class Clock:
    """Notes when steps were finished."""

    def __init__(self, batch_size: int):
        self._batch_size, self._ended = batch_size, []

    def finished(self, steps: int = 1) -> None:
        """So many more steps are finished now."""
        self._ended.append((time.time(), steps))

    def report(self) -> None:
        """Print seconds from the process's start to the first finished step, and images/s after the first call."""
        first, last = self._ended[0][0], self._ended[-1][0]
        later = sum(steps for _, steps in self._ended[1:])
        measured = {
            "seconds_to_first_step": first - float(os.environ.get(SPAWNED, "nan")),
            "images_per_second": later * self._batch_size / (last - first),
        }
        print(json.dumps(measured))
