"""Slow references, image by image, for what `detector.proposals` computes natively for a whole data set."""

from __future__ import annotations

import numpy as np
import torch

from detector.core import boxes as box_ops
from detector.core.structures import ImageRecord, Proposals
from detector.models.box_coder import TargetSums
from detector.models.roi_sampler import trained_objects
from detector.proposals.filtering import Limits
from detector.proposals.store import ProposalStore


def numpy_filter(proposals: Proposals, size: tuple[int, int], limits: Limits) -> Proposals:
    """What `filter_proposals` returns, in numpy: the implementation before the native one."""
    boxes, height, width = proposals.boxes.numpy(), *size
    clipped = np.clip(boxes, 0, np.array((width, height, width, height), np.float32))
    usable = np.isfinite(boxes).all(axis=1)
    usable &= ((clipped[:, 2:] - clipped[:, :2]) >= max(limits.min_size, 0.0)).all(axis=1)
    order = np.flatnonzero(usable)
    if proposals.scores is not None:
        scores = proposals.scores.numpy()
        order = np.argsort(-scores, kind="stable")
        order = order[(usable & ~np.isnan(scores))[order]]
    if limits.deduplicate:
        _, first = np.unique(clipped[order], axis=0, return_index=True)
        order = order[np.sort(first)]
    order = order[: limits.top_k]
    return Proposals(
        boxes=torch.from_numpy(clipped[order]),
        scores=None if proposals.scores is None else proposals.scores[torch.from_numpy(order)],
    )


def image_overlaps(
    records: list[ImageRecord], store: ProposalStore, limits: Limits | None, include_difficult: bool
) -> tuple[torch.Tensor, list[int]]:
    """The best overlap of each object that counts, and the number of proposals of each image."""
    best, held = [torch.zeros(0)], []
    for record in records:
        proposals = store[record.key] if record.key in store else Proposals(boxes=torch.zeros(0, 4))
        if limits is not None:
            proposals = numpy_filter(proposals, (record.height, record.width), limits)
        targets = record.targets
        counted = ~targets.crowd if include_difficult else ~(targets.crowd | targets.difficult)
        objects = targets.boxes[counted]
        found = box_ops.iou(objects, proposals.boxes)
        best.append(found.amax(dim=1) if len(proposals) else torch.zeros(len(objects)))
        held.append(len(proposals))
    return torch.cat(best), held


def image_targets(
    records: list[ImageRecord],
    store: ProposalStore,
    limits: Limits,
    num_classes: int,
    threshold: float,
    *,
    use_difficult: bool,
    full_image: bool = False,
) -> TargetSums:
    """The sums of the box targets, matched image by image in torch."""
    sums = TargetSums.empty(num_classes)
    for record in records:
        objects = trained_objects(record.targets, use_difficult=use_difficult)
        if record.key in store:
            boxes = numpy_filter(store[record.key], (record.height, record.width), limits).boxes
        else:
            boxes = torch.tensor([[0.0, 0, record.width, record.height]] if full_image else []).reshape(-1, 4)
        if len(objects):
            candidates = torch.cat((objects.boxes, boxes))
            overlap, match = box_ops.iou(candidates, objects.boxes).max(dim=1)
            keep = overlap >= threshold
            sums.add(candidates[keep], objects.boxes[match[keep]], objects.labels[match[keep]])
    return sums
