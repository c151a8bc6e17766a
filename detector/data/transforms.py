"""The only step from a decoded image to a view of it: resize, then flip; the device normalises it later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from detector.core.structures import ImageMeta


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
    ) -> ImageMeta:
        """Return what is to be done to an image of ``size`` (height, width).

        ``scale_rng`` draws the scale instead of ``rng``, for images that share their scale.
        """
        scale, flipped, upside_down = float(self.scales[0]), self.mirrored, False
        if rng is not None:
            scale = self._draw_scale(scale_rng or rng)
            flipped = bool(rng.random() < self.flip)
            upside_down = bool(rng.random() < self.vertical_flip)
        return ImageMeta(
            image_id=image_id,
            original_size=size,
            input_size=self.size_of(size, scale),
            flipped=flipped,
            flipped_vertically=upside_down,
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


def transformed(pixels: np.ndarray, meta: ImageMeta) -> Tensor:
    """Return ``pixels`` (H, W, 3) uint8 as (h, w, 3) uint8, resized and flipped as ``meta`` says.

    ``pixels`` may be smaller than the original image, as `detector.data.images.LoadedImage` decodes large
    photographs. The result may share their memory.
    """
    height, width = meta.input_size
    if pixels.shape[:2] != (height, width):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    if meta.flipped or meta.flipped_vertically:
        pixels = cv2.flip(pixels, _FLIPS[meta.flipped, meta.flipped_vertically])
    return torch.from_numpy(pixels)


_FLIPS = {(True, False): 1, (False, True): 0, (True, True): -1}  # OpenCV's codes, by ImageMeta's two flags
