"""Write what pages say of keys and objectives from the code and conf/: python docs/tables.py.

keys.md is all written here, and of objectives.md the table between the two marks; tests/test_docs.py holds both to it.
"""

import inspect
import re
import types
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import yaml

from kdrun import registry
from kdrun.config import rules, schema
from kdrun.config.keys import Config, Data, Keys, Schedule, Weight
from kdrun.errors import InputError

DOCS = Path(__file__).parent
CONF = DOCS.parent / "conf"
BEGIN, END = "<!-- written by docs/tables.py -->\n", "<!-- end of what docs/tables.py writes -->\n"


def keys_page() -> str:
    """The text of keys.md: of every key its type, what it may be, its default and its meaning."""
    of_mnist = {f"data.{key}": value for key, value in read(CONF / "data/mnist.yaml").items() if key != "name"}
    found = read(CONF / "config.yaml") | of_mnist
    common = {key: each for key, each in (*_leaves(Config, ""), *_leaves(Data, "data.")) if key != "stage"}
    parts = [_INTRODUCTION, _groups()]
    for section in dict.fromkeys(key.rpartition(".")[0].split(".")[0] for key in common):
        rows = {key: each for key, each in common.items() if key.rpartition(".")[0].split(".")[0] == section}
        parts += [_heading(section or "Of every command"), _table(rows, found)]
        if section == "data":
            parts += _options("data", "data.", "data.", found)
    weight = {f"objective.NAME.{key}": each for key, each in _leaves(Weight, "")}
    of_kd = read(CONF / "objective/kd.yaml")
    parts += [_heading("objective"), _table(weight, {key: of_kd[key.replace("NAME", "kd")] for key in weight})]
    parts += _options("objective", "objective.{name}.", "", {})
    own = {"objective.module": rules.Path, "objective.own.layers": rules.Layers}
    parts += ["### objective=own\n", _table(own, read(CONF / "objective/own.yaml"))]
    schedule = dict(_leaves(Schedule, "optimizer."))
    of_adam = {f"optimizer.{key}": each for key, each in read(CONF / "optimizer/adam.yaml").items()}
    parts += [_heading("optimizer"), _table(schedule, of_adam)]
    parts += _options("optimizer", "optimizer.", "optimizer.", {key: of_adam[key] for key in schedule})
    parts += [_heading("model"), *_options("model", "model.", "model.", {})]
    parts += [_heading("tracker"), *_options("tracker", "tracker.{name}.", "", {})]
    parts += [_heading("stage"), *_options("stage", "", "", found)]
    return "\n".join(parts)


_MORE = {  # what a section says before its table
    "teacher": "[Teachers](teachers.md), [How a network is trained](training.md).",
    "student": "[How a network is trained](training.md).",
    "distill": "[Ways of training](objectives.md#ways-of-training).",
    "data": "[Your own images](data.md), [Augmentation](augmentation.md).",
    "compare": "[What the verdict is](statistics.md).",
    "export": "[Deploying](deploying.md).",
    "objective": "[What the student is asked to match](objectives.md). NAME is the objective's.",
    "optimizer": "[Optimizers](training.md#optimizers). A role's own, as `student.optimizer`, follow these.",
    "model": "[Nets](models.md). Of `teacher.model` and `student.model`, as `student.model.depth=8`.",
    "tracker": "Who follows a training run; `tracker=[]` is nobody. A run that goes on may have others.",
    "stage": "[Stages](first-steps.md#stages) that have keys of their own.",
}


def _heading(section: str) -> str:
    return f"## {section}\n\n{_MORE[section]}\n" if section in _MORE else f"## {section}\n"


def objectives_table() -> str:
    """What of objectives.md is written here: name, term, paper and published settings of each objective."""
    lines = ["| `objective=` | what | term | sets |", "|---|---|---|---|"]
    for path in sorted({*(CONF / "objective").glob("*.yaml")} - {CONF / "objective/own.yaml"}):
        name, text = path.stem, path.read_text()
        head = takewhile(lambda line: line.startswith("#"), text.replace("# @package _global_\n", "").splitlines())
        what = re.split(r"(?<=\.) ", " ".join(line[2:] for line in head))[0]
        what = re.sub(r"arXiv (\d{4}\.\d{5}|\d{4}\.\d{4})", r"[\1](https://arxiv.org/abs/\1)", what)
        term = ""
        if registry.has("objective", name):
            said = inspect.getdoc(registry.get("objective", name).function) or ""
            term = " ".join(said.split("\n\n")[0].split()).removesuffix("; float32 scalar.").rstrip(".")
        sets = _settings(name, read(path, inherited=False))
        lines.append(f"| `{name}` | {_cell(what)} | {_cell(term)} | {sets} |")
    return "\n".join(lines) + "\n"


def read(path: Path, inherited: bool = True) -> dict[str, tuple[str, str]]:
    """Of each dotted key in a YAML file of conf/: its default as it is written there, and what is said beside it."""
    text = path.read_text()
    tree = yaml.compose(text, Loader=yaml.SafeLoader)
    found: dict[str, tuple[str, str]] = {}
    for parent in yaml.safe_load(text).get("defaults", ()) if tree and inherited else ():
        if isinstance(parent, str) and (path.parent / f"{parent}.yaml").exists():
            found |= read(path.parent / f"{parent}.yaml")
    return found | dict(_commented(tree, text, "")) if tree else found


def _commented(node: yaml.Node, text: str, prefix: str) -> Iterator[tuple[str, tuple[str, str]]]:
    lines = text.splitlines()
    for key, value in node.value:
        start, end, name = value.start_mark, value.end_mark, prefix + key.value
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _commented(value, text, f"{name}.")
        elif name != "defaults":
            above = list(takewhile(lambda line: line.strip().startswith("# "), reversed(lines[: start.line])))
            _, _, beside = lines[end.line][end.column :].partition("# ")
            yield name, (text[start.index : end.index], beside or " ".join(each.strip()[2:] for each in above[::-1]))


def _options(kind: str, prefix: str, of_file: str, usual: dict[str, tuple[str, str]]) -> Iterator[str]:
    """For each name of a kind: the usual keys that have another default with it, and a table of its own keys."""
    for name in registry.names(kind):
        path = CONF / kind / f"{name}.yaml"
        found = {of_file + key: each for key, each in read(path).items()} if path.exists() else {}
        own = _of_entry(registry.get(kind, name), prefix.format(name=name))
        rows = {key: each for key, each in own if key not in usual and key in found}
        others = [f"`{key}={found[key][0]}`" for key in usual if key in found and found[key][0] != usual[key][0]]
        if rows or others:
            yield f"### {kind}={name}\n"
            yield from [f"Sets {', '.join(others)}.\n"] if others else []
            yield from [_table(rows, found)] if rows else []


def _of_entry(entry: registry.Entry, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, parameter in schema.parameters(entry).items():
        annotation = schema.annotation_of(entry, parameter)
        if is_typeddict(annotation):
            yield from _leaves(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, annotation


def _leaves(cls: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, annotation in get_type_hints(cls, include_extras=True).items():
        if is_typeddict(annotation):
            yield from _leaves(annotation, f"{prefix}{name}.")
        elif annotation != Keys:
            yield prefix + name, annotation


def _table(rows: dict[str, Any], found: dict[str, tuple[str, str]]) -> str:
    lines = ["| key | type | allowed | default | meaning |", "|---|---|---|---|---|"]
    for key, annotation in rows.items():
        default, said = found[key]
        of_another = (key.replace(role, other, 1) for role in ("teacher.", "student.", "distill.") for other in _OTHERS)
        said = said or next((found[other][1] for other in of_another if other in found and found[other][1]), "")
        cells = (_type(annotation), allowed(annotation), f"`{default}`", said)
        lines.append(f"| `{key}` | {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


_OTHERS = ("teacher.", "student.", "data.", "")  # whose key of the same name says what a role's means


def allowed(annotation: Any) -> str:
    """What a key's rule allows, in the words in which it refuses what it does not."""
    rule = rules.of_annotation(annotation)
    words = [_refusal(rule, odd) for odd in (object(), [object()], "", -1)]
    if not _refusal(rule, []):
        words = [each.removesuffix(", not empty") for each in words]
    first, of_list, *others = words
    if first.startswith("a list") and not first.startswith(of_list):
        first, of_list = f"{first}, each {of_list}", ""
    said = [first, *(each for each in dict.fromkeys((of_list, *others)) if not first.startswith(each))]
    if not _refusal(rule, "auto") and _refusal(rule, "nonsense"):
        said.append("auto")
    if not _refusal(rule, None) and not any("null" in each for each in said):
        said.append("null")
    return "; or ".join(said)


def _refusal(rule: rules.Rule, given: Any) -> str:
    """What a rule says that a value must be; empty where it takes the value."""
    try:
        rule("KEY", given)
    except InputError as error:
        return re.split(", got |\\. ", str(error))[0].removeprefix("KEY must be ")
    return ""


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return _type(type(inner[0]))
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each) for each in inner)
    if origin is list:
        return f"list of {_type(inner[0])}"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", "any").lower()


def _groups() -> str:
    """What is chosen by a name, from the head of config.yaml."""
    lines = ["## Chosen by name\n", "| group | default | names |", "|---|---|---|"]
    for group, default in re.findall(
        r"^  - ([a-z]+(?:@[a-z.]+)?): (.*?)(?: #.*)?$", (CONF / "config.yaml").read_text(), re.M
    ):
        folder = CONF / group.partition("@")[0]
        names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        lines.append(f"| `{group}` | `{default}` | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(lines) + "\n"


def _settings(name: str, values: dict[str, tuple[str, str]]) -> str:
    """What an objective sets: of its own keys, those that others have, too, and where they are not as usual."""
    usual = {"weight": "1.0", "weight_end": "null", "warmup_epochs": "0.0", "layers": ""}
    shown = (
        f"`{key}={value}`"
        for key, (value, _) in values.items()
        if not key.startswith(f"objective.{name}.") or usual.get(key.split(".")[-1], value) != value
    )
    return ", ".join(shown)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def written(page: str, table: str) -> str:
    """A page with what is between its marks written anew."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


_INTRODUCTION = f"""# Every key
{BEGIN}
Each can be set on the command line, `kdrun temperature=4 student.model.growth_rate=8`, or in a preset. `kdrun --cfg
job` prints those of a command with their values. A value that is not allowed is refused before anything is made.
Defaults are those of `conf/`: `${{batch_size}}` is the value of that key, `???` must be given; a preset, an objective
and a control set others.
"""


def main() -> None:
    """Write both pages."""
    objectives = DOCS / "objectives.md"
    (DOCS / "keys.md").write_text(keys_page())
    objectives.write_text(written(objectives.read_text(), objectives_table()))


if __name__ == "__main__":
    main()
