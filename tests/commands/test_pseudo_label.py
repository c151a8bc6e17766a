"""tools/pseudo_label.py: a detector's boxes as annotations that another detector is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from detector.config import Config, load_config
from detector.core.structures import ImageRecord
from detector.data.convert import voc_to_coco
from detector.data.voc.source import VocSource
from detector.engine.checkpoint import load_checkpoint
from detector.factory.loaders import inference_views
from detector.factory.model import build_predictor, restore_model
from detector.tasks.start import build_scorer, start_run
from tests.commands.conftest import Result, Tool
from tests.tiny import TINY

Label = Callable[..., Result]


@pytest.fixture(params=["weak_detection", "detection"])
def run(request: pytest.FixtureRequest, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run on the data set ``root``, whose config is ``tiny.yaml``."""
    monkeypatch.chdir(tmp_path)
    settings = {"task": request.param, "data": {**TINY["data"], "root": str(root)}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **settings}))
    (tmp_path / "run").mkdir()
    start_run(load_config(tmp_path / "tiny.yaml", ["train.steps=2"]), tmp_path / "run", "cpu").run()
    return tmp_path / "run"


def read(config: Config, split: str) -> list[ImageRecord]:
    """Read a split of the pseudo labels, whose annotations and splits ``config`` names."""
    data = config.data
    source = VocSource(Path(data.root), annotations=data.annotations, images=data.images, splits=data.splits)
    assert isinstance(data.classes, tuple)
    return list(source.load(split, data.classes, training=False, unannotated=True).records)


def test_the_best_box_of_each_present_class_is_read_again_and_trained_on(
    run: Path, root: Path, tmp_path: Path, tool: Tool
) -> None:
    for hidden in (root / "ImageSets/Main/test.txt").read_text().split():  # their content is never read
        (root / f"Annotations/{hidden}.xml").write_text("not XML")
    result = tool("pseudo_label", "--checkpoint", run, "--split", "trainval", "--output", "pseudo")
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "pseudo/pseudo_labels.json").read_text())
    changed = load_config(tmp_path / "tiny.yaml", [*record["changes"], "task=detection", "train.steps=1"])

    state = load_checkpoint(run / "checkpoints/best.pt")
    config = load_config(run / "config.yaml", [f"data.classes={json.dumps(state['classes'])}"])
    scorer = build_scorer(config, split="trainval")
    predictor = build_predictor(config, restore_model(config, state, "best.pt"), "cpu")
    views = inference_views(config, scorer.test_set.records, scorer.test_set.proposals)
    boxes = 0
    for truth, found, view in zip(scorer.test_set.records, read(changed, "trainval"), views, strict=True):
        assert (found.image_id, found.path, found.key) == (truth.image_id, truth.path.resolve(), truth.key)
        regions = predictor.regions(view)  # type: ignore[attr-defined]
        present = sorted(set(truth.targets.labels[~truth.targets.difficult].tolist()))
        assert sorted(found.targets.labels.tolist()) == present
        for box, label in zip(found.targets.boxes, found.targets.labels.tolist(), strict=True):
            row = max(range(len(regions.scores)), key=lambda place: regions.scores[place, label])
            assert torch.equal(box, regions.boxes[row, label])
        boxes += len(present)
    assert record["boxes"] == boxes == sum(record["per_class"].values())
    assert [len(one.targets) for one in read(changed, "test")] == [0, 0]
    assert not any((tmp_path / "pseudo").rglob("*.jpg"))

    (tmp_path / "second").mkdir()
    evaluation = start_run(changed, tmp_path / "second", "cpu").run()
    assert evaluation.metrics["annotated"] is False


def test_boxes_above_a_threshold(run: Path, tmp_path: Path, tool: Tool) -> None:
    config = load_config(run / "config.yaml", ["test.score_threshold=0.0"])
    result = tool(
        *("pseudo_label", "--checkpoint", run / "checkpoints/step_2.pt", "--split", "trainval"),
        *("--output", "pseudo", "--score-threshold", "0.0"),
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "pseudo/pseudo_labels.json").read_text())
    changed = load_config(tmp_path / "tiny.yaml", record["changes"])
    state = load_checkpoint(run / "checkpoints/step_2.pt")
    scorer = build_scorer(config, split="trainval")
    results = scorer.evaluate(restore_model(config, state, "step_2.pt")).results
    for truth, found in zip(scorer.test_set.records, read(changed, "trainval"), strict=True):
        detections = results[truth.image_id]
        shown = truth.targets.presence(len(state["classes"]))[detections.labels - 1] > 0
        assert torch.equal(found.targets.boxes, detections.boxes[shown])
        assert torch.equal(found.targets.labels, detections.labels[shown])
    assert record["score_threshold"] == 0.0


@pytest.mark.parametrize("run", ["detection"], indirect=True)
def test_what_is_refused(run: Path, root: Path, tmp_path: Path, tool: Tool) -> None:
    def refused(*changes: str, checkpoint: Path = run) -> str:
        options = dict(zip(changes[::2], changes[1::2], strict=True))
        wanted = {"--split": "trainval", "--output": "new", **options}
        result = tool(
            "pseudo_label", "--checkpoint", checkpoint, *(part for pair in wanted.items() for part in pair)
        )
        assert result.returncode == 2, result.stderr
        assert not (tmp_path / "new").exists()
        assert not list(tmp_path.glob(".new*"))
        return " ".join(result.stderr.split())

    (tmp_path / "kept").mkdir()
    assert "nothing is overwritten" in refused("--output", "kept")
    assert not list((tmp_path / "kept").iterdir())
    assert "this is the test split" in refused("--split", "test")
    assert "the folder has no checkpoints/best.pt" in refused(checkpoint=tmp_path / "kept")
    assert "finite" in refused("--score-threshold", "nan")
    assert "no box was found" in refused("--score-threshold", "2.0")
    (root / "ImageSets/Main/both.txt").write_text((root / "ImageSets/Main/test.txt").read_text())
    assert "in the test split 'test' too" in refused("--split", "both")
    ids = (root / "ImageSets/Main/trainval.txt").read_text().split()
    (root / "ImageSets/Main/bare.txt").write_text(ids[0])
    (root / f"Annotations/{ids[0]}.xml").unlink()
    assert "give --score-threshold" in refused("--split", "bare")


@pytest.mark.parametrize("run", ["detection"], indirect=True)
def test_a_data_set_in_cocos_format(run: Path, root: Path, tmp_path: Path, tool: Tool) -> None:
    for split in ("trainval", "test"):
        voc_to_coco(root, split, root / f"annotations/instances_{split}.json")
    coco = {**TINY, "data": {**TINY["data"], "root": str(root), "format": "coco", "images": "JPEGImages"}}
    (tmp_path / "coco.yaml").write_text(yaml.safe_dump(coco))
    changes = (
        "data.format=coco",
        "data.annotations=annotations/instances_{split}.json",
        "data.images=JPEGImages",
    )
    options = [part for change in changes for part in ("--set", change)]
    result = tool("pseudo_label", "--checkpoint", run, "--split", "trainval", "--output", "pseudo", *options)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "pseudo/pseudo_labels.json").read_text())
    changed = load_config(tmp_path / "coco.yaml", record["changes"])
    records = read(changed, "trainval")
    assert record["boxes"] == sum(len(one.targets) for one in records) > 0
    assert {one.key for one in records} == {f"JPEGImages/{one.image_id}.jpg" for one in records}
