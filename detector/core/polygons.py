"""Polygons as masks, drawn as COCO's API does it.

pycocotools walks along the outline in steps of a fifth of a pixel and allocates memory for each step, so a
polygon is checked before it is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from detector.core.errors import InputError
from detector.core.masks import Masks

Polygon = NDArray[np.float64]
"""The corners (n, 2) of a polygon, x and y, continuous: the first pixel lies between 0 and 1."""
_MAX_STEPS = 1 << 24
_STEPS_PER_PIXEL = 5  # pycocotools' own
_ARC_POINTS = 128  # of an ellipse: the outline is off by 0.0003 of the radius


@dataclass(frozen=True, slots=True)
class FractionalPolygons:
    """The polygons of P regions in fractions of an image of unknown size; a region without any has a box."""

    polygons: tuple[tuple[Polygon, ...], ...]

    def __len__(self) -> int:
        return len(self.polygons)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which regions (P,) have a mask."""
        return np.array([bool(parts) for parts in self.polygons], dtype=np.bool_)

    def drawn(self, size: tuple[int, int], where: str) -> Masks:
        """Return the masks in an image of ``size`` (height, width). Raises InputError as `draw`."""
        scale = np.array(size[::-1], np.float64)
        counts = (
            draw([part * scale for part in parts], size, f"{where}, region {row}") if parts else b""
            for row, parts in enumerate(self.polygons)
        )
        return Masks(size, tuple(counts))


def corners(points: Any, where: str) -> Polygon:
    """Return the corners (n, 2) of a list of [x, y]; InputError for anything else and for under three."""
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < 3:
        raise InputError(f"{where}: a polygon must be a list of at least three points [x, y]")
    return array


def draw(polygons: Sequence[Polygon], size: tuple[int, int], where: str) -> bytes:
    """Return the compressed counts of the mask that ``polygons`` cover together.

    They are in pixels of an image of ``size`` (height, width); what lies outside it is cut off. The counts
    are ``b""`` where they cover no pixel, as a polygon that is thinner than one may do.

    Raises:
        InputError: a coordinate that is not finite or far from the image, or an outline of over 3 million
            pixels.
    """
    height, width = size
    limit = 2.0 * max(height, width) + 100
    steps = 0.0
    for polygon in polygons:
        if not (np.abs(polygon) < limit).all():
            row = int((~(np.abs(polygon) < limit)).any(axis=1).argmax())
            raise InputError(
                f"{where}: the polygon's point {polygon[row].tolist()} is not in an image of {width} x "
                f"{height} pixels"
            )
        edges = np.abs(np.diff(polygon, axis=0, append=polygon[:1])).max(axis=1)
        steps += float(edges.sum() + len(edges)) * _STEPS_PER_PIXEL
    if steps > _MAX_STEPS:
        raise InputError(f"{where}: an outline of over {_MAX_STEPS // _STEPS_PER_PIXEL} pixels is refused")
    drawn = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    whole = coco_mask.merge(drawn)
    counts: bytes = whole["counts"]
    return counts if coco_mask.area(whole) else b""


def ellipse(x: float, y: float, x_radius: float, y_radius: float, degrees: float = 0.0) -> Polygon:
    """Return a polygon for an ellipse around (x, y), turned clockwise by ``degrees`` around its centre."""
    angles = np.linspace(0, 2 * math.pi, _ARC_POINTS, endpoint=False)
    points = np.stack((x_radius * np.cos(angles), y_radius * np.sin(angles)), axis=1)
    return turned(points, degrees) + np.array((x, y))


def turned(points: Polygon, degrees: float) -> Polygon:
    """Return ``points`` (n, 2) turned clockwise around (0, 0), as one sees it with y pointing down."""
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    return points @ np.array([[cosine, sine], [-sine, cosine]])
