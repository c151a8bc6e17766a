"""Classification of images by the rules of PASCAL VOC (VOCevalcls.m): one average precision per class.

The images are ranked by their score for the class. An image that shows an object of the class is a hit, and
one that shows none is a false positive. An image on which all objects of the class are ``difficult`` counts
as neither and is left out of the ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.core.structures import ImageRecord, Targets
from detector.evaluation.average_precision import (
    PrecisionRecall,
    area_ap,
    eleven_point_ap,
    precision_recall,
    with_means,
)


class ClassificationEvaluator:
    """Average precision over the images given to `update`.

    ``ground_truth`` is the list of the data set's records, or its `Targets` by image id, as annotated.
    ``classes`` are the K names. Images of equal score are ranked by their position in the data set, so that
    the order of updates does not matter. A COCO crowd region is treated as a difficult object.
    """

    def __init__(
        self, ground_truth: Sequence[ImageRecord] | Mapping[str, Targets], classes: Sequence[str]
    ) -> None:
        if not isinstance(ground_truth, Mapping):
            ground_truth = {record.image_id: record.targets for record in ground_truth}
        self.classes = tuple(classes)
        self._presence = {
            image_id: targets.presence(len(self.classes)) for image_id, targets in ground_truth.items()
        }
        self.reset()

    def reset(self) -> None:
        """Forget all scores."""
        self._scores: dict[str, Tensor] = {}

    def update(self, image_ids: Sequence[str], scores: Tensor) -> None:
        """Add the scores (N, K) of N images. Each image may be given once.

        Raises:
            ValueError: an image that is not in the ground truth or was given before, another number of
                classes, or a score that is NaN.
        """
        shape = (len(image_ids), len(self.classes))
        if scores.shape != shape:
            raise ValueError(f"scores must have shape {shape}, not {tuple(scores.shape)}")
        for image_id, row in zip(image_ids, scores.detach().cpu().double(), strict=True):
            if image_id not in self._presence:
                raise ValueError(f"image {image_id!r} is not in the ground truth")
            if image_id in self._scores:
                raise ValueError(f"image {image_id!r} was given before")
            if row.isnan().any():
                raise ValueError(f"image {image_id!r}: a score is NaN")
            self._scores[image_id] = row

    def precision_recall(self) -> dict[str, PrecisionRecall]:
        """Return each class's precision-recall curve over the images given so far."""
        presence, scores = self._tables()
        return {name: _curve(presence[:, k], scores[:, k]) for k, name in enumerate(self.classes)}

    def compute(self) -> dict[str, Any]:
        """Return ``voc07_mAP`` (11 points), ``voc_mAP`` (area) and ``per_class`` over the images given.

        ``per_class[name]`` has ``voc07_AP``, ``voc_AP``, the number of ``images`` that show the class and
        the number of ``difficult`` images, which are left out. A class that no image shows has the AP NaN
        and is left out of the means.
        """
        presence, _ = self._tables()
        per_class = {
            name: {
                "voc07_AP": eleven_point_ap(curve),
                "voc_AP": area_ap(curve),
                "images": curve.objects,
                "difficult": int((presence[:, k] == 0).sum()),
            }
            for k, (name, curve) in enumerate(self.precision_recall().items())
        }
        return with_means(per_class)

    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Return presence and scores, (N, K) each, of the images given, in the data set's order."""
        given = [image_id for image_id in self._presence if image_id in self._scores]
        none = torch.zeros(0, len(self.classes))
        presence = torch.stack([self._presence[image_id] for image_id in given]) if given else none
        scores = torch.stack([self._scores[image_id] for image_id in given]) if given else none
        return presence.numpy(), scores.numpy()


def _curve(presence: np.ndarray, scores: np.ndarray) -> PrecisionRecall:
    counted = presence != 0
    presence, scores = presence[counted], scores[counted]
    order = np.argsort(-scores, kind="stable")
    is_hit = presence[order] > 0
    return precision_recall(is_hit, scores[order], int(is_hit.sum()))
