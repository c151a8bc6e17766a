"""The starts of `tests.multiprocess.cases`, which the tests share."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import chdir
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


@pytest.fixture(scope="session")
def place(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of all starts, with their configs."""
    folder = tmp_path_factory.mktemp("processes")
    data = {**TINY["data"], "root": str(tiny_root)}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "data": data}))
    train = {**TINY["train"], "steps": 6, "checkpoint_every": 6, "draw_images": 0, "learning_rate": 0.0005}
    staged: dict[str, Any] = deepcopy({**TINY, "data": data, "train": train, **STAGED})
    staged["model"]["head"]["dropout"] = 0
    (folder / "staged.yaml").write_text(json.dumps(staged))
    return folder


@pytest.fixture(scope="session")
def start(place: Path) -> Start:
    """Return the folder of the start with some number of processes; each happens once.

    What several processes have printed is in its ``output.txt``.
    """
    names = {1: "one", 2: "two", 3: "three"}
    failed: dict[int, bool] = {}

    def folder_of(count: int) -> Path:
        folder = place / names[count]
        if count > 1:
            folder_of(1)  # which some cases read
        if count not in failed:
            failed[count] = True
            if count == 1:
                with chdir(place):
                    cases.do(Path(names[1]))
            else:
                done = run(torchrun(count, "-m", "tests.multiprocess.cases", names[count]), place)
                assert done.returncode == 0, done.stdout
                (folder / "output.txt").write_text(done.stdout)
            failed[count] = False
        assert not failed[count], f"the start with {count} processes has failed"
        return folder

    return folder_of
