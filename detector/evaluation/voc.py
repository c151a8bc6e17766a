"""PASCAL VOC detection metrics, as the development kit (VOCevaldet.m) defines them.

A detection is compared with all objects of its class on its image, ``difficult`` ones included, and is
assigned to the object with the largest IoU (the first of equal ones), even if that object is already matched.
With an IoU of at least the threshold, the detection is a hit if the object is not matched yet, and a false
positive if a detection with a higher score is matched to it; if the object is ``difficult``, the detection
counts as neither. Below the threshold it is a false positive.

The kit measures inclusive pixels, x2 - x1 + 1; on the project's half-open boxes x2 - x1 is the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.core import boxes as box_ops
from detector.core.structures import Detections, ImageRecord, Targets
from detector.evaluation.average_precision import (
    PrecisionRecall,
    area_ap,
    eleven_point_ap,
    precision_recall,
    with_means,
)


class _Matches(NamedTuple):
    """D detections and the object that each is assigned to; all arrays have the shape (D,).

    ``order`` ranks equal scores; ``target`` is the number of the object in the whole data set, or -1.
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    order: NDArray[np.int64]
    target: NDArray[np.int64]
    ignored: NDArray[np.bool_]


class VocEvaluator:
    """Average precision over the images given to `update`, those without detections included.

    ``ground_truth`` is the list of the data set's records, or its `Targets` by image id, as annotated: no
    object is left out or clipped. ``classes`` are the K names; label k is ``classes[k - 1]``. A COCO crowd
    region is treated as a difficult object. Equal scores are ranked by the image's position in the data set,
    then by the detection's position in its image, so that the order of updates does not matter.
    """

    def __init__(
        self,
        ground_truth: Sequence[ImageRecord] | Mapping[str, Targets],
        classes: Sequence[str],
        iou_threshold: float = 0.5,
    ) -> None:
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be above 0 and at most 1, not {iou_threshold}")
        if not isinstance(ground_truth, Mapping):
            ground_truth = {record.image_id: record.targets for record in ground_truth}
        self.classes = tuple(classes)
        self.iou_threshold = iou_threshold
        self._targets = dict(ground_truth)
        self._place = {image_id: place for place, image_id in enumerate(self._targets)}
        counts = [0, *(len(targets) for targets in self._targets.values())]
        self._first_target = np.cumsum(counts)
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._matches: dict[str, _Matches] = {}

    def update(self, image_ids: list[str], detections: list[Detections]) -> None:
        """Add the detections of some images. Each image may be given once.

        Raises:
            ValueError: an image that is not in the ground truth or was given before, or a label outside
                1..K.
        """
        for image_id, one in zip(image_ids, detections, strict=True):
            self.add(image_id, one.boxes, one.scores, one.labels)

    def add(
        self, image_id: str, boxes: Tensor, scores: Tensor, labels: Tensor, order: Tensor | None = None
    ) -> None:
        """Add the detections of one image: boxes (D, 4), scores (D,) of any float type, labels (D,) 1..K.

        ``order`` (D,) int64 ranks equal scores instead of the positions of image and detection. Errors as
        in `update`.
        """
        if image_id not in self._targets:
            raise ValueError(f"image {image_id!r} is not in the ground truth")
        if image_id in self._matches:
            raise ValueError(f"image {image_id!r} was given before")
        if len(labels) and (int(labels.min()) < 1 or int(labels.max()) > len(self.classes)):
            raise ValueError(f"image {image_id!r}: labels must be 1..{len(self.classes)}")
        place = self._place[image_id]
        if order is None:
            order = torch.arange(len(labels)) + (place << 32)
        target, ignored = _match(self._targets[image_id], boxes, labels, self.iou_threshold)
        self._matches[image_id] = _Matches(
            labels=labels.cpu().numpy().astype(np.int64),
            scores=scores.cpu().numpy().astype(np.float64),
            order=order.cpu().numpy(),
            target=np.where(target >= 0, target + self._first_target[place], -1),
            ignored=ignored,
        )

    def precision_recall(self) -> dict[str, PrecisionRecall]:
        """Return each class's precision-recall curve over the images given so far."""
        matches, (counted, _) = self._all_matches(), self._count_objects()
        return {
            name: _curve(matches, label, counted[label]) for label, name in enumerate(self.classes, start=1)
        }

    def compute(self) -> dict[str, Any]:
        """Return ``voc07_mAP`` (11 points), ``voc_mAP`` (area) and ``per_class`` over the images given.

        ``per_class[name]`` has ``voc07_AP``, ``voc_AP``, and the numbers of ``objects`` (``difficult``
        ones included), of ``difficult`` objects and of ``detections``. A class without an object that
        counts has the AP NaN and is left out of the means.
        """
        counted, ignored = self._count_objects()
        detections = np.bincount(self._all_matches().labels, minlength=len(self.classes) + 1)
        per_class = {
            name: {
                "voc07_AP": eleven_point_ap(curve),
                "voc_AP": area_ap(curve),
                "objects": counted[label] + ignored[label],
                "difficult": ignored[label],
                "detections": int(detections[label]),
            }
            for label, (name, curve) in enumerate(self.precision_recall().items(), start=1)
        }
        return with_means(per_class)

    def _all_matches(self) -> _Matches:
        none = np.zeros(0, dtype=np.int64)
        matches = [_Matches(none, none.astype(np.float64), none, none, none.astype(bool))]
        matches.extend(self._matches.values())
        return _Matches(*(np.concatenate(column) for column in zip(*matches, strict=True)))

    def _count_objects(self) -> tuple[list[int], list[int]]:
        """Return, by label 0..K, how many objects of the images given count and how many are ignored."""
        given = [Targets.empty(), *(self._targets[image_id] for image_id in self._matches)]
        labels = torch.cat([targets.labels for targets in given])
        ignored = torch.cat([_is_ignored(targets) for targets in given])
        counted, left_out = (
            torch.bincount(labels[which], minlength=len(self.classes) + 1) for which in (~ignored, ignored)
        )
        return counted.tolist(), left_out.tolist()


def _is_ignored(targets: Targets) -> Tensor:
    return targets.difficult | targets.crowd


def _match(
    targets: Targets, boxes: Tensor, labels: Tensor, iou_threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return, for D detections of one image, the object that each is assigned to (or -1) and whether that
    object is ignored.

    IoU is computed in float64, so that boxes of whole pixels with an IoU of exactly 1/2 reach 0.5.
    """
    if not len(targets) or not len(boxes):
        return np.full(len(boxes), -1), np.zeros(len(boxes), dtype=bool)
    overlap = box_ops.iou(boxes.cpu().double(), targets.boxes.double())
    overlap[labels.cpu()[:, None] != targets.labels[None, :]] = -1
    best, index = overlap.numpy().max(axis=1), overlap.numpy().argmax(axis=1)
    is_matched = best >= iou_threshold
    return np.where(is_matched, index, -1), is_matched & _is_ignored(targets).numpy()[index]


def _curve(matches: _Matches, label: int, objects: int) -> PrecisionRecall:
    """Return the curve of one class: an object goes to the detection of highest score assigned to it."""
    chosen = (matches.labels == label) & ~matches.ignored
    scores, target, order = matches.scores[chosen], matches.target[chosen], matches.order[chosen]
    by_score = np.lexsort((order, -scores))
    scores, target = scores[by_score], target[by_score]
    is_hit = np.zeros(len(target), dtype=bool)
    is_hit[np.unique(target, return_index=True)[1]] = True
    return precision_recall(is_hit & (target >= 0), scores, objects)
