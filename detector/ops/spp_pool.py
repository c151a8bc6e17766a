"""Spatial pyramid pooling over regions: every level of the pyramid in one pass over a RoI."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detector.ops._autograd import check_inputs, fake_argmax, needs_gradient, register

_RULES = {"roi": 1, "spp": 3, "cells": 4}  # detector::Rule in csrc/pooling/bins.h
_REDUCTIONS = {"max": 0, "avg": 1}  # detector::Reduction in csrc/pooling/pooling.h

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
    """Pool each RoI on a pyramid of l x l grids; returns (R, C * sum(l * l)).

    ``features`` is (N, C, H, W) in float32, float64, float16 or bfloat16, ``rois`` (R, 5), rows of (batch
    index, x1, y1, x2, y2), float32 (or float64 with float64 features). ``spatial_scale`` is cells per pixel;
    it, ``center`` and ``shrink`` are one number or a pair (vertical, horizontal). A row of the result holds
    the levels in the order given, each (C, l, l) flattened (He et al. 2014, section 3.3, levels 6, 3, 2, 1).

    ``window`` says which cells a RoI covers:

    - ``"roi"``: :func:`roi_pool` with ``bins="exact"``, level by level.
    - ``"spp"``: SPP-net's projection (appendix of the paper) of a half-open box in pixels, generalised as in
      the authors' code to any receptive-field ``center`` of the first cell, 0-based pixels:
      left = floor((x1 - center + shrink) / S + 0.5), right = ceil((x2 - 1 - center - shrink) / S - 0.5), with
      S = 1 / ``spatial_scale``; crossed ends collapse to the cell between them, then both are clamped to the
      map. ``shrink`` is S / 2 by default, with ``center`` 0 the paper's rule; 21 - 1 and 6.5 are the code's
      for ZF-5. Computed in float64 for every type.
    - ``"cells"``: the RoI is in map cells, whole numbers, half-open: (0, 0, W, H) is the whole map, as
      ``nn.AdaptiveMaxPool2d`` and ``nn.AdaptiveAvgPool2d`` pool it. ``spatial_scale`` is not used.

    Bin i of l covers cells floor(i h / l) to ceil((i + 1) h / l) of a window of h cells, in integers; a
    window smaller than the grid repeats cells. ``reduction`` is ``"max"``, which leaves negative numbers
    alone, or ``"avg"``, over the cells of the bin that lie on the map. A bin without one gives 0.

    Types, gradients, errors and limits are :func:`roi_pool`'s; on CUDA a pyramid has at most 16 levels, whose
    rows and columns count together. ValueError also for no level, for a number that is not
    finite, and for a scale that is not positive; on the CPU a fraction in a RoI of ``window="cells"`` is a
    RuntimeError too.
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
    """Return the RoIs (N, 5) that cover each image's own part of a padded batch, for ``window="cells"``.

    ``sizes`` holds (height, width) of that part in cells, an image a row.
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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, rois = inputs[:2]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else a gradient of zeros is made for the places
    ctx.save_for_backward(rois, output[1])
    ctx.geometry = inputs[2:8]
    ctx.map_shape = features.shape


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    rois, argmax = ctx.saved_tensors
    grad_features = torch.ops.detector.spp_pool_backward(grad, rois, argmax, *ctx.geometry, *ctx.map_shape)
    return grad_features, *(None,) * 8


torch.library.register_autograd("detector::spp_pool", _backward, setup_context=_setup_context)
register("spp_pool", _fake, _fake_backward)


class SpatialPyramidPool(nn.Module):
    """:func:`spp_pool` with its settings, for maps of one scale. Raises what the function raises."""

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
