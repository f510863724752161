"""A command whose job several machines share: that it is the same one on all of them, and where each writes."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from kdrun import stages
from kdrun.cli.resuming import FREE
from kdrun.config.keys import Config
from kdrun.config.schema import flatten
from kdrun.runs import code
from kdrun.runtime import cluster, rendezvous
from kdrun.runtime.rendezvous import Chief, Follower
from kdrun.stages import work

log = logging.getLogger(__name__)

# where things are, which may differ: what they hold is in the identity, and may not
_WHERE = (
    "data.path",
    "data.transfer",
    "teacher.run",
    "teacher.file",
    "teacher.logits",
    "plugins",
    "objective.module",
    "initial_weights",
)


@contextmanager
def joined(config: Config) -> Iterator[Chief | Follower | None]:
    """While inside, this process is one of the config's cluster, whose tasks have all come with the same command; None
    where it asks for none. Raises InputError where they have not."""
    found = cluster.of(config)
    if found is None:
        yield None
        return
    log.info("cluster: %s of %d; waiting for the others", found.name(found.task), found.size)
    with rendezvous.joined(found, _facts(config), config["cluster_timeout"]) as member:
        log.info("cluster: all %d tasks are here", found.size)
        yield member


def tell(chief: Chief, config: Config, run_dir: Path) -> None:
    """Tell the others of a run that begins, or goes on: its name, and an operation's threads, as it began with."""
    chief.tell(run=run_dir.name, threads=work.threads_alone(config, run_dir))


def told(follower: Follower, config: Config) -> tuple[str, int]:
    """What the chief tells: where this task writes its log, and an operation's threads."""
    message = follower.told() or {}
    name = f"{config['stage']}_{message['run']}_task{follower.cluster.task}"
    return str(Path(config["outputs"]) / "workers" / name), message["threads"]


def _facts(config: Config) -> dict:
    """All that is to be the same on all machines: kdrun's code, what a result depends on, and the keys beside that."""
    free = {*FREE, *_WHERE}
    keys = {key: value for key, value in flatten(config) if key not in free and not key.endswith("initial_weights")}
    depends: Mapping = stages.identity(config) or {}
    packages = {f"version of {name}": version(name) for name in ("tensorflow", "tf-keras", "numpy")}
    identity = dict(flatten(depends))  # first, since it is what counts
    return {**identity, **packages, "kdrun's code_sha256": code.of_package(), **(keys | identity)}
