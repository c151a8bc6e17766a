"""The pooling operators written the slow, obvious way: one cell at a time, in Python numbers.

The oracle of the tests. It shares nothing with csrc/: windows and bins are derived again from the rules'
definitions, in exact fractions where the rule is exact and in numpy's scalar types where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

LOWEST = float(np.finfo(np.float32).min)
Span = tuple[int, int]  # cells begin (in) to end (out)


def round_away(value: float) -> int:
    """Round to the nearest whole number, halves away from zero."""
    return int(math.copysign(math.floor(Fraction(abs(float(value))) + Fraction(1, 2)), value))


def caffe_bins(first: float, last: float, scale: float, n: int, real: type) -> Iterator[Span]:
    start, end = round_away(real(first) * real(scale)), round_away(real(last) * real(scale))
    size = real(max(end - start + 1, 1)) / real(n)
    for p in range(n):
        yield start + math.floor(real(p) * size), start + math.ceil(real(p + 1) * size)


def exact_cut(start: int, size: int, n: int) -> Iterator[Span]:
    for p in range(n):
        yield start + math.floor(Fraction(p * size, n)), start + math.ceil(Fraction((p + 1) * size, n))


def exact_bins(first: float, last: float, scale: float, n: int, real: type) -> Iterator[Span]:
    start, end = round_away(real(first) * real(scale)), round_away(real(last) * real(scale))
    return exact_cut(start, max(end - start + 1, 1), n)


def partition_bins(first: float, last: float, scale: float, n: int, real: type) -> Iterator[Span]:
    start, end = round_away(real(first) * real(scale)), round_away(real(last) * real(scale))
    size = max(end - start, 0)
    for p in range(n):
        yield start + math.floor(Fraction(p * size, n)), start + math.floor(Fraction((p + 1) * size, n))


def cell_bins(first: float, last: float, n: int) -> Iterator[Span]:
    return exact_cut(int(first), max(int(last) - int(first), 0), n)


def spp_window(first: float, last: float, stride: float, center: float, shrink: float, extent: int) -> Span:
    """Return the first and the last cell of the window by SPP-net's rule, computed in exact fractions."""
    half, stride_, center_, shrink_ = Fraction(1, 2), Fraction(stride), Fraction(center), Fraction(shrink)
    left = math.floor((Fraction(first) - center_ + shrink_) / stride_ + half)
    right = math.ceil((Fraction(last) - 1 - center_ - shrink_) / stride_ - half)
    if left > right:
        left = right = (left + right) // 2
    return min(max(left, 0), extent - 1), min(max(right, 0), extent - 1)


def pool(
    features: Tensor,
    rois: Tensor,
    grid: tuple[int, int],
    cut: Callable[..., Iterator[Span]],
    average: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return pooled values and the winning cells (R, C, h, w), -1 where none won.

    ``cut(first, last, n, axis)`` yields the n bins of one axis (0 vertical), not yet clipped to the map.
    """
    height, width = features.shape[2:]
    pooled = torch.zeros(len(rois), features.shape[1], *grid, dtype=torch.float64)
    argmax = torch.full(pooled.shape, -1, dtype=torch.int32)
    for r, (index, x1, y1, x2, y2) in enumerate(rois.tolist()):
        image = features[int(index)].double()
        for p, (top, bottom) in enumerate(cut(y1, y2, grid[0], 0)):
            for q, (left, right) in enumerate(cut(x1, x2, grid[1], 1)):
                rows = range(max(top, 0), min(bottom, height))
                columns = range(max(left, 0), min(right, width))
                for c in range(features.shape[1]):
                    value, where = _reduce(image[c], rows, columns, average)
                    pooled[r, c, p, q] = value
                    argmax[r, c, p, q] = where
    return pooled.to(features.dtype), argmax


def _reduce(plane: Tensor, rows: range, columns: range, average: bool) -> tuple[float, int]:
    cells = [(y, x) for y in rows for x in columns]
    if not cells:
        return 0.0, -1
    if average:
        return math.fsum(float(plane[y, x]) for y, x in cells) / len(cells), -1
    value, where = LOWEST, -1
    for y, x in cells:
        if float(plane[y, x]) > value:
            value, where = float(plane[y, x]), y * plane.shape[1] + x
    return value, where


def roi_pool(
    features: Tensor, rois: Tensor, grid: tuple[int, int], scale: float, bins: str
) -> tuple[Tensor, Tensor]:
    real = np.float64 if features.dtype == torch.float64 else np.float32
    rule = {"caffe": caffe_bins, "exact": exact_bins, "partition": partition_bins}[bins]
    return pool(features, rois, grid, lambda first, last, n, axis: rule(first, last, scale, n, real))


def spp_pool(
    features: Tensor,
    rois: Tensor,
    levels: tuple[int, ...],
    scale: float,
    reduction: str,
    window: str,
    center: float = 0.0,
    shrink: float | None = None,
) -> Tensor:
    """Return (R, C * sum(l * l)), grid after grid; ``scale`` must be 1 / a whole number."""
    real = np.float64 if features.dtype == torch.float64 else np.float32
    stride = round(1 / scale)
    inside = stride / 2 if shrink is None else shrink

    def cut(first: float, last: float, n: int, axis: int) -> Iterator[Span]:
        if window == "roi":
            return exact_bins(first, last, scale, n, real)
        if window == "cells":
            return cell_bins(first, last, n)
        left, right = spp_window(first, last, stride, center, inside, features.shape[2 + axis])
        return exact_cut(left, right - left + 1, n)

    average = reduction == "avg"
    parts = [pool(features, rois, (n, n), cut, average)[0].flatten(1) for n in levels]
    return torch.cat(parts, dim=1)


def scatter(grad: Tensor, rois: Tensor, argmax: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the gradient of the map: each bin's goes to the cell that won it, added up in row order."""
    result = torch.zeros(shape, dtype=grad.dtype)
    for r in range(len(rois)):
        plane = result[int(rois[r, 0])].flatten(1)
        for c in range(shape[1]):
            for value, cell in zip(grad[r, c].flatten(), argmax[r, c].flatten().tolist(), strict=True):
                if cell >= 0:
                    plane[c, cell] += value
    return result
