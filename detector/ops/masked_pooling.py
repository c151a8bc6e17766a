"""Pooling over the cells that each region's mask covers: the maximum, or an average weighted by coverage.

- ``"cells"``: a bin's maximum is that of its covered cells, those whose centre the mask covers. For RoIAlign
  it is the maximum of the bin's samples that lie in covered cells, each interpolated as usual.
- ``"weighted"``: a bin's average is the sum of coverage times value over its cells, divided by the sum of
  their coverage. For RoIAlign each cell also counts with the weight with which the bin's samples read it.

A bin's cells are those of the bin without a mask, by the rules of ``csrc/pooling/bins.h``. A bin without a
covered cell, or with no coverage, gives 0 and passes no gradient on. A region with an empty window in
``CellMasks`` is pooled as its whole box: by the same maximum or average over all cells of its bins. Features
that are infinite or NaN make an average of RoIAlign NaN also where their coverage is 0.

``detector::masked_pool`` (``csrc/pooling/masked.h``) computes all of it, on the CPU and on CUDA. Nothing here
makes the host wait for a GPU, and gradients are the same on every run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detector.core.cell_masks import CellMasks
from detector.core.devices import sent
from detector.ops._library import numbers_of
from detector.ops._pooling import check_inputs, needs_gradient, register

MODES = ("cells", "weighted")
_RULES = numbers_of("Rule")
_SPP_RULES = {"spp": "spp", "roi": "exact"}
_NO_SAMPLES = -1
"""The operator's sampling ratio where bins consist of cells."""


def masked_roi_pool(
    features: Tensor, rois: Tensor, masks: CellMasks, output_size: int, spatial_scale: float, mode: str
) -> Tensor:
    """Return (R, C * n * n): ``roi_pool`` with n x n bins of rule "caffe" over what ``masks`` cover.

    ``features``, ``rois`` and ``spatial_scale`` are as there. Without masks, mode "cells" is ``roi_pool``.

    Raises:
        ValueError: another mode, or another number of masks than of RoIs; also as ``roi_pool``.
    """
    return _pool(features, rois, masks, mode, (output_size,), spatial_scale, rule="caffe")


def masked_spp_pool(
    features: Tensor,
    rois: Tensor,
    masks: CellMasks,
    levels: Sequence[int],
    spatial_scale: float,
    window: str,
    center: float,
    shrink: float | None,
    mode: str,
) -> Tensor:
    """Return (R, C * sum(l * l)): ``spp_pool`` over what ``masks`` cover.

    The arguments are as there; ``window`` is "spp" or "roi". Without masks, mode "cells" is ``spp_pool`` with
    reduction "max" and mode "weighted" with "avg".

    Raises:
        ValueError: another mode, or another number of masks than of RoIs; also as ``spp_pool``.
    """
    if window not in _SPP_RULES:
        raise ValueError(f"masked pooling: window must be one of {', '.join(_SPP_RULES)}, not {window!r}")
    inside = 0.5 / spatial_scale if shrink is None else shrink
    rule = _SPP_RULES[window]
    return _pool(features, rois, masks, mode, levels, spatial_scale, center, inside, rule=rule)


def masked_roi_align(
    features: Tensor,
    rois: Tensor,
    masks: CellMasks,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    mode: str,
) -> Tensor:
    """Return (R, C * n * n): RoIAlign with n x n bins over what ``masks`` cover.

    The arguments are as those of ``roi_align``. Without masks, mode "weighted" is ``roi_align`` (on CUDA up
    to rounding), and "cells" is the maximum of the samples instead of their mean. Samples of a mask that lie
    outside the map are left out. ``sampling_ratio`` is at most 32767.

    Raises:
        ValueError: another mode, or another number of masks than of RoIs; also as ``roi_align``.
    """
    if sampling_ratio < 0:
        raise ValueError(f"masked pooling: sampling_ratio must be at least 0, not {sampling_ratio}")
    return _pool(features, rois, masks, mode, (output_size,), spatial_scale, samples=sampling_ratio)


def _pool(
    features: Tensor,
    rois: Tensor,
    masks: CellMasks,
    mode: str,
    levels: Sequence[int],
    scale: float,
    center: float = 0.0,
    shrink: float = 0.0,
    *,
    rule: str = "caffe",
    samples: int = _NO_SAMPLES,
) -> Tensor:
    check_inputs("masked pooling", features, rois)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if len(masks) != len(rois):
        raise ValueError(f"{len(masks)} masks for {len(rois)} RoIs")
    if not 0 < scale < math.inf:
        raise ValueError(f"masked pooling: spatial_scale must be positive and finite, not {scale}")
    windows = torch.cat((masks.windows, masks.offsets[:-1, None]), dim=1)
    pooled, _ = torch.ops.detector.masked_pool(
        features,
        rois.detach(),
        sent(windows, features.device),
        masks.covered if mode == "cells" else masks.coverage,
        list(levels),
        *([float(number)] * 2 for number in (scale, center, shrink)),
        _RULES[rule],
        samples,
        needs_gradient(features),
    )
    return pooled


def _fake(
    features: Tensor, rois: Tensor, windows: Tensor, cover: Tensor, levels: list[int], *settings: Any
) -> tuple[Tensor, Tensor]:
    bins = sum(level * level for level in levels)
    count, channels = rois.shape[0], features.shape[1]
    pooled = features.new_empty((count, channels * bins))
    if not settings[-1]:
        return pooled, features.new_empty((0,), dtype=torch.int32)
    if cover.dtype == torch.bool:
        return pooled, features.new_empty((count, bins, channels), dtype=torch.int32)
    sums = torch.float64 if features.dtype == torch.float64 else torch.float32
    return pooled, features.new_empty((count, bins), dtype=sums)


def _fake_backward(grad: Tensor, *arguments: Any) -> Tensor:
    return grad.new_empty(arguments[-4:])


def _geometry(features: Tensor, *arguments: Any) -> tuple[Any, ...]:
    return *arguments[3:-1], *features.shape


register("masked_pool", _fake, _fake_backward, _geometry, tensors=3)
