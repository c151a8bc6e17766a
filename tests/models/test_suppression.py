"""Suppression of the best part of the candidates against suppression of all of them, class by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from detector.core import boxes as box_ops
from detector.core.structures import Detections
from detector.models import suppression
from detector.models.suppression import best_detections
from tests.conftest import MakeBoxes

Candidates = tuple[Tensor, Tensor, Tensor]
MakeCandidates = Callable[[int, int, float, int], Candidates]


@pytest.fixture
def make_candidates(make_boxes: MakeBoxes) -> MakeCandidates:
    """Return ``make(count, classes, extent, seed)``; many scores are equal, labels increase."""

    def make(count: int, classes: int, extent: float, seed: int) -> Candidates:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(1, classes + 1, (count,), generator=generator).sort().values
        scores = torch.randint(0, max(1, count // 3), (count,), generator=generator) / 1000
        return make_boxes(count, extent, seed), scores, labels

    return make


def every_class_in_full(
    boxes: Tensor, scores: Tensor, labels: Tensor, nms_threshold: float, count: int
) -> Detections:
    """Suppress all candidates of each class, put the classes behind each other, sort, and cut."""
    kept = [torch.zeros(0, dtype=torch.int64)]
    for label in labels.unique():
        rows = torch.nonzero(labels == label).squeeze(1)
        kept.append(rows[nms(boxes[rows], scores[rows], nms_threshold)])
    every = torch.cat(kept)
    chosen = every[torch.sort(scores[every], descending=True, stable=True).indices[:count]]
    return Detections(boxes=boxes[chosen], scores=scores[chosen], labels=labels[chosen])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [1, 7])
@pytest.mark.parametrize("extent", [12.0, 500.0])  # nearly all are suppressed; few are
@pytest.mark.parametrize("count", [1, 20, 100])
@pytest.mark.parametrize("candidates", [0, 1, 50, 3000])
def test_equals_suppression_of_all_candidates(
    make_candidates: MakeCandidates, candidates: int, count: int, extent: float, classes: int, seed: int
) -> None:
    given = make_candidates(candidates, classes, extent, seed)
    found, expected = best_detections(*given, 0.3, count), every_class_in_full(*given, 0.3, count)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)


def test_more_candidates_are_looked_at_only_where_too_few_are_left(
    make_candidates: MakeCandidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    suppress = suppression.suppress

    def recording(boxes: Tensor, *others: Any) -> Tensor:
        sizes.append(len(boxes))
        return suppress(boxes, *others)

    monkeypatch.setattr(suppression, "suppress", recording)
    best_detections(*make_candidates(3000, 7, 500.0, 0), 0.3, 20)
    assert sizes == [200]
    sizes.clear()
    found = best_detections(*make_candidates(3000, 1, 12.0, 0), 0.0, 100)
    assert len(found) < 100
    assert sizes == [1000, 3000]


@pytest.mark.gpu
def test_a_gpu_keeps_the_same_candidates(make_candidates: MakeCandidates) -> None:
    given = make_candidates(3000, 7, 100.0, 0)
    expected = best_detections(*given, 0.3, 100)
    found = best_detections(given[0].cuda(), given[1].cuda(), given[2].cuda(), 0.3, 100)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)


def without_nested_slowly(
    boxes: Tensor, scores: Tensor, labels: Tensor, nms_threshold: float, nested_threshold: float
) -> list[int]:
    """Go through the candidates by decreasing score and compare each with those that were kept."""
    stayed: list[int] = []
    for row in torch.sort(scores, descending=True, stable=True).indices.tolist():
        for other in stayed:
            shared = float(box_ops.intersection(boxes[row, None], boxes[other, None]))
            areas = [float(box_ops.area(boxes[at, None])) for at in (row, other)]
            too_close = (
                shared / (sum(areas) - shared) > nms_threshold or shared / min(areas) > nested_threshold
            )
            if labels[row] == labels[other] and too_close:
                break
        else:
            stayed.append(row)
    return stayed


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nested", [0.0, 0.5, 0.8, 1.0])
def test_nested_boxes_are_dropped_by_better_ones_that_stay(
    make_candidates: MakeCandidates, nested: float, seed: int
) -> None:
    boxes, scores, labels = make_candidates(60, 3, 60.0, seed)
    expected = without_nested_slowly(boxes, scores, labels, 0.4, nested)
    found = best_detections(boxes, scores, labels, 0.4, 100, nested)
    assert torch.equal(found.boxes, boxes[expected])
    assert torch.equal(found.labels, labels[expected])
    few = best_detections(boxes, scores, labels, 0.4, 2, nested)
    assert torch.equal(few.boxes, found.boxes[:2])


def test_a_part_beside_the_whole_is_dropped_and_another_class_stays() -> None:
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0], [10.0, 10.0, 40.0, 40.0], [10.0, 10.0, 40.0, 40.0]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 1, 2])
    assert best_detections(boxes, scores, labels, 0.3, 9).labels.tolist() == [1, 1, 2]
    found = best_detections(boxes, scores, labels, 0.3, 9, 0.8)
    assert found.labels.tolist() == [1, 2]
    assert torch.equal(found.boxes, boxes[[0, 2]])


def without_nested_by_matrices(boxes: Tensor, nms_threshold: float, nested_threshold: float) -> Tensor:
    """Compare every pair of one class's candidates at once."""
    shared, area = box_ops.intersection(boxes, boxes), box_ops.area(boxes)
    nested = shared / torch.minimum(area[:, None], area[None, :]).clamp(min=1e-6) > nested_threshold
    dropped_by = nested | (box_ops.iou(boxes, boxes) > nms_threshold)
    alive, kept = torch.ones(len(boxes), dtype=torch.bool), []
    for row in range(len(boxes)):
        if alive[row]:
            kept.append(row)
            alive &= ~dropped_by[row]
    return torch.tensor(kept, dtype=torch.int64)


@pytest.mark.parametrize("extent", [20.0, 300.0])
@pytest.mark.parametrize("candidates", [0, 1, 127, 128, 129, 1000])
def test_blocks_leave_what_matrices_of_all_pairs_leave(
    make_boxes: MakeBoxes, candidates: int, extent: float
) -> None:
    boxes = make_boxes(candidates, extent, 0)
    scores, labels = torch.linspace(1, 0, candidates), torch.ones(candidates, dtype=torch.int64)
    expected = without_nested_by_matrices(boxes, 0.4, 0.8)
    assert torch.equal(suppression.suppress(boxes, scores, labels, 0.4, 0.8), expected)
    few = suppression.suppress(boxes, scores, labels, 0.4, 0.8, 5)
    assert torch.equal(few[:5], expected[:5])
    assert torch.equal(few, expected[: len(few)])


def test_nested_boxes_of_many_candidates_take_no_square_of_memory(
    make_boxes: MakeBoxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices of 8000 candidates took 2 GiB and 8 seconds."""
    pairs: list[int] = []
    intersection = box_ops.intersection

    def recording(first: Tensor, second: Tensor) -> Tensor:
        pairs.append(len(first) * len(second))
        return intersection(first, second)

    monkeypatch.setattr(box_ops, "intersection", recording)
    boxes, scores = make_boxes(20000, 5000.0, 0), torch.linspace(1, 0, 20000)
    labels = torch.ones(20000, dtype=torch.int64)
    assert len(best_detections(boxes, scores, labels, 0.3, 300, 0.8)) == 300
    assert sum(pairs) < 10**6
    pairs.clear()
    crowded = torch.cat((boxes[:150], boxes[:150].repeat_interleave(132, dim=0)))
    assert len(best_detections(crowded, scores[: len(crowded)], labels[: len(crowded)], 0.3, 300, 0.8)) <= 150
    assert max(pairs) <= 150 * suppression.BLOCK
