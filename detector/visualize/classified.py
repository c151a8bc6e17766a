"""Images with the scores of their classes, and the page that shows a classifier's run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from detector.core.errors import printable
from detector.visualize.drawing import class_colour, font, save_image
from detector.visualize.page import Curve, Series, charts

_ROW = 20  # pixels of a class's line
_LETTERS = 13
_PANEL = 232
_BAR = 60
_IMAGE_SIDE = 200  # of the drawn image
_MARGIN = 22
_HEADING = 34
_COLUMNS = 4
_MARKS = {1: " ✓", 0: " (difficult)", -1: ""}
_INK = {1: (0, 0, 0), 0: (120, 120, 120), -1: (120, 120, 120)}


class ClassifiedImage(NamedTuple):
    """An image (H, W, 3) uint8 RGB, the K classes' scores in [0, 1], and for each class 1 (there), 0 (only as
    difficult) or -1 (not there); ``presence`` is None where nobody knows."""

    image: np.ndarray
    scores: Sequence[float]
    presence: Sequence[int] | None = None


def draw_class_scores(shown: ClassifiedImage, classes: Sequence[str]) -> np.ndarray:
    """Return the image, brought to a common size, with its classes and their scores beside it.

    (h, w, 3) uint8 RGB. The best classes stand first, as many as there is room for; those that are there
    have a tick.
    """
    height, width = shown.image.shape[:2]
    scale = _IMAGE_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resized = cv2.resize(shown.image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    picture = Image.new("RGB", (_IMAGE_SIDE + _PANEL, _IMAGE_SIDE), "white")
    picture.paste(Image.fromarray(resized), (0, 0))
    draw = ImageDraw.Draw(picture)
    ranked = sorted(range(len(classes)), key=lambda k: -shown.scores[k])
    for place, k in enumerate(ranked[: _IMAGE_SIDE // _ROW]):
        presence = -1 if shown.presence is None else shown.presence[k]
        _write_class(draw, place * _ROW, classes[k], k + 1, shown.scores[k], presence)
    return np.array(picture)


def _write_class(
    draw: ImageDraw.ImageDraw, top: int, name: str, label: int, score: float, presence: int
) -> None:
    """Write a class's line: a bar as long as its score, the score, the name, and whether it is there."""
    name, left = printable(name), _IMAGE_SIDE + 6
    draw.rectangle((left, top + 4, left + _BAR, top + _ROW - 5), fill=(235, 235, 235))
    if score > 0:
        length = round(_BAR * score)
        draw.rectangle((left, top + 4, left + length, top + _ROW - 5), fill=class_colour(label))
    text, mark, room = f"{score:.2f} {name}", _MARKS[presence], _PANEL - _BAR - 16
    while len(name) > 1 and font(_LETTERS).getlength(text + mark) > room:
        name = name[:-1]
        text = f"{score:.2f} {name}…"
    draw.text((left + _BAR + 6, top + 1), text + mark, fill=_INK[presence], font=font(_LETTERS))


def classifier_picture(
    path: Path,
    *,
    losses: Mapping[str, Series],
    pr_curves: Mapping[str, Curve],
    figures: Mapping[str, Any],
    best: Sequence[ClassifiedImage],
    worst: Sequence[ClassifiedImage],
    classes: Sequence[str],
    title: str,
    evaluations: Mapping[str, Series] | None = None,
) -> None:
    """Write a one-page picture of a classifier's run: `run_picture`'s charts, then images with scores.

    ``best`` and ``worst`` are the images whose scores fit the truth best and worst, four of each at most.

    Raises InputError where ``path`` cannot be written.
    """
    plots = charts(
        losses=losses,
        pr_curves=pr_curves,
        figures=figures,
        classes=classes,
        title=title,
        evaluations=evaluations,
    )
    rows = [("scores that fit best (✓ is on the image)", best), ("scores that fit worst", worst)]
    drawn = [_row(heading, group, classes, plots.shape[1]) for heading, group in rows if group]
    save_image(path, np.vstack((plots, *drawn)))


def _row(heading: str, group: Sequence[ClassifiedImage], classes: Sequence[str], width: int) -> np.ndarray:
    row = Image.new("RGB", (width, _HEADING + _IMAGE_SIDE + _MARGIN), "white")
    ImageDraw.Draw(row).text((_MARGIN, 8), heading, fill=(115, 115, 115), font=font(15))
    step = (width - _MARGIN) // _COLUMNS
    for column, shown in enumerate(group[:_COLUMNS]):
        drawn = Image.fromarray(draw_class_scores(shown, classes))
        row.paste(drawn, (_MARGIN + column * step, _HEADING))
    return np.array(row)
