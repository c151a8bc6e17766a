"""Random images of flat shapes on textured backgrounds, with exact annotations.

The classes differ only by shape: size, proportions, rotation, texture and hue are random. Shapes have vivid
colours and backgrounds dull ones, so that a small network learns to distinguish the shapes in minutes.
Shapes overlap, hide one another and extend beyond the image's border; some images have none.

A box is the extent of the whole shape, including hidden parts, clipped to the image (VOC's own boxes cover
the visible part). It is measured on the drawn mask: the pixels of which the shape covers at least half.
An object is difficult if less than half of its area is visible or if its colour is close to that of the
pixels behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.random import Generator

from detector.core import boxes as box_ops
from detector.data.generated.shapes import Shape, random_shape

_MAX_OVERLAP = 0.3  # IoU of two boxes; more would make non-maximum suppression drop one of them
_MIN_VISIBLE = 0.25  # fraction of a shape's area
MOSTLY_VISIBLE = 0.75  # the fraction of every other shape that seven shapes in ten leave visible
_DIFFICULT_VISIBLE = 0.5
_MIN_SIDE = 12  # pixels of a clipped box
_CLEAR_CONTRAST = 70.0  # RGB distance to at least 4 in 5 of the pixels around


class SceneObject(NamedTuple):
    """The annotation of one object; the box (x1, y1, x2, y2) is half-open, in pixels."""

    name: str
    box: tuple[int, int, int, int]
    truncated: bool
    difficult: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """An image (H, W, 3) uint8 RGB and its shapes, each in front of those before it."""

    image: np.ndarray
    shapes: list[Shape]

    def difficult(self) -> list[bool]:
        parts = zip(self.shapes, _visible(self.shapes), strict=True)
        return [shape.faint or part < _DIFFICULT_VISIBLE for shape, part in parts]

    def objects(self) -> list[SceneObject]:
        """Return every shape as an object of its class."""
        return [
            SceneObject(shape.name, shape.box, shape.truncated, difficult)
            for shape, difficult in zip(self.shapes, self.difficult(), strict=True)
        ]


def _visible(shapes: list[Shape]) -> list[float]:
    """Return the fraction of each shape's area that is inside the image and not hidden."""
    parts: list[float] = []
    in_front = np.zeros(())  # grows to (H, W)
    for shape in reversed(shapes):
        mask = shape.mask
        parts.append(float(np.count_nonzero(mask > in_front)) / shape.area)
        in_front = np.maximum(in_front, mask)
    return parts[::-1]


def fits(shape: Shape, placed: list[Shape], least_visible: float) -> bool:
    """Say whether ``shape`` may be in front of ``placed``.

    It must leave the fraction ``least_visible`` of each shape's area visible.
    """
    x1, y1, x2, y2 = shape.box
    if min(x2 - x1, y2 - y1) < _MIN_SIDE:
        return False
    if placed:
        others = torch.tensor([other.box for other in placed], dtype=torch.float32)
        own = torch.tensor([shape.box], dtype=torch.float32)
        if box_ops.iou(own, others).max() > _MAX_OVERLAP:
            return False
    return min(_visible([*placed, shape])) >= least_visible


def random_shapes(rng: Generator, size: tuple[int, int]) -> list[Shape]:
    """Return up to five shapes of any class, anywhere."""
    wanted = 0 if rng.random() < 0.06 else int(rng.integers(1, 6))
    placed: list[Shape] = []
    for _ in range(4 * wanted):  # attempts; a crowded image may get fewer shapes
        if len(placed) == wanted:
            break
        shape = random_shape(rng, size)
        least_visible = _MIN_VISIBLE if rng.random() < 0.3 else MOSTLY_VISIBLE
        if fits(shape, placed, least_visible):
            placed.append(shape)
    return placed


def _texture(rng: Generator, size: tuple[int, int], colour: np.ndarray, spread: float) -> np.ndarray:
    """Return (H, W, 3) float32 that varies around ``colour`` (3,) by up to ``spread`` per channel."""
    height, width = size
    angle = rng.uniform(0, np.pi)
    along = np.arange(width) * np.cos(angle) + np.arange(height)[:, None] * np.sin(angle)
    pattern: np.ndarray
    match rng.integers(4):
        case 0:
            pattern = rng.uniform(-1, 1, size)
        case 1:
            pattern = 2 * (along - along.min()) / max(float(np.ptp(along)), 1.0) - 1
        case 2:
            pattern = np.sin(2 * np.pi * along / rng.uniform(6, 40))
        case _:
            cells = rng.integers(3, 14)
            grid = rng.uniform(-1, 1, (cells, cells))
            pattern = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    amplitude = (spread * rng.uniform(0.3, 1.0) + spread / 4 * rng.uniform(-1, 1, 3)).astype(np.float32)
    return colour.astype(np.float32) + pattern.astype(np.float32)[..., None] * amplitude


def _colours(
    rng: Generator, count: int, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """Return RGB colours (count, 3), 0 to 255, of any hue, with saturation and value in these ranges."""
    hue = rng.random((count, 3))
    hue -= hue.min(axis=1, keepdims=True)
    hue /= hue.max(axis=1, keepdims=True)
    return 255 * rng.uniform(*value, (count, 1)) * (1 - rng.uniform(*saturation, (count, 1)) * (1 - hue))


def _dull_colours(rng: Generator, count: int) -> np.ndarray:
    return _colours(rng, count, saturation=(0.0, 0.35), value=(0.25, 0.85))


def draw_background(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    """Return a textured background (H, W, 3) with a few thin strokes, which belong to no class."""
    image = _texture(rng, size, _dull_colours(rng, 1)[0], spread=32)
    for _ in range(rng.integers(0, 4)):
        steps = rng.normal(scale=30, size=(3, 2)).cumsum(axis=0)
        points = (rng.uniform(0, size[::-1]) + steps).astype(np.int32)
        colour, thickness = _dull_colours(rng, 1)[0].tolist(), int(rng.integers(1, 4))
        cv2.polylines(image, [points], isClosed=False, color=colour, thickness=thickness)
    return image


def _pick_colour(rng: Generator, behind: np.ndarray, faint: bool) -> np.ndarray:
    """Return a colour (3,) that contrasts with the pixels ``behind`` (n, 3), or hardly does if ``faint``."""
    if faint:
        direction = rng.normal(size=3)
        return behind.mean(axis=0) + 24 * direction / np.linalg.norm(direction)
    candidates = _colours(rng, 24, saturation=(0.6, 1.0), value=(0.5, 1.0))
    distances = np.linalg.norm(candidates[:, None] - behind[None], axis=2)
    contrast = np.percentile(distances, 20, axis=1)
    clear = np.flatnonzero(contrast > _CLEAR_CONTRAST)
    return candidates[clear[0] if len(clear) else contrast.argmax()]


def _paint(rng: Generator, image: np.ndarray, shape: Shape) -> None:
    """Draw ``shape`` into ``image`` (H, W, 3) float32."""
    x1, y1, x2, y2 = shape.box
    window = np.s_[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3]
    canvas, coverage = image[window], shape.coverage[window]
    kernel = np.ones((5, 5), np.uint8)
    fill = draw_fill(rng, canvas[cv2.dilate(coverage, kernel) > 0][::7], coverage, faint=shape.faint)
    canvas += coverage[..., None] * (fill - canvas)


def draw_fill(rng: Generator, behind: np.ndarray, coverage: np.ndarray, *, faint: bool) -> np.ndarray:
    """Return a textured fill (h, w, 3) float32 for ``coverage`` (h, w), in contrast to ``behind`` (n, 3)."""
    colour = _pick_colour(rng, behind, faint)
    fill = _texture(rng, coverage.shape, colour, spread=6 if faint else 14)
    if rng.random() < 0.6 and not faint:
        rim = (coverage - cv2.erode(coverage, np.ones((5, 5), np.uint8)))[..., None]
        fill += 0.6 * rim * (np.float32(rng.choice((0, 255))) - fill)
    return fill


def draw_scene(
    rng: Generator,
    size: tuple[int, int],
    place: Callable[[Generator, tuple[int, int]], list[Shape]] = random_shapes,
) -> Scene:
    """Return a random scene of ``size`` (height, width) in pixels; ``place`` chooses its shapes."""
    image, shapes = draw_background(rng, size), place(rng, size)
    for shape in shapes:
        _paint(rng, image, shape)
    image += rng.uniform(1, 6) * rng.standard_normal(image.shape, dtype=np.float32)
    return Scene(image=np.clip(np.rint(image), 0, 255).astype(np.uint8), shapes=shapes)
