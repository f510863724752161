"""Loading TensorFlow without its start-up noise."""

import faulthandler
import gc
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from kdrun.errors import KdrunError, text
from kdrun.runtime import terminal
from kdrun.runtime.cluster import Cluster

# what every start of TensorFlow says, on a machine with or without a GPU; other lines are shown
_NOISE = re.compile(
    r"^I\d{4} |^WARNING: All log messages before absl|rebuild TensorFlow with|failed call to cuInit|^/job:\w+/|^\s*$"
)
_JOINING = 60.0  # seconds that TensorFlow has to join a cluster whose tasks are all there


def threads_of_its_own() -> int:
    """How many threads TensorFlow gives an operation by itself: what the environment says, else as many as cores."""
    set_outside = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    return int(set_outside) if set_outside.isdecimal() and int(set_outside) else len(os.sched_getaffinity(0))


def threads_in_use() -> int | None:
    """How many threads an operation has in this process; None while TensorFlow is not loaded."""
    return _loaded_with[0].threads if _loaded_with else None


def load_tensorflow(
    wanted: int | None = None,
    devices: int = 1,
    cluster: Cluster | None = None,
    meet: Callable[[], None] = lambda: None,
) -> None:
    """Import TensorFlow and look for devices; its warnings and errors are shown, its greetings are not.

    `wanted` is how many threads an operation has (None: as many as TensorFlow takes), which is part of what makes bits,
    and `devices` how many a job is spread over, which a CPU is made into where there are no GPUs; both stay as they are
    for the life of a process. The tasks of a `cluster` wait for each other in here: in `meet`, when each has it, and
    then inside of TensorFlow. Raises KdrunError where it has others already, or where there are not so many GPUs.
    """
    wanted = wanted or threads_of_its_own()
    if _loaded_with:
        loaded = _loaded_with[0]
        if loaded.threads != wanted or devices not in (1, loaded.devices):
            raise KdrunError(
                f"threads: {wanted}, devices: {devices} are wanted here, and TensorFlow has {loaded.threads} and "
                f"{loaded.devices} in this process already. Run it in a process of its own."
            )
        return
    gc.disable()  # TensorFlow's million objects stay: looking through them again and again costs a second
    try:
        with terminal.doing("loading TensorFlow"), quiet():
            import tensorflow as tf

            if wanted != threads_of_its_own():
                _set_threads(tf, wanted)
            if devices > 1 or cluster:
                _set_devices(tf, devices)
            if cluster:  # before any operation
                meet()
                _strategies[:] = [_of_cluster(tf, cluster)]
            tf.config.list_physical_devices()
            tf.constant(0)  # the devices greet when they are first used
        logging.getLogger("tensorflow").addFilter(_is_news)
        gc.freeze()
        _loaded_with[:] = [_Loaded(wanted, devices)]
    finally:
        gc.enable()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a warning is one: each job of a process has functions of its own, of which none is traced again."""
    return "triggered tf.function retracing" not in str(record.msg)


class _Loaded(NamedTuple):
    threads: int
    devices: int


_loaded_with: list[_Loaded] = []  # empty before
_strategies: list[Any] = []  # of the cluster that this process is in


def cluster_strategy() -> Any:
    """The tf.distribute.MultiWorkerMirroredStrategy of the cluster that this process is in, where it is in one."""
    return _strategies[0]


def _of_cluster(tf, cluster: Cluster) -> Any:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.task,
        rpc_layer="grpc",
        num_accelerators={"GPU": len(tf.config.get_visible_devices("GPU"))},
    )
    faulthandler.dump_traceback_later(_JOINING, exit=True)  # it lets no other thread of Python's go on meanwhile
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except tf.errors.OpError as error:
        raise KdrunError(
            f"cluster: TensorFlow cannot begin at {cluster.addresses[cluster.task]} ({text(error)}). Is its port taken?"
        ) from error
    finally:
        faulthandler.cancel_dump_traceback_later()


def device_names(count: int) -> list[str | None]:
    """The devices of a job that is spread over so many, as TensorFlow calls them; None is the one that it takes by
    itself."""
    import tensorflow as tf

    if count == 1:
        return [None]
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return [f"{kind}:{number}" for number in range(count)]


def is_gpu(device: str | None) -> bool:
    """Whether one of `device_names` has a memory of its own."""
    return device is not None and device.startswith("GPU")


def _set_devices(tf, count: int) -> None:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus and len(gpus) < count:
        raise KdrunError(f"devices={count}: this machine has {len(gpus)} GPUs. Give devices={len(gpus)} or fewer.")
    tf.config.set_visible_devices(gpus[:count], "GPU")
    if not gpus and count > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, parts)
        # one at least for each: they wait for each other, and launchers leave a job a single one
        set_outside = os.environ.get("TF_NUM_INTEROP_THREADS", "")
        threads = max(count, int(set_outside) if set_outside.isdecimal() else 0)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def _set_threads(tf, wanted: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(wanted)
    except RuntimeError as error:  # it is in use: a file of the user's own computes something when it is run
        raise KdrunError(
            f"threads={wanted} comes too late: a file that plugins names has used TensorFlow already. Let it compute "
            "in its functions alone."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """While inside, an import of TensorFlow says nothing that every start says, and has tf_keras behind tf.keras."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # Keras 3 is then never imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # later, too: warnings and errors alone
    # TensorFlow's C++ code writes to file descriptor 2, past sys.stderr
    sys.stderr.flush()
    with open(os.memfd_create("said"), "w+b") as said:  # in memory: no disk has to have room for it
        terminal = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines():
                if not _NOISE.search(line):
                    print(line, file=sys.stderr)
