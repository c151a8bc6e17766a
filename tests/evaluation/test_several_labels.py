"""Objects with several labels, annotated once per label: each class is scored as in a data set of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detector.core.structures import Detections, ImageRecord, Targets
from detector.evaluation.report import COCO_METRICS
from detector.evaluation.voc import VocEvaluator
from tests.evaluation.test_coco import evaluator_of
from tests.evaluation.test_voc import CLASSES, evaluate, expected_metrics

from .reference import Found, Thing

LABELS = ("cell", "round", "stained")


def scene(seed: int) -> tuple[list[ImageRecord], list[Detections]]:
    """Images whose objects have one to three labels, and detections of the same boxes with several labels."""
    rng = np.random.default_rng(seed)
    records, found = [], []
    for number in range(4):
        corners = rng.integers(0, 60, (5, 2))
        boxes = np.concatenate((corners, corners + rng.integers(10, 40, (5, 2))), axis=1).astype(np.float32)
        has = rng.random((5, 3)) < 0.6
        rows, labels = np.nonzero(has)
        targets = Targets.make(torch.from_numpy(boxes[rows]), torch.from_numpy(labels + 1))
        records.append(
            ImageRecord(image_id=f"{number}", path=Path("none"), height=100, width=100, targets=targets)
        )
        moved = boxes + rng.integers(-3, 4, boxes.shape)
        rows, labels = np.nonzero(has | (rng.random(has.shape) < 0.5))
        scores = np.sort(rng.random(len(rows)))[::-1].astype(np.float32)
        order = rng.permutation(len(rows))
        found.append(
            Detections(
                boxes=torch.from_numpy(moved[rows[order]].astype(np.float32)),
                scores=torch.from_numpy(scores.copy()),
                labels=torch.from_numpy(labels[order] + 1),
            )
        )
    return records, found


def of_one_label(
    records: list[ImageRecord], found: list[Detections], label: int
) -> tuple[list[ImageRecord], list[Detections]]:
    """The same images with the objects and detections of one class only, which is class 1 there."""
    images, results = [], []
    for record, one in zip(records, found, strict=True):
        mine, here = record.targets.labels == label, one.labels == label
        targets = Targets.make(record.targets.boxes[mine], torch.ones(int(mine.sum()), dtype=torch.int64))
        images.append(
            ImageRecord(image_id=record.image_id, path=record.path, height=100, width=100, targets=targets)
        )
        count = int(here.sum())
        labels = torch.ones(count, dtype=torch.int64)
        results.append(Detections(boxes=one.boxes[here], scores=one.scores[here], labels=labels))
    return images, results


@pytest.mark.parametrize("seed", range(3))
def test_each_label_is_scored_by_itself(seed: int) -> None:
    records, found = scene(seed)
    ids = [record.image_id for record in records]
    voc, coco = VocEvaluator(records, LABELS), evaluator_of(records, list(LABELS))
    voc.update(ids, found)
    coco.update(ids, found)
    voc_rows, coco_rows = voc.compute()["per_class"], coco.compute()["per_class"]
    for label, name in enumerate(LABELS, start=1):
        images, results = of_one_label(records, found, label)
        voc_one, coco_one = VocEvaluator(images, [name]), evaluator_of(images, [name])
        voc_one.update(ids, results)
        coco_one.update(ids, results)
        assert voc_rows[name] == voc_one.compute()["per_class"][name]
        assert 0.2 < voc_rows[name]["voc_AP"] < 1
        alone = coco_one.compute()
        assert coco_rows[name]["AP"] == pytest.approx(alone["AP"], abs=1e-12)
        assert coco_rows[name]["AP50"] == pytest.approx(alone["AP50"], abs=1e-12)
        assert set(alone) >= set(COCO_METRICS)


def test_one_box_with_two_labels_is_two_hits_by_the_rules_of_voc() -> None:
    box, near = (1, 1, 10, 10), (1, 1, 10, 9)
    things = {"a": [(1, Thing(box, False)), (2, Thing(box, False))], "b": [(1, Thing(box, False))]}
    found = [
        (1, Found("a", 0.9, box)),
        (2, Found("a", 0.8, box)),
        (2, Found("a", 0.7, near)),  # its object has this label and is found already: a false positive
        (2, Found("b", 0.6, box)),  # the object does not have this label
        (1, Found("b", 0.5, near)),
    ]
    rows = evaluate(things, found)["per_class"]
    for label, name in enumerate(CLASSES, start=1):
        wanted = expected_metrics(things, found, label, "0.5")
        assert (rows[name]["voc07_AP"], rows[name]["voc_AP"]) == pytest.approx(wanted, abs=1e-12)
        assert rows[name]["voc_AP"] == 1
