"""The F1-best score threshold against a slow oracle that matches again at every threshold."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from detector.core import boxes as box_ops
from detector.core.structures import Detections, Targets
from detector.evaluation.operating_point import OperatingPoint, at_threshold, best_f1
from detector.evaluation.voc import VocEvaluator

CLASSES = ("a", "b", "c")
Images = list[tuple[Targets, Detections]]


def random_images(seed: int, count: int = 6) -> Images:
    """Return images with objects, some of them difficult, and detections near them; many scores are equal."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    images: Images = []
    for _ in range(count):
        objects, found = int(integers(4)), int(integers(12))
        corners = integers(40, objects, 2).float()
        boxes = torch.cat((corners, corners + 10 + integers(20, objects, 2)), dim=1)
        difficult = integers(5, objects) == 0
        labels = integers(3, objects) + 1
        targets = Targets.make(boxes, labels, difficult=difficult)
        near = integers(max(objects, 1), found)
        if objects:
            guesses = boxes[near] + integers(7, found, 4) - 3
            guessed = torch.where(integers(4, found) > 0, labels[near], integers(3, found) + 1)
        else:
            guesses = torch.tensor([[0.0, 0.0, 15.0, 15.0]]).repeat(found, 1)
            guessed = integers(3, found) + 1
        scores = integers(8, found).float() / 8
        images.append((targets, Detections(boxes=guesses, scores=scores, labels=guessed)))
    return images


def counted(images: Images, threshold: float) -> tuple[int, int, int]:
    """Match the detections at or above ``threshold`` one by one; return hits, false positives and objects."""
    hits = misses = objects = 0
    for targets, found in images:
        objects += int((~targets.difficult).sum())
        taken: set[int] = set()
        for row in torch.sort(found.scores, descending=True, stable=True).indices.tolist():
            if found.scores[row] < threshold:
                continue
            same = [at for at in range(len(targets)) if targets.labels[at] == found.labels[row]]
            overlaps = {
                at: float(box_ops.iou(found.boxes[row, None].double(), targets.boxes[at, None].double()))
                for at in same
            }
            best = max(overlaps, key=lambda at: overlaps[at], default=-1)
            if best < 0 or overlaps[best] < 0.5:
                misses += 1
            elif not targets.difficult[best]:
                hits += best not in taken
                misses += best in taken
                taken.add(best)
    return hits, misses, objects


def evaluated(images: Images) -> VocEvaluator:
    evaluator = VocEvaluator({str(at): targets for at, (targets, _) in enumerate(images)}, CLASSES)
    for at, (_, found) in enumerate(images):
        evaluator.update([str(at)], [found])
    return evaluator


def oracle(images: Images, threshold: float) -> OperatingPoint:
    hits, misses, objects = counted(images, threshold)
    kept = hits + misses
    precision, recall = (hits / kept if kept else 0.0), hits / objects
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return OperatingPoint(threshold, precision, recall, f1, misses / len(images), len(images), objects)


def assert_same(found: OperatingPoint | None, expected: OperatingPoint) -> None:
    assert found is not None
    assert asdict(found) == pytest.approx(asdict(expected))


@pytest.mark.parametrize("seed", range(25))
def test_the_best_threshold_is_that_of_a_search_over_all(seed: int) -> None:
    images = random_images(seed)
    candidates = sorted({float(score) for _, found in images for score in found.scores}, reverse=True)
    expected = max((oracle(images, threshold) for threshold in candidates), key=lambda point: point.f1)
    assert_same(best_f1(evaluated(images).precision_recall().values(), len(images)), expected)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.375, 0.4, 1.0, 2.0])
def test_any_threshold_is_counted_as_by_hand(threshold: float) -> None:
    images = random_images(7)
    curves = evaluated(images).precision_recall().values()
    assert_same(at_threshold(curves, len(images), threshold), oracle(images, threshold))


def test_the_best_threshold_is_reached_by_the_detection_that_it_is_the_score_of() -> None:
    images = random_images(3)
    curves = list(evaluated(images).precision_recall().values())
    best = best_f1(curves, len(images))
    assert best is not None
    assert at_threshold(curves, len(images), best.score_threshold) == best


def test_without_objects_or_without_hits_there_is_none() -> None:
    box, nothing = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), Targets.empty()
    found = Detections(boxes=box, scores=torch.tensor([0.9]), labels=torch.tensor([1]))
    curves = list(evaluated([(nothing, found)]).precision_recall().values())
    assert best_f1(curves, 1) is None
    assert at_threshold(curves, 1, 0.5) is None
    missed = Targets.make(box, torch.tensor([2]))
    curves = list(evaluated([(missed, found)]).precision_recall().values())
    assert best_f1(curves, 1) is None
    assert_same(at_threshold(curves, 1, 0.5), OperatingPoint(0.5, 0.0, 0.0, 0.0, 1.0, 1, 1))
