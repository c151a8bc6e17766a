"""Pictures of images with their class scores, singly and in rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from detector.core.errors import printable
from detector.visualize.drawing import class_colour, font
from detector.visualize.grid import COLUMNS, MARGIN, picture_row

_ROW = 20  # height of the line of a class, in pixels
_FONT_SIZE = 13
_PANEL = 232
_BAR = 60
_IMAGE_SIDE = 200  # longer side of the drawn image, in pixels
_HEADING = 34
_MARKS = {1: " ✓", 0: " (difficult)", -1: ""}
_INK = {1: (0, 0, 0), 0: (120, 120, 120), -1: (120, 120, 120)}


class ClassifiedImage(NamedTuple):
    """An image (H, W, 3) uint8 RGB with the scores of the K classes in [0, 1].

    ``presence`` is, for each class, 1 (on the image), 0 (only as difficult objects) or -1 (not on the
    image); it is None for images without annotations.
    """

    image: np.ndarray
    scores: Sequence[float]
    presence: Sequence[int] | None = None


def draw_class_scores(classified: ClassifiedImage, classes: Sequence[str]) -> np.ndarray:
    """Return a picture (h, w, 3) uint8 RGB of the image, resized, with its classes and their scores.

    The classes are sorted by decreasing score, as many as there is room for. A tick marks those that are on
    the image.
    """
    height, width = classified.image.shape[:2]
    factor = _IMAGE_SIDE / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(classified.image, size, interpolation=method)
    picture = Image.new("RGB", (_IMAGE_SIDE + _PANEL, _IMAGE_SIDE), "white")
    picture.paste(Image.fromarray(resized), (0, 0))
    draw = ImageDraw.Draw(picture)
    ranked = sorted(range(len(classes)), key=lambda k: -classified.scores[k])
    for line, k in enumerate(ranked[: _IMAGE_SIDE // _ROW]):
        presence = -1 if classified.presence is None else classified.presence[k]
        _write_class(draw, line * _ROW, classes[k], k + 1, classified.scores[k], presence)
    return np.array(picture)


def label_with_classes(
    image: np.ndarray, scores: Sequence[float], classes: Sequence[str], score_threshold: float
) -> np.ndarray:
    """Return a copy of ``image`` (H, W, 3) uint8 RGB with its classes written into the upper left corner.

    The classes that score at least ``score_threshold`` are written by falling score, as many as fit.
    """
    picture = Image.fromarray(image)
    draw, height = ImageDraw.Draw(picture), 0
    letters = font(int(np.clip(round(min(image.shape[:2]) / 20), 9, 48)))
    line = sum(letters.getmetrics())
    for k in sorted(range(len(classes)), key=lambda k: -scores[k]):
        if scores[k] < score_threshold or height + line > image.shape[0]:
            break
        text, colour = f"{printable(classes[k])} {scores[k]:.2f}", class_colour(k + 1)
        draw.rectangle((0, height, letters.getlength(text) + 8, height + line - 1), fill=colour)
        ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)
        draw.text((4, height), text, fill=ink, font=letters)
        height += line
    return np.array(picture)


def _write_class(
    draw: ImageDraw.ImageDraw, top: int, name: str, label: int, score: float, presence: int
) -> None:
    name, left = printable(name), _IMAGE_SIDE + 6
    draw.rectangle((left, top + 4, left + _BAR, top + _ROW - 5), fill=(235, 235, 235))
    if score > 0:
        length = round(_BAR * score)
        draw.rectangle((left, top + 4, left + length, top + _ROW - 5), fill=class_colour(label))
    text, mark, room = f"{score:.2f} {name}", _MARKS[presence], _PANEL - _BAR - 16
    while len(name) > 1 and font(_FONT_SIZE).getlength(text + mark) > room:
        name = name[:-1]
        text = f"{score:.2f} {name}…"
    draw.text((left + _BAR + 6, top + 1), text + mark, fill=_INK[presence], font=font(_FONT_SIZE))


def score_rows(
    best: Sequence[ClassifiedImage], worst: Sequence[ClassifiedImage], classes: Sequence[str], width: int
) -> np.ndarray:
    """Return a white picture (h, ``width``, 3) uint8 RGB of two rows of images with scores, four each.

    ``best`` and ``worst`` are the images whose scores agree best and worst with the annotations. A row
    without images is left out.
    """
    rows = [np.zeros((0, width, 3), np.uint8)]
    step = (width - MARGIN) // COLUMNS
    for heading, group in (
        ("scores that fit best (✓ is on the image)", best),
        ("scores that fit worst", worst),
    ):
        if group:
            drawn = [draw_class_scores(classified, classes) for classified in group[:COLUMNS]]
            row = picture_row(drawn, range(MARGIN, width, step), width, top=_HEADING)
            ImageDraw.Draw(row).text((MARGIN, 8), heading, fill=(115, 115, 115), font=font(15))
            rows.append(np.array(row))
    return np.concatenate(rows)
