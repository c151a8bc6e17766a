"""Non-maximum suppression within each class as one operator, for exported networks.

`suppress` is an operator of torch that ``export.formats`` translates to one NonMaxSuppression of ONNX.
`suppress_by_class` computes the same with torchvision's ``nms``, and so does `kept_by_class`, for programs of
``torch.export``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import nms


def kept_by_class(boxes: Tensor, scores: Tensor, nms_threshold: float, score_threshold: float) -> Tensor:
    """Return (K, R) bool: which boxes (K, R, 4) of each class and region are kept; see `suppress_by_class`.

    There is no limit on their number. Every step has a length that is known beforehand, as programs of
    ``torch.export`` need it; that makes this slower.
    """
    kept = []
    for own_boxes, own_scores in zip(boxes.unbind(0), scores.unbind(0), strict=True):
        candidate = own_scores > score_threshold
        # The others come last, so they drop no candidate, and they share no area with any box. Two more rows
        # are kept always: to an exporter torchvision promises at least two.
        placed = torch.where(candidate[:, None], own_boxes, torch.zeros_like(own_boxes))
        placed = functional.pad(placed, (0, 0, 0, _EXTRA))
        ranked = functional.pad(own_scores, (0, _EXTRA), value=-torch.inf)
        found = torch.zeros_like(ranked, dtype=torch.bool).index_fill(
            0, nms(placed, ranked, nms_threshold), True
        )
        kept.append(found[:-_EXTRA] & candidate)
    return torch.stack(kept)


_EXTRA = 2


def suppress_by_class(
    boxes: Tensor, scores: Tensor, nms_threshold: float, score_threshold: float, count: int
) -> Tensor:
    """Return the rows (class from 0, region) that are kept, (M, 2) int64: class after class, best first.

    Args:
        boxes: (K, R, 4), x1, y1, x2, y2, of each class and region.
        scores: (K, R); those at or below ``score_threshold`` are left out.
        nms_threshold: a box is dropped if its IoU with a better one of its class, which is kept, is above
            this.
        count: how many of a class are kept at most.
    """
    found = []
    for number, (own_boxes, own_scores) in enumerate(zip(boxes.unbind(0), scores.unbind(0), strict=True)):
        rows = (own_scores > score_threshold).nonzero()[:, 0]
        rows = rows[nms(own_boxes[rows], own_scores[rows], nms_threshold)][:count]
        found.append(torch.stack((torch.full_like(rows, number), rows), dim=1))
    return torch.cat(found)


@torch.library.custom_op("detector_portable::suppress", mutates_args=())
def suppress(
    boxes: Tensor, scores: Tensor, nms_threshold: float, score_threshold: float, count: int
) -> Tensor:
    """`suppress_by_class` as one operator."""
    return suppress_by_class(boxes, scores, nms_threshold, score_threshold, count)


@suppress.register_fake
def _fake(boxes: Tensor, scores: Tensor, nms_threshold: float, score_threshold: float, count: int) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return scores.new_empty((kept, 2), dtype=torch.int64)
