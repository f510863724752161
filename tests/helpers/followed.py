"""A training run as trackers are told of it, without a network that is trained; and servers that do not work."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from kdrun.tracking.tracker import Run, Trackers

STEPS = 11
LATEST = {"loss": 0.0, "accuracy": 0.0}


def facts(folder: Path) -> Run:
    started = datetime(2026, 1, 1, tzinfo=UTC)
    return Run(folder / "outputs/student/run", "student", started, 3, STEPS, 7, {"outputs": f"{folder}/outputs"}, {})


def an_epoch(trackers: Trackers, number: int) -> None:
    trackers.steps(LATEST, STEPS)
    trackers.epoch(number, {"loss": 1 / number}, {"accuracy": 0.5, "errors": 3}, 1, None)


def finished(trackers: Trackers) -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    trackers.end({"best": {"accuracy": 0.8}, "last": {"accuracy": 0.7}}, {"confusion_matrix": pixels})


@contextmanager
def serving(does: Callable) -> Iterator[tuple[str, list]]:
    """The address of a server that does with each connection what it is given, and the connections that there were."""
    asked: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with suppress(OSError):  # it is closed
                while True:
                    connection, _ = listening.accept()
                    asked.append(connection)
                    does(connection, listening)

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
    for connection in asked:
        connection.close()


def wait_for(asked: list) -> None:
    while not asked:
        time.sleep(0.05)


def hangs(connection, listening):
    """It takes what is asked, and never answers."""
