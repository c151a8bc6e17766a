"""A generated video: the quick start's shapes move over a background, with exact annotations in every frame.

Colours, textures and the definition of boxes and ``difficult`` are those of `detector.data.generated.scenes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from detector.data.generated.scenes import Scene, draw_background, draw_fill
from detector.data.generated.shapes import CLASSES, Shape, random_shape, rasterise

_MARGIN = 2  # pixels around a drawn shape
_OUTSIDE = 0.25  # the part of a shape's sides that may leave the image
_SLOWEST, _FASTEST = 0.004, 0.02  # of the image's shorter side, per frame


@dataclass(kw_only=True, slots=True, eq=False)
class _Mover:
    """A shape that was drawn once: ``fill`` (h, w, 3) where it is not covered, and where it is now."""

    shape: Shape
    outlines: list[np.ndarray]
    coverage: np.ndarray
    fill: np.ndarray
    place: np.ndarray  # (x, y) of the upper left corner of ``coverage`` in the image
    speed: np.ndarray  # (x, y) per frame

    def advance(self, size: tuple[int, int]) -> None:
        """Move by one frame; turn back where too much of the shape would leave the image."""
        self.place = self.place + self.speed
        sides = np.array(self.coverage.shape[::-1])
        low, high = -_OUTSIDE * sides, np.array(size[::-1]) - (1 - _OUTSIDE) * sides
        self.speed = np.where(self.place < low, abs(self.speed), self.speed)
        self.speed = np.where(self.place > high, -abs(self.speed), self.speed)

    def paint(self, image: np.ndarray) -> Shape:
        """Draw the shape into ``image`` (H, W, 3) float32, and return it as a shape of this image."""
        x, y = (int(corner) for corner in np.rint(self.place))
        height, width = self.coverage.shape
        top, left = max(-y, 0), max(-x, 0)
        bottom, right = min(image.shape[0] - y, height), min(image.shape[1] - x, width)
        part, window = np.s_[top:bottom, left:right], np.s_[y + top : y + bottom, x + left : x + right]
        coverage = np.zeros(image.shape[:2], np.float32)
        coverage[window] = self.coverage[part]
        image[window] += self.coverage[part][..., None] * (self.fill[part] - image[window])
        return Shape(
            name=self.shape.name,
            outlines=[polygon + np.array((x, y)) for polygon in self.outlines],
            coverage=coverage,
            area=self.shape.area,
            faint=False,
        )


def moving_shapes(
    frames: int, size: tuple[int, int] = (160, 200), shapes: int = 3, seed: int = 0
) -> Iterator[Scene]:
    """Yield the frames of a clip of ``size`` (height, width) in pixels, in which ``shapes`` shapes move.

    Each shape keeps its class, colour and size and moves straight on until it reaches the border; shapes hide
    one another where they meet. The same arguments give the same frames.
    """
    rng = np.random.default_rng([seed, 2])
    background = draw_background(rng, size)
    movers = [_new_mover(rng, size, background) for _ in range(shapes)]
    noise = rng.uniform(1, 4)
    for _ in range(frames):
        image = background.copy()
        drawn = [mover.paint(image) for mover in movers]
        image += noise * rng.standard_normal(image.shape, dtype=np.float32)
        yield Scene(image=np.clip(np.rint(image), 0, 255).astype(np.uint8), shapes=drawn)
        for mover in movers:
            mover.advance(size)


def _new_mover(rng: Generator, size: tuple[int, int], background: np.ndarray) -> _Mover:
    shape = random_shape(rng, size, CLASSES)
    corner = np.floor(np.concatenate(shape.outlines).min(axis=0)) - _MARGIN
    outlines = [polygon - corner for polygon in shape.outlines]
    width, height = np.ceil(np.concatenate(outlines).max(axis=0)).astype(int) + _MARGIN
    coverage = rasterise(outlines, (int(height), int(width)))
    angle, pace = rng.uniform(0, 2 * np.pi), min(size) * rng.uniform(_SLOWEST, _FASTEST)
    return _Mover(
        shape=shape,
        outlines=outlines,
        coverage=coverage,
        fill=draw_fill(rng, background.reshape(-1, 3)[::97], coverage, faint=False),
        place=corner,
        speed=pace * np.array((np.cos(angle), np.sin(angle))),
    )
