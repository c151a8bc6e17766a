"""Detections beside the ground truth of each image, at the resolution of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image, ImageDraw

from detector.core import boxes as box_ops
from detector.core.structures import Detections, Targets
from detector.visualize.drawing import draw_detections, draw_targets, font

COLUMNS = 4
_MOST = 8
_MOST_LABELLED = 7  # with more objects than this, labels would cover a small picture
MARGIN = 22  # pixels
_GAP = 4
_HIGHEST = 300
_CAPTION = 24
_CAPTIONS = ("detections", "ground truth")


def example_grid(
    examples: Sequence[tuple[np.ndarray, Detections, Targets]],
    classes: Sequence[str],
    width: int,
    score_threshold: float | None = None,
) -> np.ndarray:
    """Return a white picture (h, ``width``, 3) uint8 RGB of the first eight examples, four in a row.

    Each example shows on the left its detections that score at least ``score_threshold`` (None means 0.5),
    and on the right its objects. Without examples h is 0.
    """
    half = ((width - MARGIN) // COLUMNS - MARGIN - _GAP) // 2
    pictures = []
    for image, detections, targets in examples[:_MOST]:
        resized, factors = fitted(image, half)
        shown = replace(detections, boxes=box_ops.scale(detections.boxes, factors))
        labels = len(targets) <= _MOST_LABELLED
        pictures.append(draw_detections(resized, shown, classes, score_threshold, labels))
        truth = targets.with_boxes(box_ops.scale(targets.boxes, factors))
        pictures.append(draw_targets(resized, truth, classes, labels=labels))
    lefts = [MARGIN + column * (2 * half + _GAP + MARGIN) for column in range(COLUMNS)]
    lefts = [x for left in lefts for x in (left, left + half + _GAP)]
    rows = [np.zeros((0, width, 3), np.uint8)]
    for start in range(0, len(pictures), len(lefts)):
        part = pictures[start : start + len(lefts)]
        row = picture_row(part, lefts, width, top=_CAPTION)
        for x, text in zip(lefts, _CAPTIONS * (len(part) // 2), strict=False):
            ImageDraw.Draw(row).text((x, 4), text, fill=(115, 115, 115), font=font(13))
        rows.append(np.array(row))
    return np.concatenate(rows)


def picture_row(
    pictures: Sequence[np.ndarray], lefts: Sequence[int], width: int, top: int = 0
) -> Image.Image:
    """Return a white picture of ``width`` pixels with ``pictures``, each at its left edge, below ``top``."""
    height = max(map(len, pictures))
    row = Image.new("RGB", (width, top + height + MARGIN), "white")
    for left, picture in zip(lefts, pictures, strict=False):
        row.paste(Image.fromarray(picture), (left, top))
    return row


def photograph_row(
    examples: Sequence[tuple[np.ndarray, Targets]], classes: Sequence[str], width: int
) -> np.ndarray:
    """Return a white picture (h, ``width``, 3) uint8 RGB of the first four images with their objects.

    Boxes are in pixels of the images, (H, W, 3) uint8 RGB. Without examples h is 0.
    """
    column = (width - MARGIN) // COLUMNS
    drawn = []
    for image, targets in examples[:COLUMNS]:
        resized, factors = fitted(image, column - MARGIN)
        truth = targets.with_boxes(box_ops.scale(targets.boxes, factors))
        drawn.append(draw_targets(resized, truth, classes, labels=len(targets) <= _MOST_LABELLED))
    if not drawn:
        return np.zeros((0, width, 3), np.uint8)
    return np.array(picture_row(drawn, range(MARGIN, width, column), width))


def fitted(image: np.ndarray, most_width: int) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the image resized for the page, and the factors of its height and width."""
    height, width = image.shape[:2]
    factor = min(most_width / width, _HIGHEST / height)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    return resized, (size[0] / height, size[1] / width)
