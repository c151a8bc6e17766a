"""Spatial pyramid pooling over regions: all grids of the pyramid in one pass over a RoI."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detector.ops._library import numbers_of
from detector.ops._pooling import check_inputs, fake_argmax, needs_gradient, register

_REDUCTIONS = numbers_of("Reduction")
_WINDOWS = {"roi": "exact", "spp": "spp", "cells": "cells"}  # by the rule's name in C++
_RULES = {window: numbers_of("Rule")[rule] for window, rule in _WINDOWS.items()}

Pair = float | Sequence[float]


def _pair(name: str, value: Pair) -> list[float]:
    pair = [float(part) for part in value] if isinstance(value, Iterable) else [float(value)] * 2
    if len(pair) != 2 or not all(abs(part) < math.inf for part in pair):
        raise ValueError(
            f"spp_pool: {name} must be one finite number or a pair (vertical, horizontal), not {value}"
        )
    return pair


def spp_pool(
    features: Tensor,
    rois: Tensor,
    levels: Sequence[int] = (6, 3, 2, 1),
    spatial_scale: Pair = 1 / 16,
    reduction: str = "max",
    window: str = "roi",
    center: Pair = 0.0,
    shrink: Pair | None = None,
) -> Tensor:
    """Pool each RoI on a pyramid of l x l grids, one for each l in ``levels``.

    Bin i of l covers cells floor(i h / l) to ceil((i + 1) h / l) of a window of h cells, computed in
    integers; in a window smaller than the grid, bins share cells.

    Args:
        features: (N, C, H, W), float32, float64, float16 or bfloat16.
        rois: (R, 5), rows of (batch index, x1, y1, x2, y2), float32 (or float64 with float64 features), in
            pixels of the network's input, half-open for ``window="spp"``, or in cells, see ``window``.
        levels: the rows of each grid, (6, 3, 2, 1) in He et al. 2014, section 3.3.
        spatial_scale: map cells per pixel; one number or a pair (vertical, horizontal).
        reduction: ``"max"``, or ``"avg"`` over the cells of the bin that lie on the map.
        window: which cells a RoI covers:

            - ``"roi"``: the window of `roi_pool` with ``bins="exact"``.
            - ``"spp"``: SPP-net's projection (appendix of the paper), generalised as in the authors' code to
              any ``center`` of the first cell's receptive field. With S = 1 / ``spatial_scale``:
              left = floor((x1 - center + shrink) / S + 0.5),
              right = ceil((x2 - 1 - center - shrink) / S - 0.5). If left > right, both become the cell
              between them. Then both are clamped to the map. Computed in float64 for every type.
            - ``"cells"``: the RoI is given in map cells, whole numbers, half-open: (0, 0, W, H) is the whole
              map, as ``nn.AdaptiveMaxPool2d`` and ``nn.AdaptiveAvgPool2d`` pool it. ``spatial_scale`` is not
              used.
        center: for ``"spp"``, the centre of the first cell's receptive field, pixels from 0; one number or a
            pair (vertical, horizontal).
        shrink: for ``"spp"``, how far inside the RoI a cell's centre must lie, in pixels; one number or a
            pair. None means S / 2, which with ``center`` 0 is the paper's rule. The authors' code for ZF-5
            takes ``center`` 20 (21 when pixels are counted from 1) and ``shrink`` 6.5.

    Returns:
        (R, C * sum(l * l)), in the type of ``features``. A row holds the grids in the order given, each
        (C, l, l) flattened. A bin without a cell on the map gives 0. NaN, zeros and gradients are treated as
        by `roi_pool`.

    Raises:
        ValueError, TypeError, NotImplementedError: as `roi_pool`, and ValueError for empty ``levels``,
            a number that is not finite, or a scale that is not positive.
        RuntimeError: as `roi_pool`, and on the CPU for a fraction in a RoI with ``window="cells"``. On
            CUDA a pyramid has at most 16 levels and 1024 rows and columns, those of all grids counted.
    """
    check_inputs("spp_pool", features, rois)
    for name, value, valid in (("reduction", reduction, _REDUCTIONS), ("window", window, _RULES)):
        if value not in valid:
            raise ValueError(f"spp_pool: {name} must be one of {', '.join(valid)}, not {value!r}")
    if len(levels) == 0:
        raise ValueError("spp_pool: levels is empty; a pyramid has at least one")
    scale = _pair("spatial_scale", spatial_scale)
    if not all(part > 0 for part in scale):
        raise ValueError(f"spp_pool: spatial_scale must be positive, not {spatial_scale}")
    inside = [0.5 / part for part in scale] if shrink is None else _pair("shrink", shrink)
    pooled, _ = torch.ops.detector.spp_pool(
        features,
        rois.detach(),
        list(levels),
        scale,
        _pair("center", center),
        inside,
        _RULES[window],
        _REDUCTIONS[reduction],
        needs_gradient(features),
    )
    return pooled


def whole_map_rois(sizes: Sequence[tuple[int, int]], device: torch.device | str | None = None) -> Tensor:
    """Return RoIs (N, 5) for ``window="cells"``, each of which covers one image's own part of a padded batch.

    ``sizes`` holds the (height, width) of this part per image, in cells.
    """
    rows = [
        (float(index), 0.0, 0.0, float(width), float(height)) for index, (height, width) in enumerate(sizes)
    ]
    return torch.tensor(rows, dtype=torch.float32, device=device).reshape(-1, 5)


def _fake(
    features: Tensor,
    rois: Tensor,
    levels: list[int],
    scale: list[float],
    center: list[float],
    shrink: list[float],
    rule: int,
    reduction: int,
    with_argmax: bool,
) -> tuple[Tensor, Tensor]:
    bins = sum(level * level for level in levels)
    pooled = features.new_empty((rois.shape[0], features.shape[1] * bins))
    return pooled, fake_argmax(features, pooled, bins, with_argmax and reduction == _REDUCTIONS["max"])


def _fake_backward(grad: Tensor, *arguments: Any) -> Tensor:
    return grad.new_empty(arguments[-4:])


def _geometry(features: Tensor, rois: Tensor, *settings: Any) -> tuple[Any, ...]:
    return *settings[:-1], *features.shape


register("spp_pool", _fake, _fake_backward, _geometry)


class SpatialPyramidPool(nn.Module):
    """`spp_pool` as a module that holds the settings, for maps of one stride."""

    def __init__(
        self,
        levels: Sequence[int] = (6, 3, 2, 1),
        spatial_scale: Pair = 1 / 16,
        reduction: str = "max",
        window: str = "roi",
        center: Pair = 0.0,
        shrink: Pair | None = None,
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.spatial_scale = spatial_scale
        self.reduction = reduction
        self.window = window
        self.center = center
        self.shrink = shrink

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Return (R, C * sum(l * l)) from ``features`` (N, C, H, W) and ``rois`` (R, 5)."""
        return spp_pool(
            features,
            rois,
            self.levels,
            self.spatial_scale,
            self.reduction,
            self.window,
            self.center,
            self.shrink,
        )

    def extra_repr(self) -> str:
        return (
            f"levels={self.levels}, spatial_scale={self.spatial_scale}, reduction={self.reduction!r},"
            f" window={self.window!r}, center={self.center}, shrink={self.shrink}"
        )
