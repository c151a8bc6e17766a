"""Training samples of some images in rows, with their objects and the proposals that fit these best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from detector.core import boxes as box_ops
from detector.core.structures import Sample, Targets
from detector.visualize.drawing import draw_targets
from detector.visualize.grid import MARGIN, fitted, picture_row


def sample_grid(rows: Sequence[Sequence[Sample]], classes: Sequence[str], width: int) -> np.ndarray:
    """Return a white picture (h, ``width``, 3) uint8 RGB; all ``rows`` have the same number of samples.

    Each object has the colour of its class. The proposal with the highest IoU with it is dashed. The first
    sample of a row also has the names of the classes.
    """
    column = (width - MARGIN) // len(rows[0])
    parts = []
    for row in rows:
        pictures = []
        for number, sample in enumerate(row):
            image, factors = fitted(sample.image.numpy(), column - MARGIN)
            shown = _with_proposals(sample)
            shown = shown.with_boxes(box_ops.scale(shown.boxes, factors))
            pictures.append(draw_targets(image, shown, classes, labels=False))
            if not number:
                named = shown.select(torch.arange(len(sample.targets)))
                pictures[0] = draw_targets(pictures[0], named, classes)
        parts.append(np.array(picture_row(pictures, range(MARGIN, width, column), width)))
    top = np.full((MARGIN, width, 3), 255, np.uint8)
    return np.concatenate((top, *parts))


def _with_proposals(sample: Sample) -> Targets:
    """Return the objects of a sample, then the best proposal of each as an object that is drawn dashed."""
    targets, rois = sample.targets, sample.rois
    if not len(targets) or not len(rois):
        return targets
    overlaps, best = box_ops.iou(targets.boxes, rois).max(dim=1)
    found = overlaps > 0
    count = int(found.sum())
    dashed = torch.cat((targets.difficult, torch.ones(count, dtype=torch.bool)))
    boxes = torch.cat((targets.boxes, rois[best[found]]))
    crowd = torch.cat((targets.crowd, torch.zeros(count, dtype=torch.bool)))
    return Targets.make(boxes, torch.cat((targets.labels, targets.labels[found])), dashed, crowd)
