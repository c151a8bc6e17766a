"""The windows of RoIs in cells, as far as it takes to tell which RoIs pool the same cells.

``csrc/pooling/bins.h`` computes them for the kernels, from the same formulas in the same types. Here they are
not clamped to the map: RoIs with equal windows pool the same cells, and only a few others do as well.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rounded_windows(rois: Tensor, spatial_scale: Tensor | float) -> Tensor:
    """Return (R, 5) for float32 ``rois`` (R, 5): the image, then the corners rounded to cells.

    ``spatial_scale`` is one number or (R, 1) for levels of different strides.

    These are the windows of ``roi_pool``, for all of its ``bins``, and of ``spp_pool`` with ``window="roi"``.
    """
    if isinstance(spatial_scale, Tensor):
        spatial_scale = spatial_scale.to(rois.dtype)
    corners = rois[:, 1:] * spatial_scale
    whole = corners.trunc()
    away_from_zero = whole + (corners - whole).abs().ge(0.5) * corners.sign()
    return torch.cat((rois[:, :1].trunc(), away_from_zero), dim=1)


def projected_windows(
    rois: Tensor, spatial_scale: Tensor | float, center: Tensor | float, shrink: Tensor | float
) -> Tensor:
    """Return (R, 5) for ``rois`` (R, 5): the image, then the first and the last cells, float64.

    These are the windows of ``spp_pool`` with ``window="spp"``. ``center`` and ``shrink`` are in pixels of
    the network's input. Each is one number or (R, 1) float64, for levels of different strides.
    """
    stride = 1 / spatial_scale
    first, last = rois[:, 1:].double().split(2, dim=1)
    left = ((first - center + shrink) / stride + 0.5).floor()
    right = ((last - 1.0 - center - shrink) / stride - 0.5).ceil()
    return torch.cat((rois[:, :1].double().trunc(), left, right), dim=1)


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices (D,) of the distinct ones of ``rows`` (R, n), and (R,) where each row is among them.

    So ``rows[chosen][places]`` equals ``rows``. Of equal rows the first is chosen.
    """
    found, places = torch.unique(rows, dim=0, return_inverse=True)
    numbers = torch.arange(len(rows))
    chosen = numbers.new_full((len(found),), len(rows)).scatter_reduce_(0, places, numbers, "amin")
    return chosen, places
