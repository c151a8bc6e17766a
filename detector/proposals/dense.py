"""Sliding windows: proposals that need no image, only its size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.structures import Proposals
from detector.proposals.filtering import unique_proposals

# About 1000 windows per image of any size; square ones, which reach IoU 0.7 with objects of aspect ratio 0.7
# to 1.4. Give more aspects for longer objects.
SCALES = (0.2, 0.27, 0.37, 0.5, 0.68)
ASPECTS = (1.0,)
STRIDE_FRACTION = 0.2
MAX_WINDOWS = 2_000_000
"""Windows per image, before equal ones are dropped."""


def dense_proposals(
    size: tuple[int, int],
    *,
    scales: Sequence[float] = SCALES,
    aspects: Sequence[float] = ASPECTS,
    stride_fraction: float = STRIDE_FRACTION,
    max_proposals: int | None = None,
) -> Proposals:
    """Return windows that cover an image of ``size`` (height, width), without scores.

    A window of scale s and aspect a is s * min(height, width) * sqrt(a) pixels wide and the same divided by
    sqrt(a) high, but no larger than the image. Neighbours lie at most ``stride_fraction`` of a side apart,
    so that the IoU of two of them is (1 - stride_fraction) / (1 + stride_fraction) or more; the outermost
    touch the image's border. Dense proposals are the Fast R-CNN paper's (section 5.5).

    The order depends only on the size and spreads every prefix evenly over places and scales, so that the
    first n are a good choice of n; ``max_proposals`` takes such a prefix.

    Raises InputError for parameters that ask for over `MAX_WINDOWS` windows.
    """
    _check(size, scales, aspects, stride_fraction)
    windows = np.concatenate([_grid(size, s, a, stride_fraction) for s in scales for a in aspects])
    boxes = torch.from_numpy(windows[_spread(len(windows))].astype(np.float32))
    return Proposals(boxes=unique_proposals(Proposals(boxes=boxes)).boxes[:max_proposals])


def _check(
    size: tuple[int, int], scales: Sequence[float], aspects: Sequence[float], stride_fraction: float
) -> None:
    """Refuse impossible parameters, and more windows than the memory holds, before any is made."""
    if min(size) < 1:
        raise ValueError(f"an image is at least 1 x 1 pixel, not {size}")
    if not scales or min(scales) <= 0 or not aspects or min(aspects) <= 0:
        raise ValueError(f"scales and aspects must be positive, not {scales} and {aspects}")
    if not 0 < stride_fraction <= 1:
        raise ValueError(f"stride_fraction must be over 0 and at most 1, not {stride_fraction}")
    count = 0
    for scale, aspect in itertools.product(scales, aspects):
        height, width = _window(size, scale, aspect)
        count += _count(size[0], height, stride_fraction) * _count(size[1], width, stride_fraction)
    if count > MAX_WINDOWS:
        raise InputError(
            f"proposal method 'dense' would make {count} windows of an image of {size[1]}x{size[0]} pixels; "
            f"over {MAX_WINDOWS} are refused: raise proposals.stride_fraction or the smallest of "
            "proposals.scales"
        )


def _window(size: tuple[int, int], scale: float, aspect: float) -> tuple[float, float]:
    """Return the (height, width) in pixels of the windows of one shape."""
    side = scale * min(size)
    return min(side / math.sqrt(aspect), size[0]), min(side * math.sqrt(aspect), size[1])


def _grid(size: tuple[int, int], scale: float, aspect: float, stride_fraction: float) -> NDArray[np.float64]:
    """Return the windows (n, 4) of one shape in an order in which neighbours are near each other."""
    height, width = _window(size, scale, aspect)
    y, x = _starts(size[0], height, stride_fraction), _starts(size[1], width, stride_fraction)
    rows, columns = (place.ravel() for place in np.indices((len(y), len(x))))
    near = np.argsort(_interleave(rows, columns), kind="stable")
    top, left = y[rows[near]], x[columns[near]]
    return np.stack((left, top, left + width, top + height), axis=1)


def _starts(length: int, window: float, stride_fraction: float) -> NDArray[np.float64]:
    return np.linspace(0, length - window, _count(length, window, stride_fraction))


def _count(length: int, window: float, stride_fraction: float) -> int:
    """Return how many windows lie along a side of ``length`` pixels."""
    steps = math.ceil((length - window) / (stride_fraction * window) - 1e-9)  # 1e-9: an exact fit stays one
    return max(steps, 0) + 1


def _interleave(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each cell's place on the Z-order curve, on which neighbours are near each other."""
    code = np.zeros_like(rows)
    for bit in range(16):
        code |= ((rows >> bit) & 1) << (2 * bit + 1) | ((columns >> bit) & 1) << (2 * bit)
    return code


def _spread(count: int) -> NDArray[np.int64]:
    """Return 0..count-1 in bit-reversed order: every prefix is spaced evenly over the whole range."""
    bits = max((count - 1).bit_length(), 1)
    numbers = np.arange(1 << bits)
    reverse = np.zeros_like(numbers)
    for bit in range(bits):
        reverse |= ((numbers >> bit) & 1) << (bits - 1 - bit)
    return reverse[reverse < count]
