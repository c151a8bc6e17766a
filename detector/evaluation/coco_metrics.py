"""COCO's rules for boxes, on columns: detections matched to objects, precision, recall and their means.

The numbers equal those of pycocotools (COCOeval with ``iouType="bbox"`` and its default parameters) in every
digit; the tests compare with ``==``. All sums are made in its order, and the IoU is computed by pycocotools.

Each combination of image, category, IoU threshold and range of areas is matched on its own. The detections,
by decreasing score, take the object with the largest IoU (the last of equal ones) among those that reach the
threshold and are not taken. An ignored object is taken only where no other object can be; a crowd region can
be taken several times. Objects outside the range of areas are ignored, and so are detections outside of it
that take no object.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from detector.evaluation.report import COCO_METRICS

# The parameters of pycocotools (cocoeval.py: Params), with the same floating-point numbers.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
"""Ranges of areas in square pixels, both ends included, by the last letter of a metric's name."""
MAX_DETECTIONS = (1, 10, 100)
"""Only so many detections of a category on an image count, those of the highest scores."""
_REACHED = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
_NO_OBJECTS = -1.0  # in precision and recall, where no object counts


class CocoObjects(NamedTuple):
    """G objects in the order of the annotations: the numbers of their images and categories, (G,) int64.

    ``boxes`` (G, 4) float64 are (x, y, width, height) in pixels, ``areas`` (G,) float64 are in square pixels;
    ``crowd`` (G,) bool also marks the objects that are ignored for other reasons.
    """

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def take(self, rows: NDArray[Any]) -> CocoObjects:
        """Return the objects of ``rows``, a mask (G,) or indices (n,)."""
        columns: list[Any] = [column[rows] for column in self]
        return CocoObjects(*columns)


class CocoDetections(NamedTuple):
    """D detections; of equal scores, the one of the lower image, then the one given earlier, comes first.

    The columns are as in `CocoObjects`, ``scores`` (D,) are float64. No number is NaN.
    """

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def take(self, rows: NDArray[Any]) -> CocoDetections:
        """Return the detections of ``rows``, a mask (D,) or indices (n,)."""
        columns: list[Any] = [column[rows] for column in self]
        return CocoDetections(*columns)


class CocoCurves(NamedTuple):
    """Precision at 101 recalls, and the recall reached; -1 where no object counts.

    ``precision`` (10 IoU thresholds, 101 recalls, K categories, 4 ranges of areas) is that of up to 100
    detections; ``recall`` is (10 thresholds, K categories, 4 ranges of areas, 3 numbers of detections).
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def metrics(self) -> dict[str, float]:
        """Return the twelve metrics by the names in `COCO_METRICS`; NaN where no object counts."""
        thresholds = {"50": IOU_THRESHOLDS == 0.5, "75": IOU_THRESHOLDS == 0.75}
        metrics = {}
        for name in COCO_METRICS:
            kind, rest = name[:2], name[2:]
            area = list(AREAS).index(rest if rest in AREAS else "")
            if kind == "AP":
                values = self.precision[thresholds.get(rest, slice(None)), :, :, area]
            else:
                most = int(rest) if rest.isdigit() else MAX_DETECTIONS[-1]
                values = self.recall[:, :, area, MAX_DETECTIONS.index(most)]
            known = values[values > _NO_OBJECTS]
            metrics[name] = float(np.mean(known)) if len(known) else float("nan")
        return metrics

    def of_category(self, category: int) -> tuple[float, float]:
        """Return AP and AP50 of one category; NaN where no object counts."""
        precision = self.precision[:, :, category, 0]
        if not (precision > _NO_OBJECTS).all():
            return float("nan"), float("nan")
        return float(precision.mean()), float(precision[0].mean())


class _Pairs(NamedTuple):
    """P detections and objects of the same image and category whose IoU reaches the lowest threshold."""

    detection: NDArray[np.int64]
    object: NDArray[np.int64]
    iou: NDArray[np.float64]


class _Matches(NamedTuple):
    """M matches: a detection, the number of an IoU threshold, and the object that the detection takes."""

    detection: NDArray[np.int64]
    threshold: NDArray[np.int64]
    object: NDArray[np.int64]


def coco_curves(objects: CocoObjects, detections: CocoDetections, categories: int) -> CocoCurves:
    """Return the curves of all ``categories``, numbered from 0."""
    detections, ranks = _best_of_each_image(detections, categories)
    pairs = _pairs(objects, detections)
    by_class = np.lexsort((-detections.scores, detections.categories))
    place = np.argsort(by_class)
    areas = (detections.boxes[:, 2] * detections.boxes[:, 3])[by_class]
    of_class = detections.categories[by_class]
    curves = CocoCurves(
        precision=np.full((len(_REACHED), len(RECALL_POINTS), categories, len(AREAS)), _NO_OBJECTS),
        recall=np.full((len(_REACHED), categories, len(AREAS), len(MAX_DETECTIONS)), _NO_OBJECTS),
    )
    for number, (lowest, highest) in enumerate(AREAS.values()):
        counts = ~(objects.crowd | (objects.areas < lowest) | (objects.areas > highest))
        matches = _match(pairs, objects, detections, counts)
        matches = _by_threshold(matches._replace(detection=place[matches.detection]))
        is_hit = counts[matches.object]
        wrong = _wrong_before(matches, of_class, ~((areas < lowest) | (areas > highest)), categories)
        curve = matches.threshold * categories + of_class[matches.detection]
        counted = np.bincount(objects.categories[counts], minlength=categories)
        rank = ranks[by_class][matches.detection]
        for which, most in enumerate(MAX_DETECTIONS):
            hits = np.bincount(curve[is_hit & (rank < most)], minlength=len(_REACHED) * categories)
            recall = hits.reshape(-1, categories) / np.maximum(counted, 1)
            curves.recall[:, :, number, which] = np.where(counted > 0, recall, _NO_OBJECTS)
        _fill(curves.precision[..., number], curve[is_hit], wrong[is_hit], counted)
    return curves


def _best_of_each_image(
    detections: CocoDetections, categories: int
) -> tuple[CocoDetections, NDArray[np.int64]]:
    """Return the detections that may count, by image, category and decreasing score, and their ranks."""
    group = detections.images * categories + detections.categories
    order = np.lexsort((-detections.scores, group))
    group = group[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    ranks = np.arange(len(group)) - np.repeat(starts, np.diff(starts, append=len(group)))
    kept = ranks < MAX_DETECTIONS[-1]
    return detections.take(order[kept]), ranks[kept]


def _pairs(objects: CocoObjects, detections: CocoDetections) -> _Pairs:
    """Return the pairs that can match; ``detections`` are sorted by image."""
    order = np.argsort(objects.images, kind="stable")
    images = np.intersect1d(objects.images, detections.images)
    columns: list[tuple[NDArray[Any], ...]] = []
    for found, there in zip(
        _ranges(detections.images, images), _ranges(objects.images[order], images), strict=True
    ):
        rows = order[there]
        iou = mask.iou(detections.boxes[found], objects.boxes[rows], objects.crowd[rows])
        near = (iou >= _REACHED[0]) & (detections.categories[found, None] == objects.categories[rows])
        first, second = np.nonzero(near)
        columns.append((found.start + first, rows[second], iou[first, second]))
    if not columns:
        return _Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return _Pairs(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _ranges(ordered: NDArray[np.int64], values: NDArray[np.int64]) -> Iterator[slice]:
    """Return where each of ``values`` lies in the array ``ordered``."""
    starts, ends = np.searchsorted(ordered, values), np.searchsorted(ordered, values, side="right")
    return (slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True))


def _match(
    pairs: _Pairs, objects: CocoObjects, detections: CocoDetections, counts: NDArray[np.bool_]
) -> _Matches:
    """Match at all IoU thresholds; ``counts`` (G,) says which objects are not ignored.

    The first detections of all images and categories are matched at once, then the second ones, and so on;
    only detections with a pair are counted here.
    """
    turns = _turns(pairs, detections)
    # The pairs of a detection one after the other, the one that it prefers last.
    order = np.lexsort((pairs.object, pairs.iou, counts[pairs.object], pairs.detection, turns))
    turns, detection, target = turns[order], pairs.detection[order], pairs.object[order]
    taken = np.zeros((len(objects.areas), len(_REACHED)), dtype=bool)
    reaches, is_crowd = pairs.iou[order, None] >= _REACHED, objects.crowd[target, None]
    bounds = np.flatnonzero(np.diff(turns, prepend=-1, append=-1)).tolist()
    none = np.zeros(0, dtype=np.int64)
    matches = [(none, none, none)]
    for start, end in itertools.pairwise(bounds):
        mine = slice(start, end)
        is_free = reaches[mine] & (is_crowd[mine] | ~taken[target[mine]])
        places = np.where(is_free, np.arange(start, end)[:, None], -1)
        firsts = np.flatnonzero(np.diff(detection[mine], prepend=-1))
        chosen = np.maximum.reduceat(places, firsts, axis=0)
        row, threshold = np.nonzero(chosen >= 0)
        chosen_objects = target[chosen[row, threshold]]
        taken[chosen_objects, threshold] = True
        matches.append((detection[start + firsts[row]], threshold, chosen_objects))
    return _Matches(*(np.concatenate(column) for column in zip(*matches, strict=True)))


def _turns(pairs: _Pairs, detections: CocoDetections) -> NDArray[np.int64]:
    """Return, for each pair, how many detections of its image and category with a pair come before its own.

    The pairs are in the order of the detections, which are sorted by image, category and decreasing score.
    """
    is_next = np.diff(pairs.detection, prepend=-1) != 0
    number = np.cumsum(is_next) - 1
    images, categories = detections.images[pairs.detection], detections.categories[pairs.detection]
    is_new = (np.diff(images, prepend=-1) != 0) | (np.diff(categories, prepend=-1) != 0)
    return number - np.maximum.accumulate(np.where(is_new, number, 0))


def _by_threshold(matches: _Matches) -> _Matches:
    """Return the matches sorted by threshold, then by detection."""
    order = np.lexsort((matches.detection, matches.threshold))
    return _Matches(*(column[order] for column in matches))


def _wrong_before(
    matches: _Matches, of_class: NDArray[np.int64], inside: NDArray[np.bool_], categories: int
) -> NDArray[np.int64]:
    """Return (M,) how many wrong detections of its category come before each match, at its threshold.

    Wrong are those that match nothing and are ``inside`` (D,) the range of areas. ``of_class`` (D,) are the
    categories of the detections, which are sorted by category and decreasing score. The matches are sorted
    by `_by_threshold`.
    """
    inside_before = np.concatenate(([0], np.cumsum(inside)))
    matched_before = np.concatenate(([0], np.cumsum(inside[matches.detection])))
    curve = matches.threshold * categories + of_class[matches.detection]
    first = np.searchsorted(of_class, np.arange(categories))[of_class[matches.detection]]
    first_match = np.searchsorted(curve, curve)
    detections = inside_before[matches.detection] - inside_before[first]
    return detections - (matched_before[:-1] - matched_before[first_match])


def _fill(
    precision: NDArray[np.float64],
    curve: NDArray[np.int64],
    wrong: NDArray[np.int64],
    counted: NDArray[np.int64],
) -> None:
    """Set ``precision`` (10, 101, K) where objects count; ``counted`` (K,) is their number.

    Each of H hits has the number of its ``curve``, threshold * K + category, and the number of ``wrong``
    detections before it. Only hits matter: precision never rises at another detection, and a recall is first
    reached at a hit.
    """
    bounds = np.searchsorted(curve, np.arange(len(precision) * len(counted) + 1))
    for category in np.flatnonzero(counted).tolist():
        for threshold in range(len(precision)):
            at = threshold * len(counted) + category
            missed = wrong[bounds[at] : bounds[at + 1]]
            hits = np.arange(1.0, len(missed) + 1)
            best = np.zeros(len(hits) + 1)  # the last place is for recalls that are not reached
            best[:-1] = np.maximum.accumulate((hits / (missed + hits + np.spacing(1)))[::-1])[::-1]
            precision[threshold, :, category] = best[np.searchsorted(hits / counted[category], RECALL_POINTS)]
