"""Weakly supervised runs: exact resume, no use of boxes, scores that do not depend on chunks, CorLoc."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detector import Detector
from detector.config import Config
from detector.core.errors import InputError
from detector.core.structures import Detections
from detector.engine.checkpoint import load_checkpoint
from detector.engine.inference import RegionPredictor
from detector.evaluation.corloc import corloc
from detector.factory.loaders import inference_views
from detector.factory.model import build_predictor, restore_model
from detector.models.detector import RegionDetector
from detector.models.wsddn import TwoStreamPredictor, two_stream_scores
from detector.tasks.scoring import Evaluation
from detector.tasks.start import build_scorer, build_task, start_run
from detector.tasks.weak_detection import WeakDetectionTask
from tests.tasks.test_start import assert_identical, final_state
from tests.typed import present

Load = Callable[..., Config]
WEAK = ("task=weak_detection", "test.score_threshold=0.0001", "train.steps=4", "train.checkpoint_every=2")


def train(config: Config, folder: Path, *, resume: bool = False) -> Evaluation[Detections]:
    folder.mkdir(exist_ok=True)
    evaluation: Evaluation[Detections] = start_run(config, folder, "cpu", resume=resume).run()
    return evaluation


def test_resumed_equals_uninterrupted_and_the_checkpoint_is_used_everywhere(
    tiny: Load, tmp_path: Path
) -> None:
    config = tiny(*WEAK, "train.evaluate_every=4", "train.validation_loss=true")
    run = start_run(config, tmp_path / "whole", "cpu")
    whole = run.run()
    train(
        tiny(*WEAK, "train.evaluate_every=4", "train.validation_loss=true", "train.steps=2"),
        tmp_path / "parts",
    )
    again = train(config, tmp_path / "parts", resume=True)
    assert_identical(final_state(tmp_path / "whole", 4), final_state(tmp_path / "parts", 4))
    assert again.metrics["CorLoc"] == whole.metrics["CorLoc"]
    assert "voc07_mAP" in whole.metrics
    run.finish()
    written = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert written["CorLoc"]["split"] == "trainval"
    assert written["CorLoc"]["images"] < 8  # some are set aside
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert any(np.isfinite(one["val_loss"]) for one in log if "val_loss" in one)

    checkpoint = tmp_path / "whole" / "checkpoints" / "step_4.pt"
    detector, scorer = Detector.load(checkpoint, "cpu"), build_scorer(config)
    record = scorer.test_set.records[0]
    boxes = scorer.test_set.proposals(record).boxes
    result = detector(str(record.path), boxes=boxes)
    expected = whole.results[record.image_id]
    assert torch.equal(result.scores, expected.scores)
    assert torch.equal(result.boxes, expected.boxes)


def test_the_training_split_is_scored_with_corloc(tiny: Load, tmp_path: Path) -> None:
    config = tiny(*WEAK)
    run = start_run(config, tmp_path / "run", "cpu")
    at_the_end, model = run.run().metrics["CorLoc"], run.task.model
    assert isinstance(model, RegionDetector)
    scorer = build_scorer(config, split="trainval")
    assert scorer.evaluate(model).metrics["CorLoc"] == at_the_end
    assert "CorLoc" not in build_scorer(config, split="test").evaluate(model).metrics
    predictor, test_set = build_predictor(config, model.eval(), "cpu"), scorer.test_set
    assert isinstance(predictor, RegionPredictor)
    best = scorer.predicted(predictor.best, test_set)
    assert corloc(test_set.records, scorer.classes, best)["CorLoc"] == at_the_end["CorLoc"]
    views = inference_views(config, test_set.records, test_set.proposals)
    for record, view in zip(test_set.records, views, strict=True):
        regions, found = predictor.regions(view), best[record.image_id]
        assert torch.equal(found.scores, regions.scores.amax(dim=0)[found.labels])
        assert sorted(found.labels.tolist()) == list(range(1, len(scorer.classes) + 1))
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_boxes_have_no_influence_on_training(tiny: Load, tmp_path: Path) -> None:
    """Other boxes with the same labels give the same losses and weights, with every augmentation."""
    config = tiny(
        *WEAK,
        "train.augment.expand={probability: 1.0, max_ratio: 2.0}",
        "train.augment.color_jitter.brightness=0.3",
        "train.vertical_flip=0.5",
    )
    weights = []
    for changed in (False, True):
        task = WeakDetectionTask(config, "cpu")
        if changed:
            dataset = task._read_training(None)
            objects, rng = dataset.records.objects, np.random.default_rng(0)
            boxes = objects.boxes[rng.permutation(len(objects.boxes))] * 0.7 + 3
            boxes[0] = (9.0, 9.0, 1.0, 1.0)
            moved = replace(objects, boxes=boxes, area=objects.area * 2)
            task.records = task._trained_records(
                replace(dataset, records=replace(dataset.records, objects=moved))
            )
        optimizer = torch.optim.SGD(task.model.parameters(), lr=0.01)
        torch.manual_seed(5)
        batches = task.batches(0)
        for _ in range(3):
            optimizer.zero_grad()
            loss = task.step(next(batches))["loss_cls"]
            loss.backward()
            optimizer.step()
        batches.close()
        weights.append((loss.item(), {name: one.clone() for name, one in task.model.state_dict().items()}))
    assert weights[0][0] == weights[1][0]
    assert_identical(weights[0][1], weights[1][1])


def test_labels_have_an_influence_on_training(tiny: Load) -> None:
    task = build_task(tiny(*WEAK), "cpu")
    batches = task.batches(0)
    batch = next(batches)
    batches.close()
    task.model.eval()  # no dropout
    losses = [
        task.step(one)["loss_cls"].item() for one in (batch, replace(batch, targets=batch.targets[::-1]))
    ]
    assert losses[0] != losses[1]
    assert task.count(batch) == 2


def test_scores_do_not_depend_on_chunks_and_count_equal_regions(tiny: Load) -> None:
    """A softmax over regions is over all of an image's, whatever parts they are computed in."""
    task = build_task(tiny(*WEAK), "cpu")
    model = task.model.eval()
    assert isinstance(model.predictor, TwoStreamPredictor)
    torch.nn.init.normal_(model.predictor.region_score.weight)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 96, 128, generator=generator)
    corners = torch.rand(60, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([128.0, 96.0])
    boxes = torch.cat((corners.flatten(1), corners.flatten(1)[:20]))  # 20 of them twice
    rois = torch.cat((torch.zeros(80, 1), boxes), dim=1)
    with torch.no_grad():
        levels, found = model.features(images), []
        for chunk in (1, 7, 1024):
            model.roi_chunk = chunk
            found.append(two_stream_scores(model.predict(levels, rois)))
    with_gradients = two_stream_scores(model.predict(levels, rois))  # all at once, none merged
    for scores in found:
        torch.testing.assert_close(scores, with_gradients, rtol=1e-4, atol=1e-7)
    assert torch.equal(found[0][60:], found[0][:20])
    assert with_gradients[:, 1:].sum(dim=0).max() <= 1 + 1e-5
    assert present(model.predict(levels, rois).region_logits).shape == (80, len(task.classes) + 1)


def test_a_supervised_run_may_start_from_weak_weights(tiny: Load, tmp_path: Path) -> None:
    train(tiny(*WEAK, "train.steps=1"), tmp_path / "weak")
    path = tmp_path / "weak" / "checkpoints" / "best.pt"
    task = build_task(tiny(f"train.initial_weights={path}"), "cpu")
    weak = restore_model(tiny(*WEAK), load_checkpoint(path), str(path))
    assert_identical(task.model.box_head.state_dict(), weak.box_head.state_dict())
    with pytest.raises(InputError, match="weak_detection"):
        restore_model(tiny(), load_checkpoint(path), str(path))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.augment.crop.probability=0.5", "train.augment.crop"),
        ("train.augment.cutout.probability=0.5", "train.augment.cutout"),
        ("train.sampling={kind: ohem}", "train.sampling.kind"),
        ("train.trainable=boxes", "train.trainable"),
        ("model.head.scores=svm", "model.head.scores"),
        ("test.refinements=1", "test.refinements"),
        ("stages=[{name: a, kind: train}]", "stages"),
        ("proposals.method=null", "proposals"),
    ],
)
def test_settings_that_need_boxes_are_refused(tiny: Load, override: str, key: str) -> None:
    with pytest.raises(InputError, match=key):
        tiny(*WEAK, override)
