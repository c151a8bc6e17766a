"""A suite as a person runs it: runs once, goes on, and tells of mistakes before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.commands.conftest import Tool
from tests.tiny import TINY


@pytest.fixture
def config(tmp_path: Path) -> Path:
    from detector.data.generated.dataset import generate_voc

    root = tmp_path / "voc"
    generate_voc(root, train_images=4, test_images=2, image_size=(96, 128), seed=1)
    path = tmp_path / "tiny.yaml"
    data = {**TINY["data"], "root": str(root), "workers": 0}  # type: ignore[dict-item]
    path.write_text(yaml.safe_dump({**TINY, "data": data}))
    return path


def test_runs_once_and_tests_one_network_twice(tool: Tool, config: Path, tmp_path: Path) -> None:
    arguments = ["--suite", "fast_rcnn_paper", "--data", config, "--output", tmp_path / "suite"]
    arguments += ["--only", "boxes_off_at_test", "train.steps=2"]
    result = tool("ablate", *arguments)
    assert result.returncode == 0, result.stderr
    trained = tmp_path / "suite" / "multi_task" / "checkpoints" / "step_2.pt"
    written = trained.stat().st_mtime_ns
    rows = json.loads((tmp_path / "suite" / "ablation.json").read_text())["runs"]
    done = {row["name"] for row in rows if row["voc07_mAP"] is not None}
    assert done == {"multi_task", "boxes_off_at_test"}
    again = tool("ablate", *arguments)
    assert again.returncode == 0
    assert again.stderr.count("done before") == 2
    assert trained.stat().st_mtime_ns == written
    assert "boxes_off_at_test" in again.stdout
    other = tool("ablate", *arguments[:-1], "train.steps=3")
    assert other.returncode == 2
    assert "studied.json: the runs here were made with other values of train;" in other.stderr


def test_mistakes_are_named(tool: Tool, config: Path) -> None:
    for arguments, said in (
        (["--suite", "nothing", "--data", config], "nothing.yaml: no such config file"),
        (["--suite", "fast_rcnn_paper", "--data", "no.yaml"], "no.yaml: no such config file"),
        (["--suite", "fast_rcnn_paper", "--data", config, "--only", "x"], "--only x: the suite's runs are"),
    ):
        result = tool("ablate", *arguments)
        assert result.returncode == 2
        assert said in result.stderr
