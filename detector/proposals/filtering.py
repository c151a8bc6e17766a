"""The filter for proposals: clipped to the image, sorted by score, without small, invalid and equal boxes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

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
    equal in all coordinates is kept. The first ``top_k`` of the rest are returned (None: all).
    """
    from detector.ops import proposals as native

    boxes, scores = native.filter_proposals(
        proposals.boxes, proposals.scores, size, min_size, top_k, deduplicate
    )
    return Proposals(boxes=boxes, scores=scores)


def unique_proposals(proposals: Proposals) -> Proposals:
    """Return ``proposals`` without those whose box equals an earlier one in all coordinates."""
    boxes, scores = proposals.boxes.numpy(), proposals.scores
    rows = _first_of_equal(boxes)
    return Proposals(
        boxes=torch.from_numpy(boxes[rows]),
        scores=None if scores is None else torch.from_numpy(scores.numpy()[rows]),
    )


def _first_of_equal(boxes: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the rows (n,) of ``boxes`` (P, 4), in order, that equal no row before them."""
    # Adding zero turns -0.0 into 0.0, so that equal boxes have equal bits.
    halves = np.ascontiguousarray(boxes + np.float32(0)).view(np.int64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal rows stay in their order
    ranked = halves[order]
    first = np.ones(len(order), bool)
    first[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    return np.sort(order[first])
