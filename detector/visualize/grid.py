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

_COLUMNS = 4
_MOST = 8
_MOST_LABELLED = 7  # with more objects than this, labels would cover a small picture
_MARGIN = 22  # pixels
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
    half = ((width - _MARGIN) // _COLUMNS - _MARGIN - _GAP) // 2
    pairs = [_pair(*example, classes, half, score_threshold) for example in examples[:_MOST]]
    rows = [pairs[start : start + _COLUMNS] for start in range(0, len(pairs), _COLUMNS)]
    empty = np.zeros((0, width, 3), np.uint8)
    return np.concatenate([empty, *(_row(row, half, width) for row in rows)])


def _row(pairs: list[tuple[np.ndarray, np.ndarray]], half: int, width: int) -> np.ndarray:
    height = max(len(drawn) for drawn, _ in pairs)
    row = Image.new("RGB", (width, _CAPTION + height + _MARGIN), "white")
    captions = ImageDraw.Draw(row)
    for column, pair in enumerate(pairs):
        left = _MARGIN + column * (2 * half + _GAP + _MARGIN)
        for x, text, drawn in zip((left, left + half + _GAP), _CAPTIONS, pair, strict=True):
            captions.text((x, 4), text, fill=(115, 115, 115), font=font(13))
            row.paste(Image.fromarray(drawn), (x, _CAPTION))
    return np.array(row)


def _pair(
    image: np.ndarray,
    detections: Detections,
    targets: Targets,
    classes: Sequence[str],
    half: int,
    score_threshold: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return both drawings, each at most ``half`` pixels wide."""
    resized, factors = _fitted(image, half)
    resized_detections = replace(detections, boxes=box_ops.scale(detections.boxes, factors))
    truth = targets.with_boxes(box_ops.scale(targets.boxes, factors))
    labels = len(targets) <= _MOST_LABELLED
    return (
        draw_detections(resized, resized_detections, classes, score_threshold, labels),
        draw_targets(resized, truth, classes, labels=labels),
    )


def photograph_row(
    examples: Sequence[tuple[np.ndarray, Targets]], classes: Sequence[str], width: int
) -> np.ndarray:
    """Return a white picture (h, ``width``, 3) uint8 RGB of the first four images with their objects.

    Boxes are in pixels of the images, (H, W, 3) uint8 RGB. Without examples h is 0.
    """
    column = (width - _MARGIN) // _COLUMNS
    drawn = []
    for image, targets in examples[:_COLUMNS]:
        resized, factors = _fitted(image, column - _MARGIN)
        truth = targets.with_boxes(box_ops.scale(targets.boxes, factors))
        drawn.append(draw_targets(resized, truth, classes, labels=len(targets) <= _MOST_LABELLED))
    if not drawn:
        return np.zeros((0, width, 3), np.uint8)
    row = Image.new("RGB", (width, max(len(picture) for picture in drawn) + _MARGIN), "white")
    for number, picture in enumerate(drawn):
        row.paste(Image.fromarray(picture), (_MARGIN + number * column, 0))
    return np.array(row)


def _fitted(image: np.ndarray, most_width: int) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the image resized for the page, and the factors of its height and width."""
    height, width = image.shape[:2]
    factor = min(most_width / width, _HIGHEST / height)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    return resized, (size[0] / height, size[1] / width)
