"""The arrows between rooms: each imports those below it, and none above."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kdrun"
# each may import those that come after it, and what is in its own row
ROWS = [
    ["__main__"],
    ["cli"],
    ["stages"],
    ["teachers", "export", "reports"],
    ["comparison"],
    ["training"],
    ["tracking", "evaluation", "models", "objectives", "optimizers", "data"],
    ["runs"],
    ["plugins"],
    ["config"],
    ["registry"],
    ["runtime"],
    ["storage"],
    ["errors", "commands"],
    ["__init__"],
]
ROW = {room: number for number, row in enumerate(ROWS) for room in row}
# what a notebook asks for may look up: the public face, and a run's network
UP = {("__init__", "comparison"), ("__init__", "runs"), ("__init__", "plugins")}
UP |= {("runs", "comparison"), ("runs", "teachers")}


def imports(path: Path):
    """The rooms that a file imports, at its top or inside of a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kdrun":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [name.name for name in node.names]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_those_below_it_alone(path):
    ours = room(path)
    for other in imports(path):
        other = other if other in ROW else "__init__"
        assert ROW[ours] <= ROW[other] or (ours, other) in UP, f"{ours} imports {other}"


def test_hydra_is_known_to_the_command_line_alone_and_mocks_to_nobody():
    for path in PACKAGE.rglob("*.py"):
        names = [name for name in modules(path)]
        assert room(path) == "cli" or not any(name.split(".")[0] == "hydra" for name in names), path
        assert not any(name.startswith("unittest") for name in names), path


def test_a_stage_imports_no_tensorflow_at_its_top():
    heavy = {"tensorflow", "tf_keras", "tensorboard", "pandas", "scipy", "matplotlib"}
    for path in (PACKAGE / "stages").glob("*.py"):
        assert not heavy & {name.split(".")[0] for name in modules(path, at_top=True)}, path


def modules(path: Path, at_top: bool = False):
    """What a file imports that is not kdrun's."""
    tree = ast.parse(path.read_text())
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("kdrun"):
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom) and node.module == "unittest":
            yield "unittest"
