"""Detections next to ground truth, image by image, at the resolution of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image, ImageDraw

from detector import boxes as box_ops
from detector.structures import Detections, Targets
from detector.visualize.drawing import draw_detections, draw_targets, font

_COLUMNS = 4
_MOST = 8
_MOST_LABELLED = 7  # objects; the labels of more would hide a small picture
_MARGIN = 22  # pixels
_GAP = 4
_HIGHEST = 300
_CAPTION = 24


def example_grid(
    examples: Sequence[tuple[np.ndarray, Detections, Targets]], classes: Sequence[str], width: int
) -> np.ndarray:
    """Return a white picture (h, ``width``, 3) uint8 RGB of the first eight examples, four in a row.

    Each shows its detections of score 0.5 and more on the left and its objects on the right. Without
    examples h is 0.
    """
    cell = (width - (_COLUMNS + 1) * _MARGIN) // _COLUMNS
    pairs = [_pair(*example, classes, cell) for example in examples[:_MOST]]
    rows = [pairs[start : start + _COLUMNS] for start in range(0, len(pairs), _COLUMNS)]
    empty = np.zeros((0, width, 3), np.uint8)
    return np.concatenate([empty, *(_row(row, cell, width) for row in rows)])


def _row(pairs: list[np.ndarray], cell: int, width: int) -> np.ndarray:
    height = max(len(pair) for pair in pairs)
    row = np.full((_CAPTION + height + _MARGIN, width, 3), 255, np.uint8)
    for column, pair in enumerate(pairs):
        left = _MARGIN + column * (cell + _MARGIN)
        row[_CAPTION : _CAPTION + len(pair), left : left + pair.shape[1]] = pair
    captions = Image.fromarray(row)
    draw = ImageDraw.Draw(captions)
    for column, pair in enumerate(pairs):
        left = _MARGIN + column * (cell + _MARGIN)
        for x, text in ((left, "detections"), (left + (pair.shape[1] + _GAP) // 2, "ground truth")):
            draw.text((x, 4), text, fill=(115, 115, 115), font=font(13))
    return np.array(captions)


def _pair(
    image: np.ndarray, detections: Detections, targets: Targets, classes: Sequence[str], cell: int
) -> np.ndarray:
    """Return both drawings side by side, at most ``cell`` pixels wide."""
    height, width = image.shape[:2]
    scale = min((cell - _GAP) / 2 / width, _HIGHEST / height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    enlarged = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    factor = (size[0] / height, size[1] / width)
    found = replace(detections, boxes=box_ops.scale(detections.boxes, factor))
    truth = targets.with_boxes(box_ops.scale(targets.boxes, factor))
    between = np.full((size[0], _GAP, 3), 255, np.uint8)
    labels = len(targets) <= _MOST_LABELLED
    drawn = draw_detections(enlarged, found, classes, labels=labels)
    return np.hstack((drawn, between, draw_targets(enlarged, truth, classes, labels=labels)))
