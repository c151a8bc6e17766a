"""The two tables of CONTRIBUTING: every hop is a file and a function that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import PROJECT

HOP = re.compile(r"`((?:\w+/)*\w+\.py):([\w.]+)`")


def section(title: str) -> str:
    """Return the text below a heading of CONTRIBUTING, up to the next one."""
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    match = re.search(rf"^### {title}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"CONTRIBUTING has no section {title!r}"
    return match[1]


def defines(file: str, name: str) -> bool:
    """Return whether a file of the package defines ``name``: ``make_sample``, or ``Scorer.evaluate``."""
    body: list[ast.stmt] = ast.parse((PROJECT / "detector" / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        named = [
            node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == part
        ]
        if not named:
            return False
        body = named[0].body
    return True


@pytest.mark.parametrize("title", ["The way of an image", "The way of a config value"])
def test_every_hop_exists(title: str) -> None:
    text = section(title)
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 8
    for row in rows:
        assert HOP.search(row), f"names no file and function: {row}"
    for file, name in HOP.findall(text):
        assert (PROJECT / "detector" / file).is_file(), file
        assert defines(file, name), f"{file} does not define {name}"


def test_a_name_that_is_gone_is_noticed() -> None:
    assert defines("data/samples.py", "make_sample")
    assert not defines("data/samples.py", "make_simple")
    assert not defines("models/detector.py", "RegionDetector.no_such_method")
