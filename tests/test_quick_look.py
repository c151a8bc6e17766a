"""The notebook docs/quick_look.ipynb runs from top to bottom and shows what its stored outputs show."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT

NOTEBOOK = PROJECT / "docs" / "quick_look.ipynb"
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (the extra docs)")


def outputs(cell: Any) -> list[set[str]]:
    """Return the kinds of what a cell shows: texts and pictures."""
    return [set(output.get("data", {"text": None})) for output in cell.get("outputs", [])]


def test_the_stored_notebook_has_all_outputs_and_is_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 300_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs or cell.source.startswith("%%capture") for cell in code)
    assert sum("image/jpeg" in kinds for cell in code for kinds in outputs(cell)) >= 5
    assert "/tmp/" not in NOTEBOOK.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_notebook_runs_and_detects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (the extra docs)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (the extra docs)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(PROJECT), os.environ.get("PYTHONPATH", ""))))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = [outputs(cell) for cell in notebook.cells]
    client = nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert [outputs(cell) for cell in notebook.cells] == stored
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1].outputs[0].text
    names = last.splitlines()[0].split()[1:]
    rows = [line.rsplit(maxsplit=len(names)) for line in last.splitlines()[1:]]
    for name, *scores in rows:  # each region has its own class, and the corner none
        best = names[max(range(len(names)), key=lambda column: float(scores[column]))]
        assert best == re.sub("^a corner$", "background", name)
