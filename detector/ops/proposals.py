"""Filtering, reading and matching proposals natively; Python's global lock is released in every call.

``places`` say where the proposals of images lie: (N, 6) int64 with the descriptor of the open file of boxes
(-1 where there is no entry) and the offset in it in bytes, the same for the scores (-1 where there are none),
the number of boxes, and the CRC-32 of boxes and scores (-1 where it need not be compared). An image whose
files do not hold that has a number of proposals of -1.

IoU has the bits of `detector.core.boxes.iou`. Boxes must be finite.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import detector.ops._library  # noqa: F401  loads the operators

_ALL = 2**31 - 1  # no image has more boxes


def match_boxes(boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best IoU (P,) of each of ``boxes`` (P, 4) with any of ``objects`` (G, 4), G at least 1.

    The second tensor (P,) int64 has the first object with that IoU. Both are float32, in the same pixels.
    """
    best, matched = torch.ops.detector.match_boxes(boxes.contiguous(), objects.contiguous())
    return best, matched


def filter_proposals(
    boxes: Tensor,
    scores: Tensor | None,
    size: tuple[int, int],
    min_size: float,
    top_k: int | None,
    deduplicate: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the boxes (P, 4) and scores (P,) that `detector.proposals.filtering.filter_proposals` keeps."""
    height, width = size
    kept, ranks = torch.ops.detector.filter_proposals(
        boxes.contiguous(),
        None if scores is None else scores.contiguous(),
        height,
        width,
        max(min_size, 0.0),
        _ALL if top_k is None else top_k,
        deduplicate,
    )
    return kept, None if scores is None else ranks


def read_proposals(
    place: list[int], size: tuple[int, int], min_size: float, top_k: int | None, deduplicate: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Return the boxes (P, 4) and scores (P,) of one image, filtered by `filter_proposals`.

    ``place`` is a row of places. None is returned where the files do not hold what it says.
    """
    height, width = size
    most = _ALL if top_k is None else top_k
    boxes, scores, sound = torch.ops.detector.read_proposals(
        place, height, width, max(min_size, 0.0), most, deduplicate
    )
    return (boxes, None if place[2] < 0 else scores) if sound else None


def best_overlaps(
    places: Tensor,
    sizes: Tensor,
    objects: Tensor,
    offsets: Tensor,
    counts: Sequence[int],
    min_size: float | None,
    top_k: int | None,
) -> tuple[Tensor, Tensor]:
    """Return how well the proposals of N images cover their G objects.

    ``sizes`` (N, 2) int32 are (height, width); the objects of image i are the rows ``offsets[i]`` to
    ``offsets[i + 1]`` of ``objects`` (G, 4). The proposals are filtered by `filter_proposals`, or used as
    they are stored where ``min_size`` is None.

    Returns (G, len(counts)) the highest IoU of each object with one of the first ``counts[j]`` proposals, 0
    without any, and (N,) int64 the number of proposals of each image. ``counts`` must rise.
    """
    most = _ALL if top_k is None else top_k
    filtered = min_size is not None
    least = max(min_size or 0.0, 0.0)
    best, held = torch.ops.detector.best_overlaps(
        places, sizes, objects, offsets, list(counts), least, most, filtered
    )
    return best, held


def matched_proposals(
    places: Tensor,
    sizes: Tensor,
    objects: Tensor,
    offsets: Tensor,
    threshold: float,
    min_size: float,
    top_k: int | None,
    full_image: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return all boxes whose best IoU with an object of their image is ``threshold`` or more.

    The boxes of an image are its objects and then its filtered proposals; with ``full_image`` an image
    without an entry has one proposal, the whole image. The other arguments are as in `best_overlaps`.

    Returns boxes (R, 4), image after image, for each the row (R,) int64 of the first object with its best
    IoU, and (N,) int64 the number of proposals of each image; images without objects are not read and have 0.
    """
    boxes, rows, held = torch.ops.detector.matched_proposals(
        places,
        sizes,
        objects,
        offsets,
        threshold,
        max(min_size, 0.0),
        _ALL if top_k is None else top_k,
        full_image,
    )
    return boxes, rows, held
