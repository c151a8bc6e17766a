"""How many of the objects have a proposal close enough: the first thing to know about proposals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from detector.core import boxes as box_ops
from detector.core.structures import ImageRecord, Proposals
from detector.proposals.prepare import filter_proposals


class ProposalsByKey(Protocol):
    """Anything that gives the proposals of an image by its key: a store, or a dictionary."""

    def __getitem__(self, key: str, /) -> Proposals: ...


def best_overlaps(target_boxes: Tensor, proposals: Proposals) -> Tensor:
    """Return for each of ``target_boxes`` (G, 4) its highest IoU with a proposal, (G,), 0 without any."""
    if len(proposals) == 0:
        return torch.zeros(len(target_boxes))
    return box_ops.iou(target_boxes, proposals.boxes).amax(dim=1)


def recall(
    records: Iterable[ImageRecord],
    store: ProposalsByKey,
    iou_thresholds: Sequence[float] = (0.5, 0.7),
    *,
    limit: int | None = None,
    include_difficult: bool = True,
) -> dict[str, float]:
    """Return the share of objects that a proposal covers with at least each IoU threshold.

    Keys: ``recall_0.5`` and so on for each threshold, ``mean_best_overlap`` over all objects, ``objects``,
    ``images`` and ``proposals_per_image``. Crowd regions do not count as objects. ``limit`` takes the best
    proposals of each image only (by score, or the first where there are none). Without any object the
    figures are 0.
    """
    overlaps, counts = [torch.zeros(0)], []
    for record in records:
        proposals = store[record.key]
        if limit is not None:
            proposals = filter_proposals(proposals, (record.height, record.width), top_k=limit)
        targets = record.targets
        wanted = ~targets.crowd if include_difficult else ~(targets.crowd | targets.difficult)
        overlaps.append(best_overlaps(targets.boxes[wanted], proposals))
        counts.append(len(proposals))
    best = torch.cat(overlaps)
    objects = len(best)
    figures = {
        f"recall_{threshold:g}": float((best >= threshold).sum()) / max(objects, 1)
        for threshold in iou_thresholds
    }
    return figures | {
        "mean_best_overlap": float(best.sum()) / max(objects, 1),
        "objects": float(objects),
        "images": float(len(counts)),
        "proposals_per_image": sum(counts) / max(len(counts), 1),
    }
