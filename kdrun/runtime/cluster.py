"""The machines that share one job: their addresses, and which of them this one is. No TensorFlow in here."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from kdrun.errors import InputError

_ADDRESS = re.compile(r"[\w.-]+:\d{1,5}", re.ASCII)
_HOSTS = re.compile(r"([\w.-]+)(?:\[([\d,-]+)\])?(?:,|$)", re.ASCII)  # of Slurm: node[01-03,7]
_MOST = 1024  # tasks


class Cluster(NamedTuple):
    """The tasks' addresses, HOST:PORT each, in order, and which of them this process is; task 0 is the chief."""

    addresses: tuple[str, ...]
    task: int

    @property
    def size(self) -> int:
        """How many tasks there are."""
        return len(self.addresses)

    def name(self, task: int) -> str:
        """A task, as messages name it."""
        return f"task {task} ({self.addresses[task]})"


def of(config: Mapping) -> Cluster | None:
    """The cluster that a config asks for, or the environment says; None where it asks for none. Raises InputError."""
    asked, task = config["cluster"], config["task"]
    if asked is None:
        if task is not None:
            raise InputError(f"task={task} says which machine of a cluster this is. Add cluster=HOST:PORT,HOST:PORT.")
        return None
    if asked not in ("auto", "slurm"):
        return _checked("cluster", asked.split(","), task, "Add task=0 on the first of them, task=1 on the next one")
    if task is not None:
        raise InputError(f"task={task}: with cluster={asked} the environment says it. Leave task out.")
    if asked == "auto" and "TF_CONFIG" in os.environ:
        return _of_tf_config(os.environ["TF_CONFIG"])
    if "SLURM_JOB_ID" in os.environ:
        return _of_slurm(os.environ)
    wanted = "neither TF_CONFIG nor SLURM_JOB_ID is" if asked == "auto" else "SLURM_JOB_ID is not"
    raise InputError(
        f"cluster={asked}: {wanted} in the environment. Start it with srun, or give cluster=HOST:PORT,HOST:PORT task=K."
    )


def size(config: Mapping) -> int:
    """Over how many machines a config's job is spread, whichever of them this one is."""
    asked = config["cluster"]
    if asked not in (None, "auto", "slurm"):
        return len(asked.split(","))
    found = of({"cluster": asked, "task": None})
    return found.size if found else 1


def _checked(said: str, addresses: list[str], task: Any, advice: str) -> Cluster:
    for address in addresses:
        if not _ADDRESS.fullmatch(address) or not 0 < int(address.rpartition(":")[2]) < 1 << 16:
            raise InputError(f"{said}: {address!a} is no HOST:PORT. Write cluster=HOST:PORT,HOST:PORT.")
    if twice := {address for address in addresses if addresses.count(address) > 1}:
        raise InputError(f"{said}: {min(twice)} is there twice. Each task has an address of its own.")
    if not 2 <= len(addresses) <= _MOST:
        raise InputError(f"{said}: a cluster is of 2 to {_MOST} tasks, got {len(addresses)}. Leave it out for one.")
    if not isinstance(task, int) or not 0 <= task < len(addresses):
        allowed = f"a number from 0 to {len(addresses) - 1}"
        raise InputError(f"{said}: task must be {allowed}, got {json.dumps(task)}. {advice}.")
    return Cluster(tuple(addresses), task)


def _of_tf_config(text: str) -> Cluster:
    """As TensorFlow's own programs are told: {"cluster": {"worker": [...]}, "task": {"type": "worker", "index": 0}}."""
    try:
        found = json.loads(text)
        jobs, task = found["cluster"], found["task"]
        addresses = [*jobs.get("chief", []), *jobs["worker"]]
        index = task["index"] + (len(jobs.get("chief", [])) if task["type"] == "worker" else 0)
        good = task["type"] in ("chief", "worker") and all(isinstance(each, str) for each in addresses)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"TF_CONFIG is not as TensorFlow has it ({error!r:.80}). Unset it, or mend it.") from error
    if not good:
        raise InputError("TF_CONFIG: only chief and worker are known. Unset it, or mend it.")
    return _checked("TF_CONFIG", addresses, index, "Mend it")


def _of_slurm(environment: Mapping[str, str]) -> Cluster:
    """As srun says: one task a node, at a port that the job's number gives."""
    names = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS")
    if missing := [name for name in names if name not in environment]:
        raise InputError(f"cluster=slurm: {missing[0]} is not in the environment. Start kdrun with srun.")
    job, task, nodes, tasks = (environment[name] for name in names)
    hosts = _hosts(nodes)
    if not job.isdecimal() or not task.isdecimal() or tasks != str(len(hosts)):
        raise InputError(
            f"cluster=slurm: {tasks} tasks on {len(hosts)} nodes ({nodes:.80}): there must be one a node. Add "
            "--ntasks-per-node=1 to srun; devices=N is for the GPUs of a node."
        )
    port = 20_000 + int(job) % 10_000
    return _checked("cluster=slurm", [f"{host}:{port}" for host in hosts], int(task), "Start kdrun with srun")


def _hosts(nodes: str) -> list[str]:
    """The hosts of a list as Slurm has it, node[01-03,7],other, in order."""
    hosts, place = list[str](), 0
    while place < len(nodes):
        found = _HOSTS.match(nodes, place)
        if not found:
            raise InputError(f"cluster=slurm: {nodes[:80]!a} is no list of nodes. Give cluster=HOST:PORT,... task=K.")
        name, numbers = found.groups()
        hosts += [name + number for number in _numbers(numbers)] if numbers else [name]
        place = found.end()
    return hosts


def _numbers(ranges: str) -> list[str]:
    found = list[str]()
    for each in ranges.split(","):
        first, _, last = each.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) - int(first) >= _MOST:
            raise InputError(f"cluster=slurm: [{ranges[:80]}] are no numbers of nodes. Give cluster=HOST:PORT,...")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return found
