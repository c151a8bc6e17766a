"""The only step from a decoded image to an input: window, resize, flip; the device normalises it later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from detector.core.structures import ImageMeta, Window, window_size

Colour = tuple[int, int, int]
"""RGB, each from 0 to 255."""
BLACK: Colour = (0, 0, 0)


def input_size(size: tuple[int, int], shorter_side: float, max_size: float) -> tuple[int, int]:
    """Return the (height, width) in pixels at which ``size`` has ``shorter_side``, within ``max_size``.

    The rule of Fast R-CNN's release: if the longer side would exceed ``max_size`` after rounding, it becomes
    ``max_size`` and the shorter side becomes smaller than requested.
    """
    short, long = min(size), max(size)
    factor = shorter_side / short
    if round(factor * long) > max_size:
        factor = max_size / long
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Resizes and flips an image; random choices come from the generators that are passed in.

    ``resize`` "shorter" brings the shorter side to a scale, "square" both sides whatever the proportions, and
    "none" keeps the image's own size. Except with "square", ``max_size`` limits the longer side. With ``rng``
    None, as in evaluation, nothing is random: the scale is the first of ``scales``, and ``mirrored`` decides
    whether the image is mirrored.
    """

    scales: tuple[int, ...]
    max_size: int
    resize: Literal["shorter", "square", "none"] = "shorter"
    flip: float = 0.0
    vertical_flip: float = 0.0
    scale_jitter: tuple[float, float] | None = None
    mirrored: bool = False

    def plan(
        self,
        size: tuple[int, int],
        image_id: str,
        rng: np.random.Generator | None = None,
        scale_rng: np.random.Generator | None = None,
        window: Window | None = None,
    ) -> ImageMeta:
        """Return what is to be done to an image of ``size`` (height, width).

        ``scale_rng`` draws the scale instead of ``rng``, for images that share their scale. ``window`` is
        what the input shows, and its size takes the place of the image's; None is the whole image.
        """
        scale, flipped, upside_down = float(self.scales[0]), self.mirrored, False
        if rng is not None:
            scale = self._draw_scale(scale_rng or rng)
            flipped = bool(rng.random() < self.flip)
            upside_down = bool(rng.random() < self.vertical_flip)
        return ImageMeta(
            image_id=image_id,
            original_size=size,
            input_size=self.size_of(window_size(size, window), scale),
            flipped=flipped,
            flipped_vertically=upside_down,
            window=window,
        )

    def _draw_scale(self, rng: np.random.Generator) -> float:
        scale = float(self.scales[rng.integers(len(self.scales))])
        if self.scale_jitter is not None:
            low, high = np.log(self.scale_jitter)
            scale *= float(np.exp(rng.uniform(low, high)))
        return scale

    def size_of(self, size: tuple[int, int], scale: float | None = None) -> tuple[int, int]:
        """Return the (height, width) of the input for an image of ``size``; None takes the first scale."""
        scale = float(self.scales[0]) if scale is None else scale
        if self.resize == "square":
            return max(1, round(scale)), max(1, round(scale))
        return input_size(size, min(size) if self.resize == "none" else scale, self.max_size)


def transformed(pixels: np.ndarray, meta: ImageMeta, fill: Colour = BLACK) -> Tensor:
    """Return ``pixels`` (H, W, 3) uint8 as (h, w, 3) uint8, cut, resized and flipped as ``meta`` says.

    ``pixels`` may be smaller than the original image, as `detector.data.images.LoadedImage` decodes large
    photographs; the edges of a window then lie within half such a pixel. ``fill`` is the colour of what a
    window has outside the image. The result may share the memory of ``pixels``.
    """
    height, width = meta.input_size
    if meta.window is not None:
        pixels = _windowed(pixels, meta, fill)
    elif pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    if meta.flipped or meta.flipped_vertically:
        pixels = cv2.flip(pixels, _FLIPS[meta.flipped, meta.flipped_vertically])
    return torch.from_numpy(pixels)


_FLIPS = {(True, False): 1, (False, True): 0, (True, True): -1}  # OpenCV's codes, by ImageMeta's two flags


def place_of_image(meta: ImageMeta) -> tuple[int, int, int, int]:
    """Return where the image's own pixels lie in the input before it is flipped: x1, y1, x2, y2.

    Whole input pixels, half-open, at least one on each side.
    """
    height, width = meta.input_size
    if meta.window is None:
        return 0, 0, width, height
    (vertical, horizontal), (left, top, _, _) = meta.scale, meta.window
    x1, y1, x2, y2 = _visible(meta)
    first, end = _span((x1 - left) * horizontal, (x2 - left) * horizontal, width)
    upper, lower = _span((y1 - top) * vertical, (y2 - top) * vertical, height)
    return first, upper, end, lower


def _visible(meta: ImageMeta) -> Window:
    """Return the part of the image that the window shows."""
    (height, width), window = meta.original_size, meta.window
    assert window is not None  # the callers treat the whole image apart
    return max(window[0], 0), max(window[1], 0), min(window[2], width), min(window[3], height)


def _span(start: float, end: float, length: int) -> tuple[int, int]:
    """Return ``start`` and ``end`` as whole pixels below ``length``, at least one pixel apart."""
    first = min(round(start), length - 1)
    return first, min(max(round(end), first + 1), length)


def _windowed(pixels: np.ndarray, meta: ImageMeta, fill: Colour) -> np.ndarray:
    """Return the window of ``meta``, in the size of the input and before it is flipped."""
    (rows, columns), (height, width) = pixels.shape[:2], meta.original_size
    x1, y1, x2, y2 = _visible(meta)
    first, end = _span(x1 * columns / width, x2 * columns / width, columns)
    upper, lower = _span(y1 * rows / height, y2 * rows / height, rows)
    shown = pixels[upper:lower, first:end]
    left, top, right, bottom = place_of_image(meta)
    if shown.shape[:2] != (bottom - top, right - left):
        shown = cv2.resize(shown, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    if shown.shape[:2] == meta.input_size:
        return np.ascontiguousarray(shown)
    canvas = np.empty((*meta.input_size, 3), np.uint8)
    canvas[:] = fill
    canvas[top:bottom, left:right] = shown
    return canvas
