"""The tasks of a cluster meet, and stay in touch beside tf.distribute: the chief says what is done, and who is gone is
known at once.

The chief, task 0, listens at its own address until all others have come, and then leaves the port to TensorFlow. No
TensorFlow in here.
"""

import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import numpy as np

from kdrun.errors import InputError, KdrunError, Lost
from kdrun.runtime import signals
from kdrun.runtime.cluster import Cluster
from kdrun.runtime.connection import Connection

_PATIENCE = 25.0  # seconds that TensorFlow has to notice by itself that a task is gone
_TRY_AGAIN = 0.1  # seconds
_joined: list["Chief | Follower"] = []


def current() -> "Chief | Follower | None":
    """What this process is in a cluster; None outside of one."""
    return _joined[-1] if _joined else None


def follower() -> "Follower | None":
    """What this process is in a cluster where it is not the chief: it writes nothing but its log."""
    found = current()
    return found if isinstance(found, Follower) else None


@contextmanager
def joined(cluster: Cluster, facts: Mapping[str, Any], timeout: float) -> Iterator["Chief | Follower"]:
    """While inside, this process is one of a cluster, all of whose tasks are there and have equal `facts`; the chief
    tells the others how it ended.

    Raises InputError for facts that differ, and for tasks that do not come in `timeout` seconds.
    """
    with ExitStack() as closing:
        meet = _as_chief if cluster.task == 0 else _as_follower
        member = meet(cluster, time.monotonic() + timeout, closing)
        _joined.append(member)
        try:
            member.agree(facts, "It is to be the same command, of the same kdrun, on the same data")
            yield member
            member.end(None)
        except BaseException as error:
            member.end(f"{error}" if isinstance(error, KdrunError) else f"{type(error).__name__}: {error}")
            raise
        finally:
            _joined.remove(member)


class Chief:
    """Task 0, in touch with all others."""

    def __init__(self, cluster: Cluster, connections: Mapping[int, Connection]):
        self.cluster = cluster
        self._connections = connections
        self._watch = _Watch(cluster, connections)

    def agree(self, facts: Mapping[str, Any], advice: str) -> None:
        """Raises InputError, here and there, where another task's facts are not equal to these; names the first."""
        problem = None
        for task in self._connections:
            theirs = self.heard(task).get("facts")
            theirs = theirs if isinstance(theirs, dict) else {}
            differing = [key for key in {**facts, **theirs} if facts.get(key) != theirs.get(key)]
            if differing and not problem:
                key = differing[0]
                values = f"{_shown(theirs.get(key))} there, {_shown(facts.get(key))} on {self.cluster.name(0)}"
                more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
                problem = f"cluster: {self.cluster.name(task)} has another {key}: {values}{more}. {advice}."
        self.tell(problem=problem)
        if problem:
            raise InputError(problem)

    def tell(self, payload: Sequence[np.ndarray] = (), **message: Any) -> None:
        """Send all others a message, with arrays behind it. Raises Lost where one is gone."""
        for task in self._connections:
            self.say(task, payload, **message)

    @property
    def others(self) -> list[int]:
        """The other tasks."""
        return list(self._connections)

    def say(self, task: int, payload: Sequence[np.ndarray] = (), **message: Any) -> None:
        """Send one of them a message, with arrays behind it. Raises Lost where it is gone."""
        try:
            self._connections[task].say(message, payload)
        except OSError as error:
            raise self._watch.error(task) from error

    def check(self) -> None:
        """Raise Lost where another task is gone; a signal that it got is as one that came here."""
        for task, connection in self._connections.items():
            while connection.has_more():
                self._next(task)

    def lost(self, said: str) -> Lost:
        """The error of an operation of all that failed, of which TensorFlow `said` this: who is gone."""
        error = self._watch.error(said=said)
        try:
            self.check()
        except Lost as known:
            return known
        return error

    def together(self) -> AbstractContextManager:
        """While inside, TensorFlow waits for the others: see _Watch."""
        return self._watch.together()

    def heard(self, task: int, with_arrays: bool = False) -> dict:
        """The next message of another task's. Raises Lost where it has ended, or is gone."""
        while (message := self._next(task, with_arrays)) is None:
            pass
        return message

    def _next(self, task: int, with_arrays: bool = False) -> dict | None:
        """The next message of another task's; None for a signal, which is noted."""
        try:
            message = self._connections[task].heard(with_arrays)
        except EOFError as error:
            raise self._watch.error(task) from error
        if problem := message.get("problem"):
            raise Lost(f"cluster: {self.cluster.name(task)} has ended. {problem}")
        if number := message.get("signal"):
            signals.ask(int(number))
            return None
        return message

    def end(self, problem: str | None) -> None:
        """Tell the others that all is done, or what it failed at."""
        self._watch.close()
        for connection in self._connections.values():
            with suppress(OSError):
                connection.say({"end": problem})


class Follower:
    """A task other than 0, which does what the chief says."""

    def __init__(self, cluster: Cluster, connection: Connection):
        self.cluster, self.name = cluster, cluster.name(cluster.task)
        self._chief = connection
        self._watch = _Watch(cluster, {0: connection})

    def agree(self, facts: Mapping[str, Any], advice: str) -> None:
        """Raises InputError where this task's facts are not the chief's; see Chief.agree."""
        self.say(facts=facts)
        message = self._told()
        if message and (problem := message.get("problem")):
            raise InputError(problem)

    def say(self, payload: Sequence[np.ndarray] = (), **message: Any) -> None:
        """Send the chief a message, with arrays behind it. Raises Lost where it is gone."""
        try:
            self._chief.say(message, payload)
        except OSError as error:
            raise self._watch.error(0) from error

    def told(self) -> dict | None:
        """The next message of the chief's, with `arrays`; None when all is done. Raises Ended when it has ended for a
        problem, Lost when it is gone. A signal is handed to the chief."""
        while True:
            if number := signals.taken():
                with suppress(OSError):
                    self._chief.say({"signal": number})
            if self._chief.has_more(wait=0.5):
                return self._told()

    def lost(self, said: str) -> KdrunError:
        """The error of an operation of all that failed: the chief knows why, or is gone itself."""
        until = time.monotonic() + _PATIENCE
        try:
            while time.monotonic() < until:
                if self._chief.has_more(wait=1.0):
                    self._told()
        except (Ended, Lost) as error:
            return error
        return self._watch.error(said=said)

    def together(self) -> AbstractContextManager:
        """While inside, TensorFlow waits for the others: see _Watch."""
        return self._watch.together()

    def end(self, problem: str | None) -> None:
        """Tell the chief what this task failed at, if at something."""
        self._watch.close()
        if problem:
            with suppress(OSError):
                self._chief.say({"problem": problem})

    def _told(self) -> dict | None:
        try:
            message = self._chief.heard(with_arrays=True)
        except EOFError as error:
            raise self._watch.error(0) from error
        if problem := message.get("end"):
            raise Ended(f"cluster: the chief has ended. {problem}")
        return None if "end" in message else message


class Ended(KdrunError):
    """The chief of a cluster has ended before all was done."""


class _Watch:
    """Looks in the background whether other tasks are gone. Where TensorFlow waits for them and does not notice, it
    ends the process: states are on the disk."""

    def __init__(self, cluster: Cluster, connections: Mapping[int, Connection]):
        self._cluster, self._connections = cluster, connections
        self._gone: dict[int, float] = {}  # since when
        self._waiting: float | None = None  # since when TensorFlow does
        self._ended = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def gone(self) -> int | None:
        """The first task that is gone; None where all are there."""
        return next(iter(self._gone), None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """While inside, TensorFlow waits for the other tasks."""
        self._waiting = time.monotonic()
        try:
            yield
        finally:
            self._waiting = None

    def error(self, task: int | None = None, said: str = "") -> Lost:
        """The error of a task that is gone: `task`, or the one that is found to be within seconds."""
        until = time.monotonic() + 3.0
        while task is None and time.monotonic() < until:
            task = self.gone()
            time.sleep(_TRY_AGAIN)
        if task is None:
            return Lost(f"cluster: another task, or the network between them, is gone ({said}).")
        return Lost(f"cluster: {self._cluster.name(task)} is gone.")

    def close(self) -> None:
        """Look no more."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(_TRY_AGAIN):
            for task, connection in self._connections.items():
                if task not in self._gone and connection.is_gone():
                    self._gone[task] = time.monotonic()
            waiting = self._waiting
            if self._gone and waiting and time.monotonic() > max(waiting, min(self._gone.values())) + _PATIENCE:
                print(f"kdrun: {self.error()}", file=sys.stderr, flush=True)
                os._exit(Lost.exit_code)


def _as_chief(cluster: Cluster, until: float, closing: ExitStack) -> Chief:
    """Listen until all other tasks have come."""
    port = cluster.addresses[0].rpartition(":")[2]
    connections: dict[int, Connection] = {}
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("", int(port)))
            listening.listen(cluster.size)
        except OSError as error:
            raise InputError(
                f"cluster: {cluster.addresses[0]} cannot be listened at here ({error.strerror}). Is another kdrun "
                "there? Give task 0 another port."
            ) from error
        while len(connections) < cluster.size - 1:
            if time.monotonic() > until:
                missing = [cluster.name(task) for task in range(1, cluster.size) if task not in connections]
                problem = (
                    f"cluster: {', '.join(missing)} did not come. Start the same command there, with its own task, or "
                    "give more seconds to cluster_timeout."
                )
                for connection in connections.values():
                    with suppress(OSError):
                        connection.say({"problem": problem})
                raise InputError(problem)
            if not select.select([listening], [], [], _TRY_AGAIN)[0]:
                continue
            accepted, _ = listening.accept()
            connection = Connection(accepted)
            with suppress(EOFError, OSError):
                task = connection.heard(seconds=2.0).get("task")
                if isinstance(task, int) and 0 < task < cluster.size and task not in connections:
                    connections[task] = connection
                    closing.callback(accepted.close)
                    continue
                connection.say(
                    {"problem": f"cluster: task={task} is there already, or there is none. Give another one."}
                )
            accepted.close()  # a stranger
    return Chief(cluster, dict(sorted(connections.items())))


def _as_follower(cluster: Cluster, until: float, closing: ExitStack) -> Follower:
    """Knock at the chief's until it is there."""
    host, _, port = cluster.addresses[0].rpartition(":")
    _check_is_free(cluster)
    while True:
        try:
            connected = socket.create_connection((host, int(port)), timeout=5.0)
            break
        except OSError as error:
            if time.monotonic() > until:
                raise InputError(
                    f"cluster: {cluster.name(0)} did not answer ({error.strerror or error}). Start the same command "
                    "there, with task=0, or give more seconds to cluster_timeout."
                ) from error
        time.sleep(_TRY_AGAIN)
    closing.callback(connected.close)
    connected.settimeout(None)
    connection = Connection(connected)
    connection.say({"task": cluster.task})
    return Follower(cluster, connection)


def _check_is_free(cluster: Cluster) -> None:
    """Raises InputError where this task's own port, which TensorFlow will want, is taken."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", int(cluster.addresses[cluster.task].rpartition(":")[2])))
        except OSError as error:
            raise InputError(
                f"cluster: {cluster.name(cluster.task)}: the port is taken ({error.strerror}). Give it another one."
            ) from error


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
