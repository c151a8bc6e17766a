"""The filter for proposals: clipped to the image, sorted by score, without small, invalid and equal boxes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.core.structures import Proposals


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
    equal in all coordinates is kept. The first ``top_k`` of the rest are returned (None: all).
    """
    # numpy, not torch: on arrays this small, starting torch's threads would cost a hundred times the work.
    boxes, height, width = proposals.boxes.numpy(), *size
    clipped = np.clip(boxes, 0, np.array((width, height, width, height), np.float32))
    usable = np.isfinite(boxes).all(axis=1)
    usable &= ((clipped[:, 2:] - clipped[:, :2]) >= max(min_size, 0.0)).all(axis=1)
    if proposals.scores is None:
        order = np.flatnonzero(usable)
    else:
        scores = proposals.scores.numpy()
        order = np.argsort(-scores, kind="stable")
        order = order[(usable & ~np.isnan(scores))[order]]
    if deduplicate:
        order = order[_first_of_equal(clipped[order])]
    return _take(clipped, proposals.scores, order[:top_k])


def unique_proposals(proposals: Proposals) -> Proposals:
    """Return ``proposals`` without those whose box equals an earlier one in all coordinates."""
    boxes = proposals.boxes.numpy()
    return _take(boxes, proposals.scores, _first_of_equal(boxes))


def _first_of_equal(boxes: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the rows (n,) of ``boxes`` (P, 4), in order, that equal no row before them."""
    # Adding zero turns -0.0 into 0.0, so that equal boxes have equal bits.
    halves = np.ascontiguousarray(boxes + np.float32(0)).view(np.int64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal rows stay in their order
    ranked = halves[order]
    first = np.ones(len(order), bool)
    first[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    return np.sort(order[first])


def _take(boxes: NDArray[np.float32], scores: Tensor | None, rows: NDArray[np.intp]) -> Proposals:
    return Proposals(
        boxes=torch.from_numpy(boxes[rows]),
        scores=None if scores is None else torch.from_numpy(scores.numpy()[rows]),
    )
