"""The score threshold at which a detector is used: its precision, recall and false positives per image.

Average precision summarises all thresholds. A user of the detector needs one threshold, and its precision and
recall; the threshold with the best F1 on validation images is a simple choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.evaluation.average_precision import PrecisionRecall


@dataclass(frozen=True)
class OperatingPoint:
    """Metrics of the detections with a score of at least ``score_threshold``, over all classes together."""

    score_threshold: float
    precision: float
    """The fraction of the counted detections that are hits; 0 without detections."""
    recall: float
    f1: float
    false_positives_per_image: float
    images: int
    objects: int


def best_f1(curves: Iterable[PrecisionRecall], images: int) -> OperatingPoint | None:
    """Return the operating point with the best micro-averaged F1, at the highest threshold that reaches it.

    ``curves`` are the classes' matched detections on ``images`` images, as `VocEvaluator.precision_recall`
    returns them; the threshold is the score of one of them. Detections of equal score stay or go together.
    None where there is no hit or no object counts.
    """
    scores, is_hit, objects = _pooled(curves)
    hits = np.cumsum(is_hit)
    kept = np.arange(1, len(scores) + 1)
    ends_a_tie = np.append(scores[1:] < scores[:-1], True)[: len(scores)]
    f1 = np.where(ends_a_tie, 2 * hits / (kept + max(objects, 1)), 0.0)
    if not objects or not f1.any():
        return None
    best = int(f1.argmax())
    return _point(float(scores[best]), int(hits[best]), best + 1, objects, images)


def at_threshold(
    curves: Iterable[PrecisionRecall], images: int, score_threshold: float
) -> OperatingPoint | None:
    """Return the operating point at ``score_threshold``; None where no object counts.

    ``curves`` as for `best_f1`.
    """
    scores, is_hit, objects = _pooled(curves)
    if not objects:
        return None
    kept = int((scores >= score_threshold).sum())
    return _point(score_threshold, int(is_hit[:kept].sum()), kept, objects, images)


def _pooled(curves: Iterable[PrecisionRecall]) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """Return the decreasing scores of all classes' detections, whether each is a hit, and the objects."""
    given = list(curves)
    scores = np.concatenate([np.zeros(0), *(curve.scores for curve in given)])
    is_hit = np.concatenate([np.zeros(0, dtype=np.int64), *(np.diff(c.hits, prepend=0) for c in given)])
    order = np.argsort(-scores, kind="stable")
    return scores[order], is_hit[order], sum(curve.objects for curve in given)


def _point(threshold: float, hits: int, kept: int, objects: int, images: int) -> OperatingPoint:
    return OperatingPoint(
        score_threshold=threshold,
        precision=hits / kept if kept else 0.0,
        recall=hits / objects,
        f1=2 * hits / (kept + objects),
        false_positives_per_image=(kept - hits) / images,
        images=images,
        objects=objects,
    )
