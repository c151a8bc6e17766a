"""Who may import whom (CONTRIBUTING): read from the source, so that lazy imports count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

FILES = sorted((PROJECT / "detector").rglob("*.py"))
LIBRARY = {"core", "ops", "config", "data", "evaluation", "models", "visualize", "proposals", "engine"}
LIBRARY |= {"export"}
# What each part of the package may import besides itself.
RULES: dict[str, set[str]] = {
    "core": set(),
    "ops": {"core"},
    "config": {"core", "ops"},
    "data": {"core"},
    "evaluation": {"core"},
    "models": {"core", "ops"},
    "visualize": {"core"},
    "proposals": {"core", "ops"},
    "engine": {"core"},
    "export": {"core"},
    "factory": LIBRARY,
    "tasks": LIBRARY | {"factory"},
    "staged": LIBRARY | {"factory", "tasks"},
    "api": LIBRARY | {"factory", "tasks"},
    "server": LIBRARY | {"factory", "tasks", "api"},
    "commands": LIBRARY | {"factory", "tasks", "staged", "api", "server"},
}
PARTS = set(RULES) | {"__init__", "__main__"}
"""``detector/__init__.py`` gives ``Detector`` on first use, and ``__main__.py`` runs the commands."""


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of ours that ``tree`` imports, deep enough to name the part."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "detector")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports within the package are absolute"
            if node.module == "detector":
                yield from (f"detector.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("detector."):
                yield node.module


def part(path: Path) -> str:
    """``models`` for ``detector/models/heads.py``, ``boxes`` for ``detector/core/boxes.py``."""
    return path.relative_to(PROJECT / "detector").parts[0].removesuffix(".py")


def test_every_part_of_the_package_has_a_rule() -> None:
    assert {part(path) for path in FILES} == PARTS


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if part(path) in RULES],
    ids=lambda path: str(path.relative_to(PROJECT)),
)
def test_imports_only_what_the_rules_allow(path: Path) -> None:
    name = part(path)
    found = {imported.split(".")[1] for imported in imports(ast.parse(path.read_text()))}
    allowed = RULES.get(name, set()) | {name, "__version__"}
    assert found <= allowed, f"{name} must not import {sorted(found - allowed)}"


@pytest.mark.parametrize("name", ["proposals", "data", "evaluation", "visualize", "config", "engine", "core"])
def test_the_native_library_is_loaded_inside_functions_at_most(name: str) -> None:
    ours = [path for path in FILES if part(path) == name]
    assert ours
    top_level = [
        (path, imported)
        for path in ours
        for statement in ast.parse(path.read_text()).body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for imported in imports(statement)
        if imported.split(".")[1] == "ops"
    ]
    assert not top_level


def test_the_rules_see_every_kind_of_import() -> None:
    source = (
        "import detector.a.b\nfrom detector import c\nfrom detector.d import x\n"
        "import torch\ndef f():\n    from detector.e.g import y\n"
    )
    assert set(imports(ast.parse(source))) == {"detector.a.b", "detector.c", "detector.d", "detector.e.g"}


SCORING = """
import sys
sys.modules["detector.ops"] = None  # importing it would raise
import detector.core.boxes, detector.core.structures, detector.data.voc.source, detector.data.coco.source
import detector.evaluation.voc, detector.evaluation.coco, detector.evaluation.result_files
loaded = {"torchvision", "cv2", "pydantic"} & set(sys.modules)
sys.exit(f"loaded {loaded}" if loaded else 0)
"""


def test_data_and_scoring_need_neither_the_native_library_nor_torchvision() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCORING], cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
