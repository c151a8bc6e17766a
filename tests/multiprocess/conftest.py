"""The starts of `tests.multiprocess.cases`, which the tests share."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.multiprocess import cases
from tests.multiprocess.launch import run, torchrun
from tests.staged.test_runner import STAGED
from tests.tiny import TINY

Start = Callable[[int], Path]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process of pytest at a time into the block."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def place(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of all starts, with their configs; the processes of pytest share it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "processes"
    with locked(folder.with_suffix(".lock")):
        if not folder.exists():
            folder.mkdir()
            write_configs(folder, tiny_root)
    return folder


def write_configs(folder: Path, root: Path) -> None:
    data = {**TINY["data"], "root": str(root)}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "data": data}))
    train = {**TINY["train"], "steps": 6, "checkpoint_every": 6, "draw_images": 0, "learning_rate": 0.0005}
    staged: dict[str, Any] = deepcopy({**TINY, "data": data, "train": train, **STAGED})
    staged["model"]["head"]["dropout"] = 0
    (folder / "staged.yaml").write_text(json.dumps(staged))


@pytest.fixture(scope="session")
def start(place: Path) -> Start:
    """Return the folder of the start with some number of processes; each happens once.

    What several processes have printed is in its ``output.txt``.
    """
    names = {1: "one", 2: "two", 3: "three"}

    def folder_of(count: int) -> Path:
        folder, outcome = place / names[count], place / f"{names[count]}.outcome"
        if count > 1:
            folder_of(1)  # which some cases read
        with locked(place / f"{names[count]}.lock"):
            if not outcome.exists():
                outcome.write_text("failed")
                begin(count, folder)
                outcome.write_text("done")
        assert outcome.read_text() == "done", f"the start with {count} processes has failed"
        return folder

    return folder_of


def begin(count: int, folder: Path) -> None:
    if count == 1:
        with chdir(folder.parent):
            cases.do(Path(folder.name))
        return
    done = run(torchrun(count, "-m", "tests.multiprocess.cases", folder.name), folder.parent)
    assert done.returncode == 0, done.stdout
    (folder / "output.txt").write_text(done.stdout)
