"""The shapes of the generated images: their outlines at random positions, and their masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

CLASSES = ("cross", "disc", "ring", "square", "triangle")

_SUPERSAMPLING = 4
_FRACTION_BITS = 4  # OpenCV takes polygon corners as fixed-point numbers


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shape:
    """One object at its position in an image of H x W pixels.

    ``outlines`` are polygons (n, 2) in continuous pixels (x, y), filled by the even-odd rule;
    ``coverage`` (H, W) in [0, 1] is the fraction of each pixel that they cover; ``area`` in square pixels
    includes what is outside the image; ``faint`` shapes are drawn with low contrast.
    """

    name: str
    outlines: list[np.ndarray]
    coverage: np.ndarray
    area: float
    faint: bool

    @property
    def mask(self) -> np.ndarray:
        return self.coverage >= 0.5

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The mask's extent (x1, y1, x2, y2), half-open; all zero where no pixel is covered."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return (0, 0, 0, 0)
        return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)

    @property
    def truncated(self) -> bool:
        height, width = self.coverage.shape
        points = np.concatenate(self.outlines)
        return bool((points < 0).any() or (points > (width, height)).any())


def _circle(radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)


def _unit_outlines(name: str) -> list[np.ndarray]:
    """Return the class's polygons, about one unit from the centre to the rim."""
    match name:
        case "disc":
            return [_circle(0.95)]
        case "ring":
            return [_circle(1.0), _circle(0.55)]
        case "square":
            return [0.82 * np.array([(-1.0, -1.0), (1, -1), (1, 1), (-1, 1)])]
        case "triangle":
            return [1.15 * np.array([(0.0, -1.0), (math.sqrt(0.75), 0.5), (-math.sqrt(0.75), 0.5)])]
        case _:
            arm = np.array([(-0.3, -0.3), (-0.3, -1.0), (0.3, -1.0)])
            quarter = np.array([(0, 1), (-1, 0)])
            return [np.concatenate([arm @ np.linalg.matrix_power(quarter, turns) for turns in range(4)])]


def random_shape(rng: Generator, size: tuple[int, int], names: Sequence[str] = CLASSES) -> Shape:
    """Return one of the shapes ``names`` at a random position in an image of ``size`` (height, width)."""
    name = str(rng.choice(names))
    diameter = np.exp(rng.uniform(np.log(30), np.log(min(100, 0.7 * min(size)))))
    aspect, angle = np.exp(rng.uniform(-0.3, 0.3)), rng.uniform(-0.3, 0.3)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    stretch = diameter / 2 * np.array((np.sqrt(aspect), 1 / np.sqrt(aspect)))
    outlines = [(polygon * stretch) @ turn for polygon in _unit_outlines(name)]
    inside = rng.random() > 0.2  # one in five may extend beyond the border
    low = -outlines[0].min(axis=0) if inside else np.zeros(2)
    high = np.array(size[::-1]) - (outlines[0].max(axis=0) if inside else 0)
    centre = rng.uniform(np.minimum(low, high), high)
    placed = [polygon + centre for polygon in outlines]
    areas = [cv2.contourArea(polygon.astype(np.float32)) for polygon in placed]
    return Shape(
        name=name,
        outlines=placed,
        coverage=rasterise(placed, size),
        area=areas[0] - sum(areas[1:]),
        faint=bool(rng.random() < 0.06),
    )


def rasterise(outlines: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Return the covered fraction (H, W) of each pixel; (0, 0) is the image's top left corner."""
    height, width = size
    fine = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    # OpenCV's integer coordinates are pixel centres, half a pixel from the corner.
    fixed = [
        np.rint((polygon * _SUPERSAMPLING - 0.5) * 2**_FRACTION_BITS).astype(np.int32) for polygon in outlines
    ]
    cv2.fillPoly(fine, fixed, 255, shift=_FRACTION_BITS)
    # fillPoly fills every pixel that the outline touches; counted half, they leave the area unbiased.
    cv2.polylines(fine, fixed, isClosed=True, color=128, shift=_FRACTION_BITS)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
