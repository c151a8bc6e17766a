"""Masked pooling the slow, obvious way: one bin, one cell or one sample at a time, in Python numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from tests.ops import reference

Cut = Callable[[float, float, int, int], Iterator[tuple[int, int]]]
Map = tuple[Tensor, Tensor] | None
"""Coverage and covered centres of a mask on the whole map, (H, W) each; None for a whole box."""


def caffe(scale: float) -> Cut:
    return lambda first, last, n, axis: reference.caffe_bins(first, last, scale, n, np.float32)


def spp(stride: float, window: str, center: float, shrink: float, extents: tuple[int, int]) -> Cut:
    def cut(first: float, last: float, n: int, axis: int) -> Iterator[tuple[int, int]]:
        if window == "roi":
            return reference.exact_bins(first, last, 1 / stride, n, np.float32)
        left, right = reference.spp_window(first, last, stride, center, shrink, extents[axis])
        return reference.exact_cut(left, right - left + 1, n)

    return cut


def bins(
    features: Tensor, rois: Tensor, maps: list[Map], sides: tuple[int, ...], cut: Cut, mode: str
) -> Tensor:
    """Return (R, C * sum(n * n)) for pools whose bins are rectangles of cells."""
    height, width = features.shape[2:]
    rows = []
    for (index, x1, y1, x2, y2), mask in zip(rois.tolist(), maps, strict=True):
        image, parts = features[int(index)].double(), []
        coverage, covered = mask or (torch.ones(height, width), torch.ones(height, width).bool())
        for side in sides:
            grid = torch.zeros(features.shape[1], side, side, dtype=torch.float64)
            for p, (top, bottom) in enumerate(cut(y1, y2, side, 0)):
                for q, (left, right) in enumerate(cut(x1, x2, side, 1)):
                    cells = [
                        (y, x)
                        for y in range(max(top, 0), min(bottom, height))
                        for x in range(max(left, 0), min(right, width))
                    ]
                    if mode == "cells":
                        chosen = [image[:, y, x] for y, x in cells if covered[y, x]]
                        if chosen:
                            grid[:, p, q] = torch.stack(chosen).amax(0)
                        continue
                    total = math.fsum(float(coverage[cell]) for cell in cells)
                    for y, x in cells:
                        if total:
                            grid[:, p, q] += float(coverage[y, x]) / total * image[:, y, x]
            parts.append(grid.flatten())
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def reads(place: float, extent: int) -> list[tuple[int, float]]:
    """Return the cells along one axis that a sample reads, with their weights; none outside the map."""
    if not -1 <= place <= extent:
        return []
    place = min(max(place, 0.0), extent - 1.0)
    low = math.floor(place)
    return [(low, 1 - (place - low)), (min(low + 1, extent - 1), place - low)]


def places(first: float, last: float, scale: float, n: int, ratio: int) -> list[list[float]]:
    """Return where the samples of each of n bins lie along one axis, in cells."""
    start, size = first * scale - 0.5, (last - first) * scale / n
    count = ratio or math.ceil(size)
    return [[start + p * size + (i + 0.5) * size / count for i in range(count)] for p in range(n)]


def align(
    features: Tensor, rois: Tensor, maps: list[Map], n: int, scale: float, ratio: int, mode: str
) -> Tensor:
    """Return (R, C * n * n) of RoIAlign."""
    height, width = features.shape[2:]
    rows = []
    for (index, x1, y1, x2, y2), mask in zip(rois.tolist(), maps, strict=True):
        image = features[int(index)].double()
        coverage, covered = mask or (torch.ones(height, width), torch.ones(height, width).bool())
        grid = torch.zeros(features.shape[1], n, n, dtype=torch.float64)
        for p, ys in enumerate(places(y1, y2, scale, n, ratio)):
            for q, xs in enumerate(places(x1, x2, scale, n, ratio)):
                best, total, weight = None, torch.zeros(features.shape[1], dtype=torch.float64), 0.0
                for y in ys:
                    for x in xs:
                        cells = [(i, j, v * w) for i, v in reads(y, height) for j, w in reads(x, width)]
                        if not cells:
                            continue
                        value = torch.stack([w * image[:, i, j] for i, j, w in cells]).sum(0)
                        row = math.floor(min(max(y, 0), height - 1) + 0.5)
                        column = math.floor(min(max(x, 0), width - 1) + 0.5)
                        if covered[row, column]:
                            best = value if best is None else torch.maximum(best, value)
                        weight += sum(w * float(coverage[i, j]) for i, j, w in cells)
                        total = total + sum(w * float(coverage[i, j]) * image[:, i, j] for i, j, w in cells)
                if mode == "cells":
                    grid[:, p, q] = 0 if best is None else best
                elif weight > 0:
                    grid[:, p, q] = total / weight
        rows.append(grid.flatten())
    return torch.stack(rows)
