"""train, evaluate and demo with ``task: classification``, as a person would run them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from detector.data.generated.dataset import generate_voc
from tests.commands.conftest import Tool
from tests.tiny import TINY


@pytest.fixture
def config(tmp_path: Path) -> Path:
    generate_voc(tmp_path / "voc", train_images=4, test_images=3, image_size=(96, 112), seed=2)
    values = {name: section for name, section in TINY.items() if name != "proposals"}
    values["data"] = {**TINY["data"], "root": str(tmp_path / "voc")}
    values["model"] = {**TINY["model"], "pool": {"kind": "spp", "levels": [1, 2]}}
    path = tmp_path / "classifier.yaml"
    path.write_text(yaml.safe_dump({**values, "task": "classification"}))
    return path


def test_a_classifier_trains_is_scored_and_names_classes(tool: Tool, tmp_path: Path, config: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "figures.json"
    trained = tool("train", "--config", config, "--output", run, "train.steps=3")
    assert trained.returncode == 0, trained.stderr
    figures = json.loads((run / "metrics.json").read_text())

    checkpoint = run / "checkpoints" / "step_3.pt"
    scored = tool("evaluate", "--config", config, "--checkpoint", checkpoint, "--output", out)
    assert scored.returncode == 0, scored.stderr
    assert "11-point AP" in scored.stdout
    again = json.loads(out.read_text())
    assert {key: again[key] for key in ("voc07_mAP", "voc_mAP", "per_class")} == {
        key: figures[key] for key in ("voc07_mAP", "voc_mAP", "per_class")
    }
    assert {"seconds", "peak_rss_mib", "step"} <= again.keys()

    images, drawn = tmp_path / "voc" / "JPEGImages", tmp_path / "drawn"
    shown = tool("demo", "--checkpoint", checkpoint, images, "--output", drawn, "--score-threshold", "0")
    assert shown.returncode == 0, shown.stderr
    assert all(f"{path}: " in shown.stderr for path in images.iterdir())
    assert len(json.loads((drawn / "classes.json").read_text())["images"]) == 7
    refused = tool("demo", "--checkpoint", checkpoint, images, "--output", drawn, "--proposals", "boxes.npz")
    assert refused.returncode != 0
    assert "--proposals" in refused.stderr
    assert "takes none" in refused.stderr

    overwritten = tool("train", "--config", config, "--output", run, "--overwrite", "train.steps=2")
    assert overwritten.returncode == 0, overwritten.stderr
    assert not checkpoint.exists()


def test_a_detectors_checkpoint_is_no_classifiers(tool: Tool, tmp_path: Path, config: Path) -> None:
    trained = tool("train", "--config", config, "--output", tmp_path / "run", "train.steps=2")
    assert trained.returncode == 0, trained.stderr
    detection = ["task=detection", "proposals={method: dense}"]
    checkpoint = tmp_path / "run" / "checkpoints" / "step_2.pt"
    refused = tool("evaluate", "--config", config, "--checkpoint", checkpoint, *detection)
    assert refused.returncode != 0
    assert "made with task = 'classification', the config says 'detection'" in refused.stderr
