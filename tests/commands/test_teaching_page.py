"""The page that sets three pipelines side by side: its commands run, its links and keys lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from detector.config import load_config
from detector.visualize import save_image
from tests.commands.conftest import Tool
from tests.conftest import PROJECT

PAGE = PROJECT / "docs" / "three_pipelines.md"
TEXT = PAGE.read_text()
COMMANDS = [shlex.split(line) for line in TEXT.splitlines() if re.match(r" {4,}python tools/", line)]
SMALL = [
    "data.generate.train_images=6",
    "data.generate.test_images=3",
    "train.steps=2",
    "train.images_per_batch=2",
    "train.sampling.rois_per_image=8",
    "test.max_images=2",
]
"""The quick start made small enough for a test."""


@pytest.mark.slow
def test_every_command_runs_in_the_order_given(tool: Tool, tmp_path: Path) -> None:
    names = [Path(command[1]).stem for command in COMMANDS]
    assert {"train", "evaluate", "draw_pooling"} <= set(names)
    for name, command in zip(names, COMMANDS, strict=True):
        arguments = [str(PROJECT / part) if part.startswith("configs/") else part for part in command[2:]]
        if name == "train" and load_config(arguments[1]).stages:
            continue  # its stages have hundreds of steps; tests/staged/test_runner.py runs short ones
        if name == "draw_pooling":
            image = np.random.default_rng(0).integers(0, 255, (190, 190, 3), dtype=np.uint8)
            save_image(tmp_path / arguments[0], image)
        found = tool(name, *arguments, *SMALL)
        assert found.returncode == 0, (command, found.stderr)
    assert all((tmp_path / name).is_file() for name in ("pooling.png", "crops.png"))


def test_every_file_named_is_there() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links
    for link in links:
        assert (PAGE.parent / link).exists(), link
    for path in re.findall(r"`((?:detector|configs|tools|tests|benchmarks)/[\w/.]+)`", TEXT):
        assert (PROJECT / path).exists(), path


@pytest.mark.parametrize("override", re.findall(r"`((?:model|proposals|test)\.[\w.]+=[^`]+)`", TEXT))
def test_every_change_suggested_is_a_valid_one(override: str) -> None:
    key = override.split("=")[0]
    name = "spp_net_end_to_end_quickstart" if "levels" in key or "freeze" in key else "rcnn_quickstart"
    config = load_config(PROJECT / "configs" / f"{name}.yaml", [override])
    value: object = config.model_dump(mode="json")
    for part in key.split("."):
        assert isinstance(value, dict)
        value = value[part]
    assert value == yaml.safe_load(override.split("=")[1])
