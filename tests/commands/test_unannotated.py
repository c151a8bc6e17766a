"""Test sets without annotations: result files for a server, no score, exit status 0."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from detector.data.convert import voc_to_coco
from detector.data.generated.dataset import generate_voc
from detector.evaluation.report import NOTHING_SCORED
from tests.commands.conftest import Tool
from tests.tiny import TINY


@pytest.fixture(params=["voc", "coco", "coco_empty", "coco_no_categories"])
def config(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A data set whose split "test" is without annotations."""
    root, kind = tmp_path / "voc", request.param
    generate_voc(root, train_images=4, test_images=2, image_size=(96, 112), seed=2)
    data = {**TINY["data"], "root": str(root), "workers": 0}
    if kind == "voc":
        for image_id in (root / "ImageSets" / "Main" / "test.txt").read_text().split():
            (root / "Annotations" / f"{image_id}.xml").unlink()
    else:
        for split in ("trainval", "test"):
            voc_to_coco(root, split, root / f"{split}.json")
        left_out = {
            "coco": ["annotations"],
            "coco_empty": [],
            "coco_no_categories": ["annotations", "categories"],
        }
        test = json.loads((root / "test.json").read_text()) | {"annotations": []}
        for section in left_out[kind]:
            del test[section]
        (root / "test.json").write_text(json.dumps(test))
        shutil.rmtree(root / "Annotations")
        data |= {"format": "coco", "annotations": "{split}.json", "images": "JPEGImages"}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": data}))
    return path


def test_detection(tool: Tool, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = tool("train", "--config", config, "--output", run, "train.steps=2", "train.evaluate_every=1",
                   "train.evaluate_split=test", "test.metric=coco", "test.score_threshold=0.0")  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout == f"test: {NOTHING_SCORED}\n"
    assert f"step 2: {NOTHING_SCORED}" in trained.stderr
    assert "recall" not in trained.stderr.split("trainval: ")[0]
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["annotated"] is False
    assert not [name for name in figures if "AP" in name]
    assert len(list((run / "results").glob("comp4_det_test_*.txt"))) == 4
    assert json.loads((run / "results" / "coco_test.json").read_text())
    assert (run / "run.png").is_file()

    scored = tool("evaluate", "--config", config, "--checkpoint", run / "checkpoints" / "best.pt",
                  "--split", "test", "--metric", "coco", "--output", tmp_path / "out.json",
                  "test.score_threshold=0.0")  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    assert scored.stdout == f"test: {NOTHING_SCORED}\n"
    assert json.loads((tmp_path / "out.json").read_text())["annotated"] is False
    for name in ("coco_test.json", *(path.name for path in (run / "results").glob("comp4*"))):
        written = (tmp_path / "out" / "evaluation_test_best_step_2" / "results" / name).read_text()
        assert written == (run / "results" / name).read_text()


def test_classification(tool: Tool, config: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(config.read_text())
    del values["proposals"]
    values["model"]["pool"] = {"kind": "spp", "levels": [1, 2]}
    config.write_text(yaml.safe_dump({**values, "task": "classification"}))
    run = tmp_path / "run"
    trained = tool("train", "--config", config, "--output", run, "train.steps=1")
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout == f"test: {NOTHING_SCORED}\n"
    assert len(list((run / "results").glob("comp2_cls_test_*.txt"))) == 4
    scored = tool("evaluate", "--config", config, "--checkpoint", run / "checkpoints" / "best.pt")
    assert (scored.returncode, scored.stdout) == (0, f"test: {NOTHING_SCORED}\n"), scored.stderr


def test_a_split_of_which_some_images_are_annotated_is_an_error(tool: Tool, config: Path) -> None:
    """So that a file that was forgotten is noticed; and training needs annotations."""
    values = yaml.safe_load(config.read_text())
    root = Path(values["data"]["root"])
    if values["data"].get("format") == "coco":
        refused = tool("train", "--config", config, "data.train_split=test", "data.classes=[disk]")
        assert refused.returncode == 2
        return
    split = root / "ImageSets" / "Main" / "test.txt"
    split.write_text(split.read_text() + "\n" + (root / "ImageSets" / "Main" / "trainval.txt").read_text())
    refused = tool("train", "--config", config)
    assert refused.returncode == 2
    assert "has no annotation" in refused.stderr


def test_the_check_says_so_and_that_training_would_start(tool: Tool, config: Path) -> None:
    found = tool("check_data", "--config", config)
    assert found.returncode == 0, found.stdout
    assert "no annotations: no image of test has an annotation" in found.stdout
    assert "problems: 1 no annotations\ntraining would start" in found.stdout
    refused = tool("check_data", "--config", config, "data.train_split=test")
    assert refused.returncode == 1
