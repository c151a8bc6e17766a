"""``tools/embed.py``: where the features are, in words and in JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from detector.config import load_config
from detector.engine.checkpoint import save_checkpoint
from detector.factory.model import build_model
from detector.staged.region_features import RegionFeatures
from tests.commands.conftest import Tool


def test_features_of_the_training_split_and_of_a_checkpoint(
    tool: Tool, tiny_config: Path, tmp_path: Path
) -> None:
    given = ("--config", tiny_config, "--output", "out", "--top-k", 7, "model.pool.output_size=1")
    result = tool("embed", *given, "--json", "--to", "parquet", "--to", "npz")
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout)
    found = RegionFeatures.open(tmp_path / outcome["folder"])
    assert (outcome["split"], outcome["images"], outcome["regions"]) == ("trainval", 8, 8 * 7)
    assert outcome["width"] == found.width
    assert outcome["exported"] == ["out/trainval.parquet", "out/trainval.npz"]
    assert pq.read_table(tmp_path / "out" / "trainval.parquet").num_rows == 56
    assert np.load(tmp_path / "out" / "trainval.npz")["features"].shape == (56, found.width)
    again = tool("embed", *given)
    assert again.stdout.strip().endswith(f"features each: {outcome['folder']}")
    assert again.stdout.startswith("trainval: 56 regions of 8 images")
    config = load_config(tiny_config, ["model.pool.output_size=1"])
    model = build_model(config, 2)  # a checkpoint of other classes: the head has no part in the features
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(2)
    stored = {"config": config.model_dump(mode="json"), "classes": ["a", "b"], "model": model.state_dict()}
    save_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt", {"step": 3, **stored})
    other = tool("embed", *given, "--json", "--checkpoint", "run")
    assert other.returncode == 0, other.stderr
    trained = RegionFeatures.open(tmp_path / json.loads(other.stdout)["folder"])
    assert trained.images == found.images
    assert not np.array_equal(trained.all_features, found.all_features)


def test_faults_are_named(tool: Tool, tiny_config: Path, tmp_path: Path) -> None:
    given = ("--config", tiny_config, "--output", "out")
    for arguments, message in (
        (("--top-k", "0"), "--top-k 0: give a number of regions, at least 1"),
        (("--checkpoint", "."), "the folder has no checkpoints/best.pt and no"),
        (("--checkpoint", "none.pt"), "none.pt: no such checkpoint"),
        (("--split", "other"), "other"),
    ):
        result = tool("embed", *given, *arguments)
        assert result.returncode == 2
        assert message in result.stderr
    assert not (tmp_path / "out").exists()
