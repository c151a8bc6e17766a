"""Greedy non-maximum suppression class by class, of which only the best detections are wanted."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from detector import boxes as box_ops
from detector.structures import Detections

FIRST_CANDIDATES = 10
"""How many candidates are suppressed at first, as a multiple of the number of detections wanted."""
GROWTH = 4
"""By what factor their number grows where too few of them are left."""


def best_detections(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    nms_threshold: float,
    count: int,
    nested_threshold: float | None = None,
) -> Detections:
    """Return the ``count`` best that suppression leaves of M candidates, on the CPU, by falling score.

    Within each class, a candidate is dropped if its IoU with a better one that stays is above
    ``nms_threshold``, or if the two share more than ``nested_threshold`` of the smaller one's area. boxes
    (M, 4), scores (M,) and labels (M,) 1..K may be on any device; equal scores keep their order.

    Candidates are sorted on their device. Whether one of them stays depends only on better ones, so the best
    of them are copied to the CPU in one transfer and suppressed there; more are copied only if fewer than
    ``count`` stay. Suppression on a GPU would have to wait for it once per class.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    # One tensor, so that it is one transfer. Labels are far below 2 ** 24, so float32 holds them exactly.
    candidates = torch.cat((boxes, scores[:, None], labels[:, None].to(scores.dtype)), dim=1)[order]
    taken = FIRST_CANDIDATES * count
    while True:
        part = candidates[:taken].cpu()
        boxes, scores, labels = part[:, :4], part[:, 4], part[:, 5].long()
        kept = suppress(boxes, scores, labels, nms_threshold, nested_threshold)[:count]
        if len(kept) == count or taken >= len(candidates):
            return Detections(boxes=boxes[kept], scores=scores[kept], labels=labels[kept])
        taken *= GROWTH


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, nms_threshold: float, nested_threshold: float | None = None
) -> Tensor:
    """Return the rows (D,), rising, that suppression within each class leaves of candidates on the CPU.

    Candidates come by falling score.

    Each class has a call of its own. One call for all, with the boxes of each class shifted to a place of
    their own, would lose digits of float32.
    """
    by_label = torch.sort(labels, stable=True).indices
    sizes = torch.unique_consecutive(labels[by_label], return_counts=True)[1].tolist()
    # Little is done per class: with 80 classes and few boxes in each, the calls take longer than their work.
    boxes_by_class, scores_by_class = boxes[by_label].split(sizes), scores[by_label].split(sizes)
    rows_by_class = by_label.split(sizes)
    kept = [
        rows[
            nms(own_boxes, own_scores, nms_threshold)
            if nested_threshold is None
            else _without_nested(own_boxes, nms_threshold, nested_threshold)
        ]
        for rows, own_boxes, own_scores in zip(rows_by_class, boxes_by_class, scores_by_class, strict=True)
    ]
    return torch.cat(kept).sort().values if kept else by_label


def _without_nested(boxes: Tensor, nms_threshold: float, nested_threshold: float) -> Tensor:
    """Return the rows that stay of one class's candidates (n, 4), by falling score.

    A box is dropped by a better one that stays also where one of the two lies in the other to more than
    ``nested_threshold``, however small their IoU.
    """
    shared, area = box_ops.intersection(boxes, boxes), box_ops.area(boxes)
    nested = shared / torch.minimum(area[:, None], area[None, :]).clamp(min=1e-6) > nested_threshold
    dropped_by = nested | (box_ops.iou(boxes, boxes) > nms_threshold)
    alive = torch.ones(len(boxes), dtype=torch.bool)
    kept: list[int] = []
    for row in range(len(boxes)):
        if alive[row]:
            kept.append(row)
            alive &= ~dropped_by[row]
    return torch.tensor(kept, dtype=torch.int64)
