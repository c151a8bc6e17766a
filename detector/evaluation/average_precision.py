"""Precision, recall and the two average precisions of PASCAL VOC, for one class.

All functions take the curve that `precision_recall` makes from the detections (from the images, in
classification), sorted by decreasing score. Detections that count neither as correct nor as wrong
(``difficult``) have been removed before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RECALL_POINTS = 11  # recall 0, 0.1, ..., 1 (VOC 2007, "The PASCAL VOC Challenge", IJCV 2010, section 4.2)


class PrecisionRecall(NamedTuple):
    """Recall, precision and score, (D,) float64 each, after each of D detections sorted by decreasing score.

    ``hits`` (D,) is the number of hits so far. ``objects`` is the number of objects that count; where it is
    zero, recall is NaN.
    """

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    scores: NDArray[np.float64]
    hits: NDArray[np.int64]
    objects: int


def precision_recall(is_hit: NDArray[np.bool_], scores: NDArray[np.float64], objects: int) -> PrecisionRecall:
    """Return the curve of D detections: ``is_hit`` (D,) marks the correct ones, ``scores`` (D,) decrease."""
    hits = np.cumsum(is_hit, dtype=np.int64)
    recall = hits / objects if objects else np.full(len(hits), np.nan)
    return PrecisionRecall(recall, hits / np.arange(1, len(hits) + 1), scores, hits, objects)


def eleven_point_ap(curve: PrecisionRecall) -> float:
    """Return the mean over recall 0, 0.1, ..., 1 of the best precision at that recall or above (VOC 2007).

    The comparison recall >= k/10 is made in integers, so that a recall of exactly 3/10 reaches its point
    (as a float, 0.1 * 3 lies above 0.3). NaN without objects.
    """
    if not curve.objects:
        return float("nan")
    thresholds = np.arange(RECALL_POINTS) * curve.objects
    first = np.searchsorted(curve.hits * (RECALL_POINTS - 1), thresholds)
    best = np.append(_envelope(curve.precision), 0.0)
    return float(best[first].mean())


def area_ap(curve: PrecisionRecall) -> float:
    """Return the area under the precision envelope (VOC 2010 and later). NaN without objects.

    Recall grows by 1/objects at each hit and nowhere else, so the area is a sum over the hits.
    """
    if not curve.objects:
        return float("nan")
    is_hit = np.diff(curve.hits, prepend=0) > 0
    return float(_envelope(curve.precision)[is_hit].sum() / curve.objects)


def with_means(per_class: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """Return ``voc07_mAP`` and ``voc_mAP``, the means of ``voc07_AP`` and ``voc_AP``, with ``per_class``.

    A class with the AP NaN is left out of the means; they are NaN where no class has an AP.
    """

    def mean(name: str) -> float:
        known = [row[name] for row in per_class.values() if not np.isnan(row[name])]
        return float(np.mean(known)) if known else float("nan")

    return {"voc07_mAP": mean("voc07_AP"), "voc_mAP": mean("voc_AP"), "per_class": per_class}


def _envelope(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for each detection, the best precision at it or after it."""
    return np.maximum.accumulate(precision[::-1])[::-1]
