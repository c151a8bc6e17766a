"""What is drawn in an annotation file, in one form: `Shape`; and the checks of what JSON files say about it.

YOLO, LabelMe and Label Studio count coordinates from the outer corner of the first pixel, so that a box is
half-open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detector.core.errors import InputError
from detector.core.polygons import draw

Point = tuple[float, float]
Box = tuple[float, float, float, float]
Painter = Callable[[tuple[int, int], str], bytes]
"""Draws a mask into an image of a size (height, width); the text begins the message of an error."""

MAX_PIXELS = 2.0**24
"""Pixels along a side; up to here float32 holds every whole pixel."""

_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One object as it is drawn.

    ``labels`` are its names; YOLO's is the number of the class. Where labels are needed there is at least
    one. ``box`` is x1, y1, x2, y2, half-open, in pixels of the image, in YOLO's files as fractions of its
    sides. ``polygons`` are its outlines in the same unit, none where only a box is drawn. ``painter`` draws
    what is neither a box nor polygons. ``confidence`` is that of a prediction. ``attributes`` are further
    properties as the file has them, and ``place`` says where in the file it is. With ``joined`` it consists
    of several shapes.
    """

    labels: tuple[str, ...]
    box: Box
    polygons: tuple[tuple[Point, ...], ...] = ()
    painter: Painter | None = field(default=None, compare=False, repr=False)
    confidence: float | None = None
    difficult: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)
    joined: bool = False
    place: str

    @property
    def is_box(self) -> bool:
        """Whether only a box is drawn."""
        return self.painter is None and not self.polygons

    def mask(self, size: tuple[int, int], where: str) -> bytes:
        """Return the compressed counts of the mask in an image of ``size`` (height, width).

        They are ``b""`` for a box, and where no pixel is covered. Only for shapes in pixels.

        Raises:
            InputError: a shape that cannot be drawn; the message begins with ``where``.
        """
        if self.painter is not None:
            return self.painter(size, where)
        return draw([np.array(part) for part in self.polygons], size, where) if self.polygons else b""


def extent(points: Sequence[Point]) -> tuple[float, float, float, float]:
    """Return the smallest box around ``points``, at least one."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def points_of(points: Any, where: str) -> list[Point]:
    if not isinstance(points, list) or not points:
        raise InputError(f"{where}: points is {short(points)}; expected a list of [x, y]")
    for point in points:
        if not isinstance(point, list) or len(point) != 2:
            raise InputError(f"{where}: a point is {short(point)}; expected [x, y]")
    return [(number_of(x, "x", where), number_of(y, "y", where)) for x, y in points]


def number_of(value: Any, name: str, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MAX_PIXELS:
        raise InputError(f"{where}: {name} is {short(value)}; expected a number up to {MAX_PIXELS:.0f}")
    return float(value)


def size_of(entry: Mapping[str, Any], height: str, width: str, where: str) -> tuple[int, int] | None:
    """Return the (height, width) under these keys, None where one is missing, null or zero."""
    sides = []
    for key in (height, width):
        given = entry.get(key)
        value = number_of(0 if given is None else given, key, where)
        if value < 0 or value != int(value):
            raise InputError(f"{where}: {key} is {short(entry[key])}; expected a whole number of pixels")
        sides.append(int(value))
    return (sides[0], sides[1]) if all(sides) else None


def label_of(label: Any, where: str) -> str:
    """Return the name of a class without blanks around it; InputError, which begins with ``where``."""
    if not isinstance(label, str) or not label.strip():
        raise InputError(f"{where}: the label is {short(label)}; expected the name of a class")
    if label.encode("utf-8", errors="replace").decode() != label:
        raise InputError(f"{where}: the label is {short(label)}, with half a character in it; correct it")
    return label.strip()


def labels_of(labels: Sequence[Any], required: bool, where: str) -> tuple[str, ...]:
    """Return the different ones of ``labels``; blank ones and null are errors only if labels are required."""
    given = [
        one for one in labels if required or not (one is None or (isinstance(one, str) and not one.strip()))
    ]
    return tuple(dict.fromkeys(label_of(one, where) for one in given))


def mapping_of(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _NOTHING


def short(value: Any) -> str:
    return repr(value)[:60]
