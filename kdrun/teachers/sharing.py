"""A teacher's answers, asked for by all devices of a job and all machines of a cluster: they take turns, a batch each.

The chief puts them into its cache; who has another cache folder gets them from there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kdrun.runtime.rendezvous import Chief, Follower
from kdrun.teachers import cache

_AT_ONCE = 1 << 24  # numbers in a message
Turns = Callable[[int, int], Iterator[np.ndarray]]


def in_turns(own: Sequence[Turns], member: Chief | Follower | None) -> Iterator[np.ndarray]:
    """Blocks of answers in order; `own`, of this machine's devices, are (number, count) -> every count-th block.

    What a cluster's other tasks have goes to the chief, and comes out there alone.
    """
    first, count = 0, len(own)
    if member:
        first, count = member.cluster.task * len(own), member.cluster.size * len(own)
    turns = [blocks(number, count) for number, blocks in enumerate(own, start=first)]
    here = [_ahead(blocks) for blocks in turns] if len(turns) > 1 else turns
    if isinstance(member, Follower):
        for block in _taken_in_turns(here):
            member.say([block])
        member.say()
        return
    streams = list(here)
    if member:
        for task in member.others:
            streams += [_of_task(member, task)] * len(own)
    yield from _taken_in_turns(streams)
    for stream in streams:  # all have ended, and some have not said so yet
        next(stream, None)


def is_short(here: bool, member: Chief | Follower | None) -> bool:
    """Whether there is too little room, `here` or, in a cluster, where the chief is, whose word counts."""
    if isinstance(member, Chief):
        member.tell(short=here)
    elif member:
        return (member.told() or {})["short"]
    return here


def obtain(
    folder: Path, key: Mapping, shapes: cache.Shapes, ask: cache.Ask, member: Chief | Follower | None
) -> dict[str, np.ndarray]:
    """What cache.obtain gives, on each task of a cluster; the chief's word counts for whether it has to be asked for.

    Raises what cache.obtain raises; on the others OSError where the chief's could not be kept.
    """
    if member is None:
        return cache.obtain(folder, key, shapes, ask)
    if isinstance(member, Follower):
        return _obtained_from_chief(folder, key, shapes, ask, member)

    def asked(split: str) -> Iterator[np.ndarray]:
        member.tell(ask=split)  # when the first block is wanted, and its room taken
        yield from ask(split)

    try:
        found = cache.obtain(folder, key, shapes, asked)
    except OSError:
        member.tell(kept=False)
        raise
    member.tell(kept=True)
    for task in member.others:
        if member.heard(task)["wanted"]:
            for array in found.values():
                values = array.reshape(-1)
                for start in range(0, len(values), _AT_ONCE):
                    member.say(task, [values[start : start + _AT_ONCE]])
                member.say(task)
    return found


def _obtained_from_chief(
    folder: Path, key: Mapping, shapes: cache.Shapes, ask: cache.Ask, follower: Follower
) -> dict[str, np.ndarray]:
    while "kept" not in (message := follower.told() or {}):
        for _ in ask(message["ask"]):
            pass
    if not message["kept"]:
        raise OSError(0, "the chief has no room for them")
    wanted = not cache.is_good(folder, key, shapes)
    follower.say(wanted=wanted)
    coming = [_of_chief(follower) for _ in shapes] if wanted else []
    left = iter(coming)
    try:
        return cache.obtain(folder, key, shapes, lambda split: next(left))
    finally:
        for blocks in coming:  # what somebody else has put there meanwhile, or there was no room for
            for _ in blocks:
                pass


def _of_chief(follower: Follower) -> Iterator[np.ndarray]:
    while arrays := (follower.told() or {})["arrays"]:
        yield arrays[0]


def _ahead(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same, with the next one computed in the background."""
    with ThreadPoolExecutor(1) as device:
        coming = device.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = device.submit(next, blocks, None)
            yield block


def _of_task(chief: Chief, task: int) -> Iterator[np.ndarray]:
    while arrays := chief.heard(task, with_arrays=True)["arrays"]:
        yield arrays[0]


def _taken_in_turns(streams: Sequence[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """One of each, again and again; where one has ended, so have all."""
    while True:
        for stream in streams:
            block = next(stream, None)
            if block is None:
                return
            yield block
