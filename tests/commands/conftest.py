"""Running the tools as a person would: the script with its arguments, output and errors kept apart."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[2]


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Tool = Callable[..., Result]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Tool:
    """Run ``tools/NAME.py`` in the test's own directory, in this process, which saves loading torch again."""

    def run(name: str, *arguments: object) -> Result:
        script = PROJECT / "tools" / f"{name}.py"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(script), run_name="__main__")
        captured = capfd.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, which no test may change."""
    from detector.data.generated.dataset import generate_voc

    root = tmp_path_factory.mktemp("original") / "voc"
    generate_voc(root, train_images=4, test_images=2, image_size=(96, 112), seed=2)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "voc"))
