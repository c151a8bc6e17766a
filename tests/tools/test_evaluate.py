"""tools/evaluate.py: a checkpoint's figures, and the same figures from the files that it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from detector.build.training import start_run
from detector.config import load_config
from detector.data.generated import generate_voc
from tests.build.conftest import TINY
from tests.tools.conftest import Tool

KEYS = {"voc07_mAP", "voc_mAP", "per_class", "seconds", "peak_rss_mib"}


def test_a_checkpoint_and_its_result_files_score_the_same(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "voc"
    generate_voc(root, train_images=4, test_images=3, image_size=(96, 112), seed=2)
    config = tmp_path / "tiny.yaml"
    values = {**TINY, "data": {**TINY["data"], "root": str(root)}}  # type: ignore[dict-item]
    config.write_text(yaml.safe_dump({**values, "test": {"scales": [96], "score_threshold": 0.0}}))
    (tmp_path / "run").mkdir()
    start_run(load_config(config, ["train.steps=20"]), tmp_path / "run", "cpu").run()
    checkpoint = tmp_path / "run" / "checkpoints" / "step_20.pt"

    output = tmp_path / "figures.json"
    result = tool("evaluate", "--config", config, "--checkpoint", checkpoint, "--output", output)
    assert result.returncode == 0, result.stderr
    figures = json.loads(output.read_text())
    assert set(figures) >= KEYS
    assert "11-point AP" in result.stdout
    assert figures["peak_rss_mib"] > 100

    files = tmp_path / "figures" / "results"
    assert len(list(files.glob("comp4_det_test_*.txt"))) == 5
    again = tmp_path / "again.json"
    scored = tool("evaluate", "--detections", files, "--annotations", root, "--split", "test",
                  "--metric", "voc", "--output", again)  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    for key in ("voc07_mAP", "voc_mAP", "per_class"):
        assert json.loads(again.read_text())[key] == figures[key]


def test_scoring_files_needs_no_images_and_no_library(tool: Tool, tmp_path: Path) -> None:
    root = tmp_path / "voc"
    generate_voc(root, train_images=1, test_images=2, image_size=(96, 112), seed=5)
    for image in (root / "JPEGImages").iterdir():
        image.unlink()
    (tmp_path / "dets").mkdir()
    (tmp_path / "dets" / "comp4_det_test_ring.txt").write_text("")
    result = tool("evaluate", "--detections", tmp_path / "dets", "--annotations", root, "--iou", "0.7")
    assert result.returncode == 0, result.stderr
    missing = tool("evaluate", "--detections", tmp_path / "none", "--annotations", root)
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr
