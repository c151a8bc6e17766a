"""CorLoc: how often the best region of a class that is present in an image lies on an object of it.

Source: Deselaers, Alexe and Ferrari, "Weakly supervised localization and learning with generic knowledge"
(IJCV 2012). Weakly supervised detectors are compared by it on the images that they are trained on, whose
boxes they have not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from detector.core import boxes as box_ops
from detector.core.structures import Detections, ImageRecord

MIN_IOU = 0.5
"""A region with at least this IoU with an object has found it."""


def corloc(
    records: Sequence[ImageRecord], classes: Sequence[str], best: Mapping[str, Detections]
) -> dict[str, Any]:
    """Return CorLoc per class and its mean: ``CorLoc``, ``images``, and ``per_class`` with the same two.

    ``best`` has by image id the highest-scoring region of each class, in pixels of the original image, as
    `RegionPredictor.best` returns it. A class counts in the images in which it is present by the rule of
    `Targets.presence`; a class without a region there has not found an object. Objects marked ``difficult``
    can be found too, crowd regions cannot. ``images`` is the number of images in which the class counts, and
    in the mean the number of images with any class. A class that no image shows has CorLoc NaN and is left
    out of the mean; the mean of no class is NaN.
    """
    present = torch.zeros(len(classes), dtype=torch.int64)
    found = torch.zeros(len(classes), dtype=torch.int64)
    images = 0
    for record in records:
        shown = record.targets.presence(len(classes)) > 0
        present += shown
        found += shown & _found(record, best[record.image_id], len(classes))
        images += bool(shown.any())
    shares = (found.double() / present).tolist()
    rows = zip(classes, shares, present.tolist(), strict=True)
    known = [share for share, count in zip(shares, present.tolist(), strict=True) if count]
    return {
        "CorLoc": sum(known) / len(known) if known else float("nan"),
        "images": images,
        "per_class": {name: {"CorLoc": share, "images": count} for name, share, count in rows},
    }


def _found(record: ImageRecord, best: Detections, num_classes: int) -> torch.Tensor:
    """Return (K,) whether the region of each class lies on an object of the class."""
    targets = record.targets.select(~record.targets.crowd)
    hits = box_ops.iou(best.boxes, targets.boxes) >= MIN_IOU
    hits &= best.labels[:, None] == targets.labels[None, :]
    found = torch.zeros(num_classes, dtype=torch.bool)
    found[best.labels[hits.any(dim=1)] - 1] = True
    return found
