"""Pure geometry on boxes.

Boxes are (x1, y1, x2, y2) in continuous half-open pixels: width = x2 - x1, no "+1" anywhere. Functions
never change their arguments, and return tensors of the same dtype and device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """Return the areas (P,) of ``boxes`` (P, 4) in square pixels; one with x2 < x1 or y2 < y1 has area 0."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """Return the area (P, G) that each box of ``first`` (P, 4) shares with each of ``second`` (G, 4)."""
    top_left = torch.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    size = (bottom_right - top_left).clamp(min=0)
    return size[..., 0] * size[..., 1]


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return intersection over union (P, G) of ``first`` (P, 4) and ``second`` (G, 4), in [0, 1].

    A pair whose union is empty has IoU 0.
    """
    shared = intersection(first, second)
    union = area(first)[:, None] + area(second)[None, :] - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(shared.dtype).tiny), 0.0)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``boxes`` (..., 4) with each corner moved into an image of ``size`` (height, width)."""
    height, width = size
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def flip(boxes: Tensor, width: float) -> Tensor:
    """Return ``boxes`` (..., 4) mirrored left to right in an image ``width`` pixels wide.

    In half-open coordinates x becomes width - x, so flipping twice returns the same boxes.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def flip_vertical(boxes: Tensor, height: float) -> Tensor:
    """Return ``boxes`` (..., 4) mirrored top to bottom in an image ``height`` pixels high."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1, height - y2, x2, height - y1), dim=-1)


def scale(boxes: Tensor, factor: tuple[float, float]) -> Tensor:
    """Return ``boxes`` (..., 4) times ``factor``, which is (vertical, horizontal) as in sizes."""
    vertical, horizontal = factor
    return boxes * boxes.new_tensor((horizontal, vertical, horizontal, vertical))
