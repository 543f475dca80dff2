"""The floors of the package: who may import whom, and which libraries load with the package itself."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "python" / "interpcore"
FAMILIES = ("lre", "lens", "circuits", "neurons", "steering", "surgery", "agent")
FLOORS = tuple((name,) for name in ("kernels", "ops", "runs", "stats", "model", "data", "generalize"))
FLOORS = (*FLOORS, FAMILIES, ("review",), ("cli",))
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
# tokenizers comes with transformers.
ALWAYS = {"torch", "numpy", "transformers", "tokenizers", "safetensors", "typer", "rich", "interpcore"}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def floor_of(path: Path) -> str:
    """The folder below the package that a file lies in; "" for the package's own file."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imported(path: Path, tree: ast.AST) -> Iterator[str]:
    """Full names of the modules that the import statements below a node name."""
    package = ["interpcore", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def at_load(tree: ast.Module) -> ast.Module:
    """A module without what runs only when called, or only for type checkers."""
    kept = []
    for node in tree.body:
        later = isinstance(node, ast.FunctionDef | ast.ClassDef)
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not later and not typing:
            kept.append(node)
    return ast.Module(kept, [])


def test_every_folder_has_a_floor() -> None:
    assert {floor_of(path) for path in files()} <= {"", *LEVEL}


@pytest.mark.parametrize("floor", LEVEL)
def test_a_floor_imports_only_from_below(floor: str) -> None:
    for path in files():
        if floor_of(path) != floor:
            continue
        for name in imported(path, ast.parse(path.read_text())):
            parts = name.split(".")
            if parts[0] == "interpcore" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != floor:
                assert LEVEL[parts[1]] < LEVEL[floor], f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("family", FAMILIES)
def test_rooms_of_a_family_import_in_no_circle(family: str) -> None:
    rooms = {path.parent.name for path in (PACKAGE / family).glob("*/__init__.py")}
    above: dict[str, set[str]] = {room: set() for room in rooms}
    for path in files():
        parts = path.relative_to(PACKAGE).parts
        if parts[0] == family and parts[1] in rooms:
            named = (name.split(".") for name in imported(path, ast.parse(path.read_text())))
            used = {n[2] for n in named if n[:2] == ["interpcore", family] and len(n) > 2}
            above[parts[1]] |= (used & rooms) - {parts[1]}
    TopologicalSorter(above).prepare()  # raises CycleError


def test_what_lies_below_all_floors_imports_none() -> None:
    for path in files():
        if path.parent == PACKAGE and path.name != "__init__.py":
            assert not any(
                name.startswith("interpcore.") for name in imported(path, ast.parse(path.read_text()))
            )


@pytest.mark.parametrize("floor", [*FAMILIES, "data", "generalize", "cli"])
def test_what_the_upper_floors_refuse_is_told_in_a_sentence(floor: str) -> None:
    """A bare ValueError or RuntimeError is a defect: raise Refused, RunError or Unavailable."""
    for path in (path for path in files() if floor_of(path) == floor):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                name = ast.unparse(node.exc).partition("(")[0]
                where = f"{path.relative_to(PACKAGE)}, line {node.lineno}"
                assert name not in ("ValueError", "RuntimeError", "Exception"), where


def test_modules_load_only_the_libraries_that_every_installation_has() -> None:
    allowed = ALWAYS | set(sys.stdlib_module_names)
    for path in files():
        for name in imported(path, at_load(ast.parse(path.read_text()))):
            assert name.split(".")[0] in allowed, f"{path.relative_to(PACKAGE)} imports {name} as it loads"
