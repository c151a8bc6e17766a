"""Greedy non-maximum suppression within each class, for the best detections only."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from detector.core import boxes as box_ops
from detector.core.structures import Detections

FIRST_CANDIDATES = 10
"""Number of candidates in the first round, as a multiple of the number of detections wanted."""
GROWTH = 4
"""Factor by which the number of candidates grows if too few detections are left."""
BLOCK = 128
"""Number of candidates of a class that are compared at a time if nested boxes are dropped too."""


def best_detections(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    nms_threshold: float,
    count: int,
    nested_threshold: float | None = None,
) -> Detections:
    """Return the ``count`` best of the M candidates that suppression keeps, on the CPU, by decreasing score.

    Within each class, a candidate is dropped if its IoU with a better one that is kept is above
    ``nms_threshold``, or if the two share more than ``nested_threshold`` of the smaller one's area. boxes
    (M, 4), scores (M,) and labels (M,) 1..K may be on any device; equal scores keep their order.

    Candidates are sorted on their device. Whether one is kept depends only on better ones, so the best of
    them are copied to the CPU in one transfer and suppressed there; more are copied only if fewer than
    ``count`` are kept. Suppression on a GPU would have to wait for it once per class.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    # One tensor, so that it is one transfer. Labels are far below 2 ** 24, so float32 holds them exactly.
    candidates = torch.cat((boxes, scores[:, None], labels[:, None].to(scores.dtype)), dim=1)[order]
    taken = FIRST_CANDIDATES * count
    while True:
        part = candidates[:taken].cpu()
        boxes, scores, labels = part[:, :4], part[:, 4], part[:, 5].long()
        kept = suppress(boxes, scores, labels, nms_threshold, nested_threshold, count)[:count]
        if len(kept) == count or taken >= len(candidates):
            return Detections(boxes=boxes[kept], scores=scores[kept], labels=labels[kept])
        taken *= GROWTH


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    nms_threshold: float,
    nested_threshold: float | None = None,
    count: int | None = None,
) -> Tensor:
    """Return the rows (D,), in increasing order, of the candidates that suppression within each class keeps.

    Candidates are on the CPU and come by decreasing score. With ``count``, only the first ``count`` rows of
    the result are certain to be complete.

    There is one call per class. A single call for all, with the boxes of each class shifted away from those
    of the others, would lose digits of float32.
    """
    by_label = torch.sort(labels, stable=True).indices
    sizes = torch.unique_consecutive(labels[by_label], return_counts=True)[1].tolist()
    # Tensors are split once for all classes: with 80 classes of few boxes, calls take longer than their work.
    boxes_by_class, scores_by_class = boxes[by_label].split(sizes), scores[by_label].split(sizes)
    rows_by_class = by_label.split(sizes)
    kept = [
        rows[
            nms(own_boxes, own_scores, nms_threshold)
            if nested_threshold is None
            else _without_nested(own_boxes, nms_threshold, nested_threshold, count)
        ]
        for rows, own_boxes, own_scores in zip(rows_by_class, boxes_by_class, scores_by_class, strict=True)
    ]
    return torch.cat(kept).sort().values if kept else by_label


def _without_nested(
    boxes: Tensor, nms_threshold: float, nested_threshold: float, count: int | None
) -> Tensor:
    """Return the rows of one class's candidates (n, 4), by decreasing score, that are kept.

    A better box that is kept also drops a box, however small their IoU is, if more than ``nested_threshold``
    of the smaller of the two lies in the other. ``count`` is that of `suppress`.

    Candidates are taken in blocks: boxes that are kept already drop boxes of the block, and the rest of the
    block is compared with itself. So memory grows with n and not with its square.
    """
    kept = torch.zeros(0, dtype=torch.int64)
    for block in torch.arange(len(boxes)).split(BLOCK):
        if len(kept):
            block = block[~_drops(boxes[kept], boxes[block], nms_threshold, nested_threshold).any(dim=0)]
        dropped_by = _drops(boxes[block], boxes[block], nms_threshold, nested_threshold)
        kept = torch.cat((kept, block[_kept_rows(dropped_by)]))
        if count is not None and len(kept) >= count:
            break
    return kept


def _kept_rows(dropped_by: Tensor) -> Tensor:
    """Return the rows that are kept, if each kept row i drops the later rows in ``dropped_by[i]`` (n, n)."""
    alive = torch.ones(len(dropped_by), dtype=torch.bool)
    kept: list[int] = []
    for row in range(len(dropped_by)):
        if alive[row]:
            kept.append(row)
            alive &= ~dropped_by[row]
    return torch.tensor(kept, dtype=torch.int64)


def _drops(better: Tensor, others: Tensor, nms_threshold: float, nested_threshold: float) -> Tensor:
    """Return (P, G): whether each of the boxes ``better`` (P, 4) drops each of ``others`` (G, 4)."""
    shared = box_ops.intersection(better, others)
    smaller = torch.minimum(box_ops.area(better)[:, None], box_ops.area(others)[None, :])
    nested = shared / smaller.clamp(min=1e-6) > nested_threshold
    return nested | (box_ops.iou(better, others) > nms_threshold)
