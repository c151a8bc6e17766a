"""The table of docs/reliability.md: every fault names tests that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import PROJECT

TEST = re.compile(r"`(tests/(?:\w+/)*test_\w+\.py)::(test_\w+)`")
FAULTS = (
    "SIGKILL",
    "writes a checkpoint",
    "SIGTERM",
    "disk is full",
    "only be read",
    "truncated",
    "best.pt",
    "out of memory",
    "deleted or changed",
    "two runs in one folder",
    "NaN",
    "one of several processes",
    "clock",
)
"""Words of the faults that the table must have."""


CLOCKS = re.compile(r"\btime\.time\(|\bst_[mc]time|\bgetmtime\(|\butime\(")
WITH_CLOCKS = {
    "commands/cli.py",  # the time of an error in torchrun's summary
    "engine/board.py",  # the times that TensorBoard shows
    "engine/trackers.py",  # the times that a tracker shows
    "proposals/checked.py",  # whether a file has changed: another time counts as a change
    "proposals/kept.py",  # which of over 32 results is removed, to be computed again when it is needed
}


def test_no_other_file_asks_for_the_time_of_day() -> None:
    """A clock may be set back, and machines' clocks differ: `perf_counter` measures, steps give an order."""
    package = PROJECT / "detector"
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if CLOCKS.search(path.read_text(encoding="utf-8"))
    }
    assert found == WITH_CLOCKS


def rows() -> list[str]:
    text = (PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("|")][2:]


def test_every_fault_has_a_row() -> None:
    faults = [row.split("|")[1] for row in rows()]
    assert [word for word in FAULTS if not any(word in fault for fault in faults)] == []


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_row_names_tests_that_exist(row: str) -> None:
    cells = row.strip("|").split("|")
    assert len(cells) == 3
    named = TEST.findall(cells[2])
    assert named
    assert len(named) == cells[2].count("`") / 2, "something else than a test is named"
    for file, name in named:
        tree = ast.parse((PROJECT / file).read_text(encoding="utf-8"))
        assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], (
            f"{file}::{name}"
        )
