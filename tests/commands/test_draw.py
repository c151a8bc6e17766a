"""The tool that draws pooling: a trained network from a checkpoint, and a note about an untrained one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.config import load_config
from detector.visualize import save_image
from tests.commands.conftest import Tool
from tests.conftest import PROJECT
from tests.typed import read_picture

QUICKSTART = PROJECT / "configs" / "quickstart.yaml"
REGION = ("--roi", 20, 20, 150, 140)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    save_image(path, np.random.default_rng(0).integers(0, 255, (190, 190, 3), dtype=np.uint8))
    return path


def test_a_network_without_weights_is_called_untrained(tool: Tool, image: Path) -> None:
    found = tool("draw_pooling", image, *REGION, "--config", QUICKSTART)
    assert found.returncode == 0
    assert "the filters are random" in found.stderr
    assert "--checkpoint" in found.stderr


@pytest.mark.slow
def test_a_checkpoint_draws_its_own_filters(tool: Tool, image: Path, tmp_path: Path) -> None:
    from detector.engine.checkpoint import save_checkpoint
    from detector.factory.model import initial_model

    config = load_config(QUICKSTART, ["seed=5"])
    model = initial_model(config, ("a", "b"))
    state = {"step": 7, "config": config.model_dump(mode="json"), "classes": ["a", "b"]}
    save_checkpoint(tmp_path / "step_7.pt", {**state, "model": model.state_dict()})
    pictures = {}
    for name, arguments in {
        "checkpoint": ("--checkpoint", tmp_path / "step_7.pt"),
        "same": ("--config", QUICKSTART, "seed=5"),
        "other": ("--config", QUICKSTART, "seed=6"),
    }.items():
        done = tool("draw_pooling", image, *REGION, "--channel", 3, "--output", f"{name}.png", *arguments)
        assert done.returncode == 0, done.stderr
        assert ("after 7 steps" in done.stderr) == (name == "checkpoint")
        pictures[name] = read_picture(tmp_path / f"{name}.png")[40:]  # below the caption
    assert pictures["checkpoint"].shape == pictures["other"].shape
    assert (pictures["checkpoint"] != pictures["other"]).any()


def test_config_and_checkpoint_are_alternatives(tool: Tool, image: Path, tmp_path: Path) -> None:
    for arguments in ((), ("--config", QUICKSTART, "--checkpoint", tmp_path / "x.pt")):
        found = tool("draw_pooling", image, *REGION, *arguments)
        assert found.returncode == 2
        assert "either --config" in found.stderr
