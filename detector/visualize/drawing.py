"""Boxes and labels on images.

Text is drawn with Pillow in the DejaVu font that matplotlib ships, since OpenCV's own fonts have only ASCII
characters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from detector.core import boxes as box_ops
from detector.core.errors import InputError, printable
from detector.core.files import atomic_write
from detector.core.structures import Detections, Targets

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in whole pixels, half-open

# Okabe and Ito, "Color Universal Design" (2008), without black, reordered so that neighbours differ clearly.
_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (0, 114, 178),
)
# In later rounds through the palette, colours are mixed with white or black in these proportions.
_ROUNDS: tuple[tuple[int, float], ...] = ((0, 0.0), (255, 0.45), (0, 0.4), (255, 0.7), (0, 0.6))
USUAL_THRESHOLD = 0.5
"""The score from which detections are drawn where no threshold is given."""
_SUFFIXES = (".jpg", ".jpeg", ".png")
_JPEG_SIDE = 65_500  # libjpeg's limit


def class_colour(label: int) -> Colour:
    """Return the RGB colour of class ``label`` (1..K); it repeats after 35 classes."""
    colour = _PALETTE[(label - 1) % len(_PALETTE)]
    other, part = _ROUNDS[(label - 1) // len(_PALETTE) % len(_ROUNDS)]
    red, green, blue = (round((1 - part) * channel + part * other) for channel in colour)
    return red, green, blue


def draw_detections(
    image: np.ndarray,
    detections: Detections,
    classes: Sequence[str],
    score_threshold: float | None = None,
    labels: bool = True,
) -> np.ndarray:
    """Return a copy of ``image`` (H, W, 3) uint8 RGB with the detections drawn on it.

    Boxes are in pixels of this image; ``classes`` are the K names. Detections that score less than
    ``score_threshold`` (None means 0.5) are left out. Detections with higher scores are drawn over those with
    lower scores, and their labels are placed first. With ``labels`` False only colours show the classes.
    """
    canvas = _Canvas(image)
    by_score = detections.scores.cpu().argsort(stable=True)
    lowest = USUAL_THRESHOLD if score_threshold is None else score_threshold
    shown = by_score[detections.scores.cpu()[by_score] >= lowest]
    boxes, scores = detections.boxes.cpu()[shown], detections.scores.cpu()[shown].tolist()
    class_labels = detections.labels.cpu()[shown].tolist()
    for box, label in zip(boxes, class_labels, strict=True):
        canvas.outline(box, class_colour(label))
    if labels:
        for box, label, score in reversed(list(zip(boxes, class_labels, scores, strict=True))):
            canvas.label(box, classes[label - 1], f" {score:.2f}", class_colour(label))
    return canvas.pixels()


def draw_targets(
    image: np.ndarray, targets: Targets, classes: Sequence[str], labels: bool = True
) -> np.ndarray:
    """Return a copy of ``image`` (H, W, 3) uint8 RGB with the objects drawn on it.

    Boxes are in pixels of this image; ``classes`` are the K names. Objects that the metrics ignore
    (``difficult`` or ``crowd``) have dashed boxes. With ``labels`` False only colours show the classes.
    """
    canvas = _Canvas(image)
    boxes, class_labels = targets.boxes.cpu(), targets.labels.tolist()
    ignored = (targets.difficult | targets.crowd).tolist()
    for box, label, dashed in zip(boxes, class_labels, ignored, strict=True):
        canvas.outline(box, class_colour(label), dashed=dashed)
    if labels:
        for box, label in zip(boxes, class_labels, strict=True):
            canvas.label(box, classes[label - 1], "", class_colour(label))
    return canvas.pixels()


def save_image(path: Path, image: np.ndarray) -> None:
    """Write ``image`` (H, W, 3) uint8 RGB as JPEG or PNG, by the suffix, completely or not at all.

    An image with a side of more than 65500 pixels, which no JPEG can have, is shrunk to that length.

    Raises InputError for another suffix or a place that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{path}: pictures are written as {', '.join(_SUFFIXES)}, not {path.suffix!r}")
    picture = Image.fromarray(_checked(image))
    if path.suffix.lower() != ".png":
        picture.thumbnail((_JPEG_SIDE, _JPEG_SIDE))  # leaves smaller ones as they are
    with atomic_write(path, durable=False) as file:
        picture.save(file, Image.registered_extensions()[path.suffix.lower()], quality=92)


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans at ``size`` pixels."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an image must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
    return np.ascontiguousarray(image)


class _Canvas:
    """A copy of an image to draw on, with a line width and a font size that suit its size."""

    def __init__(self, image: np.ndarray) -> None:
        self.height, self.width = image.shape[:2]
        self._image = Image.fromarray(_checked(image))
        self._draw = ImageDraw.Draw(self._image)
        side = (self.height * self.width) ** 0.5
        self._line = max(2, round(side / 220))
        self._font = font(int(np.clip(round(side / 32), 9, 48)))
        self._labels: list[Rectangle] = []

    def pixels(self) -> np.ndarray:
        return np.array(self._image)

    def outline(self, box: Tensor, colour: Colour, dashed: bool = False) -> None:
        """Draw the box's border inside the box, and a thin black line around it for contrast."""
        x1, y1, x2, y2 = self._whole_pixels(box)
        self._draw.rectangle((x1 - 1, y1 - 1, x2, y2), outline=(0, 0, 0))
        length = 5 * self._line if dashed else max(x2 - x1, y2 - y1)
        for start in range(0, max(x2 - x1, y2 - y1), 2 * length):
            along = (start, start + length)
            for y in (y1, y2 - self._line):
                self._fill(x1 + along[0], y, min(x1 + along[1], x2), y + self._line, colour)
            for x in (x1, x2 - self._line):
                self._fill(x, y1 + along[0], x + self._line, min(y1 + along[1], y2), colour)

    def label(self, box: Tensor, name: str, suffix: str, colour: Colour) -> None:
        """Write ``name`` and ``suffix`` above the box, or nearby where they cover no earlier label.

        A name too long for the image is shortened. Where not even ``suffix`` fits, nothing is written.
        """
        text = self._shortened(printable(name), suffix)
        width, height = self._text_size(text)
        if width > self.width or height > self.height:
            return
        places = list(self._label_places(self._whole_pixels(box), width, height))
        x, y, _, _ = place = min(places, key=self._covered)  # the first of those that cover the fewest pixels
        self._labels.append(place)
        self._fill(x, y, x + width, y + height, colour)
        ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)
        self._draw.text((x + 2, y), text, fill=ink, font=self._font)

    def _label_places(self, box: Rectangle, width: int, height: int) -> Iterator[Rectangle]:
        """Yield the rectangles where a label of this size may be drawn, the best one first.

        First come those above the box (or inside it, at the upper edge of the image), then those at its
        other edges, from left to right. A box with many labels also has lines further above and below it.
        """
        x1, y1, x2, y2 = box
        above = y1 - height if y1 >= height else y1
        further = (y for line in range(1, 4) for y in (above - line * height, y2 + line * height))
        for y in dict.fromkeys((above, y1, y2, y2 - height, *further)):
            for x in dict.fromkeys((x1, (x1 + x2 - width) // 2, x2 - width)):
                left, top = min(max(x, 0), self.width - width), min(max(y, 0), self.height - height)
                yield left, top, left + width, top + height

    def _covered(self, place: Rectangle) -> int:
        """Return how many pixels of the earlier labels ``place`` covers."""
        x1, y1, x2, y2 = place
        return sum(
            max(min(x2, right) - max(x1, left), 0) * max(min(y2, bottom) - max(y1, top), 0)
            for left, top, right, bottom in self._labels
        )

    def _whole_pixels(self, box: Tensor) -> Rectangle:
        """Return the pixels that ``box`` (4,) touches, half-open, inside the image, at least one."""
        x1, y1, x2, y2 = box_ops.clip(box.float(), (self.height, self.width)).tolist()
        left, top = min(int(x1), self.width - 1), min(int(y1), self.height - 1)
        return left, top, max(math.ceil(x2), left + 1), max(math.ceil(y2), top + 1)

    def _fill(self, x1: int, y1: int, x2: int, y2: int, colour: Colour) -> None:
        if x1 < x2 and y1 < y2:
            self._draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)

    def _shortened(self, name: str, suffix: str) -> str:
        text = name + suffix
        while name and self._text_size(text)[0] > self.width:
            name = name[:-1]
            text = f"{name}…{suffix}"
        return text

    def _text_size(self, text: str) -> tuple[int, int]:
        """Return the width and height of the label's background; the height is the same for all texts."""
        ascent, descent = self._font.getmetrics()
        return math.ceil(self._font.getlength(text)) + 4, ascent + descent
