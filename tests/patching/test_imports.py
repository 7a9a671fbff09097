"""What the modules of patching import: in no circle, and nothing inside of functions to dodge one."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import attnkernels.layers
import attnkernels.patching

PATCHING = Path(attnkernels.patching.__file__).parent
LAYERS = Path(attnkernels.layers.__file__).parent


def imported(file: Path) -> set[str]:
    """The modules of the same folder that a file imports when it is imported itself."""
    tree = ast.parse(file.read_text())
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1]
    names = {node.module or alias.name for node in nodes for alias in node.names}
    return {name for name in names if (file.parent / f"{name}.py").is_file()}


def test_no_circle():
    graph = {file.stem: imported(file) for file in PATCHING.glob("*.py") if file.stem != "__init__"}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises where there is a circle
    assert graph["_registry"] == set()
    assert order.index("_registry") < order.index("squeeze_excite") < order.index("squeeze_excite_blocks")


def test_every_adapter_is_imported():
    adapters = {file.stem for file in PATCHING.glob("*.py") if "_registry" in imported(file)}
    assert imported(PATCHING / "__init__.py") >= {name for name in adapters if not name.startswith("_")}


def test_no_import_inside_of_a_function():
    for folder in (PATCHING, LAYERS):
        for file in folder.glob("*.py"):
            functions = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef))
            inside = [node for function in functions for node in ast.walk(function)]
            assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in inside), file
