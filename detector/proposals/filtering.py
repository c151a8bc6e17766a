"""The filter for proposals: clipped to the image, sorted by score, without small, invalid and equal boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detector.core import boxes as box_ops
from detector.core.structures import Proposals


class Limits(NamedTuple):
    """What `filter_proposals` keeps."""

    min_size: float = 1.0
    top_k: int | None = None
    deduplicate: bool = True


def filter_proposals(
    proposals: Proposals,
    size: tuple[int, int],
    *,
    min_size: float = 1.0,
    top_k: int | None = None,
    deduplicate: bool = True,
) -> Proposals:
    """Return the usable proposals of an image of ``size`` (height, width), best first.

    Boxes are clipped to the image; those with a side under ``min_size`` pixels, a coordinate that is not
    finite or a score that is not a number are dropped. The others are sorted by falling score; equal scores,
    and proposals without scores, keep their order. With ``deduplicate`` only the first of boxes that are
    equal in all coordinates is kept; boxes with different masks are not equal. The first ``top_k`` of the
    rest are returned (None: all), with their masks.
    """
    if proposals.masks is not None:
        return _filter_masked(proposals, size, Limits(min_size, top_k, deduplicate))
    from detector.ops import proposals as native

    boxes, scores = native.filter_proposals(
        proposals.boxes, proposals.scores, size, min_size, top_k, deduplicate
    )
    return Proposals(boxes=boxes, scores=scores)


def unique_proposals(proposals: Proposals) -> Proposals:
    """Return ``proposals`` without those whose box, and mask, equal an earlier one in all coordinates."""
    return proposals.select(torch.from_numpy(_first_regions(proposals)))


def _filter_masked(proposals: Proposals, size: tuple[int, int], limits: Limits) -> Proposals:
    """Do what `filter_proposals` does where there are masks, which the native function does not know."""
    boxes = box_ops.clip(proposals.boxes, size)
    usable = torch.isfinite(proposals.boxes).all(dim=1)
    usable &= (boxes[:, 2:] - boxes[:, :2] >= max(limits.min_size, 0.0)).all(dim=1)
    order = torch.arange(len(boxes))
    if proposals.scores is not None:
        usable &= ~torch.isnan(proposals.scores)
        order = torch.argsort(proposals.scores, descending=True, stable=True)
    found = replace(proposals, boxes=boxes).select(order[usable[order]])
    if limits.deduplicate:
        found = unique_proposals(found)
    return found if limits.top_k is None else found.select(torch.arange(min(limits.top_k, len(found))))


def _first_regions(proposals: Proposals) -> NDArray[np.intp]:
    """Return the rows (n,) of ``proposals``, in order, whose box and mask equal none before them."""
    boxes = proposals.boxes.numpy()
    if proposals.masks is None:
        return _first_of_equal(boxes)
    keys = zip(map(bytes, boxes + np.float32(0)), proposals.masks.counts, strict=True)
    first: dict[tuple[bytes, bytes], int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    return np.array(list(first.values()), np.intp)


def _first_of_equal(boxes: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the rows (n,) of ``boxes`` (P, 4), in order, that equal no row before them."""
    # Adding zero turns -0.0 into 0.0, so that equal boxes have equal bits.
    halves = np.ascontiguousarray(boxes + np.float32(0)).view(np.int64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal rows stay in their order
    ranked = halves[order]
    first = np.ones(len(order), bool)
    first[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    return np.sort(order[first])
