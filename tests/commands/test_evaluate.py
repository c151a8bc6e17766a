"""tools/evaluate.py: a checkpoint's metrics, and the same metrics from the files that it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from detector.config import load_config
from detector.data.convert import voc_to_coco
from detector.data.generated.dataset import generate_voc
from detector.evaluation.report import COCO_METRICS
from detector.tasks.start import start_run
from tests.commands.conftest import PROJECT, Tool
from tests.tiny import TINY

KEYS = {"voc07_mAP", "voc_mAP", "per_class", "seconds", "peak_rss_mib"}


def test_a_checkpoint_and_its_result_files_score_the_same(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "voc"
    generate_voc(root, train_images=4, test_images=3, image_size=(96, 112), seed=2)
    config = tmp_path / "tiny.yaml"
    values = {**TINY, "data": {**TINY["data"], "root": str(root)}}
    config.write_text(yaml.safe_dump({**values, "test": {"scales": [96], "score_threshold": 0.0}}))
    (tmp_path / "run").mkdir()
    start_run(load_config(config, ["train.steps=20"]), tmp_path / "run", "cpu").run()
    checkpoint = tmp_path / "run" / "checkpoints" / "step_20.pt"

    output = tmp_path / "metrics.json"
    result = tool("evaluate", "--config", config, "--checkpoint", checkpoint, "--output", output)
    assert result.returncode == 0, result.stderr
    metrics = json.loads(output.read_text())
    assert set(metrics) >= KEYS
    assert "11-point AP" in result.stdout
    assert metrics["peak_rss_mib"] > 100

    files = tmp_path / "metrics" / "evaluation_test_step_20" / "results"
    assert len(list(files.glob("comp4_det_test_*.txt"))) == 5
    again = tmp_path / "again.json"
    scored = tool("evaluate", "--detections", files, "--annotations", root, "--split", "test",
                  "--metric", "voc", "--output", again)  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    for key in ("voc07_mAP", "voc_mAP", "per_class"):
        assert json.loads(again.read_text())[key] == metrics[key]

    result = tool("evaluate", "--config", config, "--checkpoint", checkpoint, "--metric", "coco",
                  "--output", output)  # fmt: skip
    assert result.returncode == 0, result.stderr
    metrics = json.loads(output.read_text())
    assert metrics["voc_mAP"] == json.loads(again.read_text())["voc_mAP"]
    instances = tmp_path / "instances.json"
    voc_to_coco(root, "test", instances)
    results = files / "coco_test.json"
    for detections in (files, results):  # every pair of files says the same
        for truth in (root, instances):
            for metric, keys in (("coco", COCO_METRICS), ("voc", ("voc07_mAP", "voc_mAP"))):
                scored = tool("evaluate", "--detections", detections, "--annotations", truth,
                              "--metric", metric, "--output", again)  # fmt: skip
                assert scored.returncode == 0, scored.stderr
                read = json.loads(again.read_text())
                assert {key: read[key] for key in keys} == pytest.approx({key: metrics[key] for key in keys})


def test_the_demo_of_the_coco_api_from_the_command_line(tool: Tool, tmp_path: Path) -> None:
    folder = PROJECT / "data" / "coco_eval"
    if not folder.is_dir():
        pytest.skip("data/coco_eval is not there")
    output = tmp_path / "metrics.json"
    result = tool("evaluate", "--detections", folder / "instances_val2014_fakebbox100_results.json",
                  "--annotations", folder / "instances_val2014_100.json", "--metric", "coco",
                  "--output", output)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("AP 0.504581\n")
    metrics = json.loads(output.read_text())
    assert set(metrics) == {*COCO_METRICS, "per_class"}
    assert metrics["AP"] == pytest.approx(0.504580698725, abs=1e-9)
    assert metrics["ARl"] == pytest.approx(0.564290598291, abs=1e-9)
    assert len(metrics["per_class"]) == 80


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
