"""Names that a config may use -> entries that carry their facts.

`@register(kind, name, **facts)` above a function makes an entry. Each package lists the names that it brings in a
table, name -> module, so that only the module of a name that is asked for is imported. A user's own file registers in
the same way (see kdrun.plugins). No entry's module of kdrun's may import TensorFlow at its top.
"""

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from kdrun.errors import InputError, KdrunError

Keys = Mapping[str, Any]  # what a config has under a name, the name left out


@dataclass(frozen=True)
class Entry:
    """What a name stands for: a function, and by its parameters the keys that a config may give it.

    The first `given` parameters are what kdrun itself gives it.
    """

    given: ClassVar[int] = 0
    name: str
    function: Callable

    def call(self, *given: Any, **keys: Any) -> Any:
        """What the function returns. Raises what `explained` does."""
        with self.explained():
            return self.function(*given, **keys)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """While inside, an error in a file of the user's own is an InputError that says where it is."""
        try:
            yield
        except KdrunError:
            raise
        except Exception as error:  # whatever somebody's own code raises
            if self.is_shipped:
                raise
            line, text = place_and_text(error, self.file)
            raise InputError(f"{self.name} ({self.file}{line}): {text}") from error

    @property
    def file(self) -> Path:
        """The file that it comes from."""
        return Path(inspect.getfile(inspect.unwrap(self.function)))

    @property
    def is_shipped(self) -> bool:
        """Whether it comes with kdrun."""
        return self.file.resolve().is_relative_to(_PACKAGE)


@dataclass(frozen=True)
class Model(Entry):
    """A net: `(inputs, num_classes, *, its keys) -> logits`.

    `features` are the layers that objectives may name, in order: name -> the layer whose output it is; `maps` which of
    them are maps (None: not said), the others being vectors; `smallest_image_size` is in pixels a side. Each is a value
    or a function of the net's keys. Up to `one_thread_up_to` pixels a side its operations are too small to be shared
    among threads (measured; see docs/performance.md).

    `normalises`: it does itself what is to be done to images of values from 0 to 1. `check(keys)` raises InputError,
    before anything is made, for keys that do not go together or name what is not there. `files` are those keys that
    name files, of which a run's identity has the sha256. `initialise(network, keys)` gives a network that is to be
    trained other weights than those that were drawn.
    """

    given = 2
    features: Mapping[str, str] | Callable[[Keys], Mapping[str, str]] = lambda keys: {}
    maps: Any = None
    smallest_image_size: int | Callable[[Keys], int] = 1
    one_thread_up_to: int = 0
    normalises: bool = False
    check: Callable[[Keys], None] = lambda keys: None
    files: tuple[str, ...] = ()
    initialise: Callable[[Any, Keys], None] = lambda network, keys: None


@dataclass(frozen=True)
class Objective(Entry):
    """What a student is to match: `(batch, *, its keys) -> float32 scalar`; see kdrun.objectives.batch.

    `compares`: maps where its layers must be maps, one_kind where both sides' must be of one kind.
    """

    given = 1
    needs_teacher: bool = True
    needs_labels: bool = False
    min_classes: int = 2
    compares: str = ""


@dataclass(frozen=True)
class DataSource(Entry):
    """Images with labels: `(*, keys of its group) -> kdrun.data.source.Source`."""


@dataclass(frozen=True)
class Optimizer(Entry):
    """`(*, its keys) -> a tf_keras optimizer` whose update is elementwise.

    `compiles(keys)`: XLA can compile the update, and makes it faster.
    """

    compiles: Callable[[Keys], bool] = lambda keys: False


@dataclass(frozen=True)
class Tracker(Entry):
    """`(*, its keys) -> kdrun.tracking.tracker.Tracker`, which is told of a training run.

    `check(keys)` raises InputError, before anything is made, where it cannot be.
    """

    check: Callable[[Keys], None] = lambda keys: None


@dataclass(frozen=True)
class Stage(Entry):
    """A verb: `(config, run_dir, *, its own keys) -> results`.

    `check(config, overrides)` raises InputError before anything is made. `identity(config)` is all that the result
    depends on, of a stage whose runs can be gone on with, and found again. `role` is whose images it sees, teacher or
    student; `trains` the part of the config with its epochs, where it trains one network. `needs_tensorflow` may be a
    function of the config. `takes_teachers`: it needs teachers that are there. `is_part`: other stages run it, not the
    command line. `has_parts`: it runs other stages, beside each other where there are workers.
    `takes_seeds`: it trains over several seeds; `arm_of` is a stage that does so for this one. `exports`: it can make
    files of networks; `exports_network`: that is what it does, and its results are of one.
    """

    given = 2
    check: Callable[[Any, Any], None] = lambda config, overrides: None
    identity: Callable[[Any], dict] | None = None
    role: str | None = None
    trains: str | None = None
    leaves_network: bool = False
    needs_tensorflow: bool | Callable[[Any], bool] = True
    takes_teachers: bool = False
    is_part: bool = False
    has_parts: bool = False
    arm_of: str | None = None
    takes_seeds: bool = False
    exports: bool = False
    exports_network: bool = False


def place_and_text(error: Exception, file: Path) -> tuple[str, str]:
    """Of an error: the line of a file in which it came, as `, line 7`, where it did; its type and text, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file.resolve()]
    text = " ".join(str(error).split()) or "no more is said"
    return f", line {lines[-1]}" if lines else "", f"{type(error).__name__}: {text}"


KINDS: dict[str, tuple[type[Entry], str]] = {
    "model": (Model, "kdrun.models"),
    "objective": (Objective, "kdrun.objectives"),
    "data": (DataSource, "kdrun.data"),
    "optimizer": (Optimizer, "kdrun.optimizers"),
    "tracker": (Tracker, "kdrun.tracking"),
    "stage": (Stage, "kdrun.stages"),
}
_PACKAGE = Path(__file__).parent.resolve()
_entries: dict[tuple[str, str], Entry] = {}


def register(kind: str, name: str, /, **facts: Any) -> Callable[[Callable], Callable]:
    """Decorator: make a function what `name` stands for among those of a `kind`; `facts` are fields of its entry.

    Raises InputError for a kind or a fact that there is not, and for a name that is taken.
    """
    if kind not in KINDS:
        raise InputError(f'register("{kind}", "{name}"): there is no such kind. Allowed: {", ".join(KINDS)}.')
    type_of_entry, _ = KINDS[kind]
    allowed = [field.name for field in fields(type_of_entry)][2:]
    if unknown := facts.keys() - set(allowed):
        raise InputError(
            f'register("{kind}", "{name}", {min(unknown)}=...): a {kind} has no such fact. Allowed: '
            f"{', '.join(allowed) or 'none'}."
        )

    def enter(function: Callable) -> Callable:
        taken = _entries.get((kind, name))
        if taken is None and name in _table(kind) and not Entry(name, function).is_shipped:
            taken = get(kind, name)
        if taken:
            whose = "kdrun's own" if taken.is_shipped else f"registered by {taken.file}"
            raise InputError(f"the {kind} {name} is {whose} already. Choose another name.")
        _entries[kind, name] = type_of_entry(name, function, **facts)
        return function

    return enter


def get(kind: str, name: str) -> Any:
    """The entry of a name. Raises InputError for a name that there is not, with the nearest one."""
    if (kind, name) not in _entries and name in _table(kind):
        import_module(_table(kind)[name], KINDS[kind][1])
    if (kind, name) not in _entries:
        allowed = names(kind)
        near = get_close_matches(str(name), allowed, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(
            f"there is no {kind} {name}.{hint} Allowed: {', '.join(allowed)}; of a file of your own, which "
            "plugins=[FILE] names."
        )
    return _entries[kind, name]


def has(kind: str, name: str) -> bool:
    """Whether a name stands for something."""
    return (kind, name) in _entries or name in _table(kind)


def names(kind: str) -> list[str]:
    """All names of a kind."""
    return sorted({*_table(kind), *(name for of_kind, name in _entries if of_kind == kind)})


def plugged(kind: str) -> list[str]:
    """The names of a kind that are the user's own."""
    return sorted(name for (of_kind, name), entry in _entries.items() if of_kind == kind and not entry.is_shipped)


def registered_by(file: Path) -> Iterator[tuple[str, Entry]]:
    """Kind and entry of what a file has registered."""
    for (kind, _), entry in list(_entries.items()):
        if entry.file.resolve() == file.resolve():
            yield kind, entry


def forget(file: Path) -> None:
    """Take out what a file has registered."""
    for kind, entry in registered_by(file):
        del _entries[kind, entry.name]


def _table(kind: str) -> Mapping[str, str]:
    return import_module(KINDS[kind][1]).ENTRIES
