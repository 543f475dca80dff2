"""The model's files import one another in one direction."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import interpcore.model

MODEL = Path(interpcore.model.__file__).parent


def imports(file: Path) -> set[str]:
    """Modules of the model that a file imports, wherever in it, as dotted paths below `model`."""
    package = file.relative_to(MODEL).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = list(package[: len(package) + 1 - node.level]) if node.level else []
        name = node.module or ""
        if not node.level:
            if not f"{name}.".startswith("interpcore.model."):
                continue
            name = name.removeprefix("interpcore.model").removeprefix(".")
        path = ".".join([*base, *filter(None, name.split("."))])
        found.add(path)
        found |= {f"{path}.{alias.name}".strip(".") for alias in node.names}
    return found


def test_no_two_files_import_each_other():
    files = {".".join(f.relative_to(MODEL).with_suffix("").parts): f for f in MODEL.rglob("*.py")}
    faces = {name.removesuffix(".__init__") for name in files if name.endswith("__init__")}
    graph = {n: imports(f) & files.keys() for n, f in files.items() if not n.endswith("__init__")}
    assert faces >= {"load", "linearize", "jacobians"}
    graphlib.TopologicalSorter(graph).prepare()


def test_faces_hold_no_logic():
    """A face names what it shows; one that imports it on first use says so for type checkers, too."""
    shown = "def __getattr__(name: str) -> Any:\n    return _faces.shown(__name__, _FACE, name)"
    for file in MODEL.rglob("__init__.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.If):
                assert ast.unparse(node.test) == "TYPE_CHECKING", file
            elif isinstance(node, ast.FunctionDef):
                assert ast.unparse(node) == shown, file
            else:
                assert isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign), file
