"""RoI max pooling, the layer that Fast R-CNN is built on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detector.ops._library import numbers_of
from detector.ops._pooling import check_inputs, fake_argmax, needs_gradient, register

_RULES = {name: numbers_of("Rule")[name] for name in ("caffe", "exact", "partition")}


def roi_pool(
    features: Tensor,
    rois: Tensor,
    output_size: int | Sequence[int],
    spatial_scale: float,
    bins: str = "caffe",
) -> Tensor:
    """Divide each RoI into ``output_size`` (height, width) bins and take the maximum of each bin.

    Args:
        features: (N, C, H, W), float32, float64, float16 or bfloat16. Bin edges are computed in float64 for
            float64 features and in float32 for all others.
        rois: (R, 5), rows of (batch index, x1, y1, x2, y2) in pixels of the network's input, float32 (or
            float64 with float64 features). Coordinates times ``spatial_scale`` are rounded to whole cells,
            halves away from zero.
        output_size: (height, width) in bins, or one number for both.
        spatial_scale: map cells per pixel, 1/16 for a map of stride 16.
        bins: how a RoI is divided into bins:

            - ``"caffe"``: the last cell belongs to the RoI's window, bins may overlap, and their edges are
              computed in floating point, which puts the last edge one cell beyond the window for some
              heights. This is Fast R-CNN's layer (Girshick 2015, section 2.1); values and gradients are equal
              to those of ``torchvision.ops.roi_pool`` on the CPU.
            - ``"exact"``: the same window with edges in integers, so that no bin leaves the window.
            - ``"partition"``: the last cell is outside the window and bins do not overlap, as in the article
              "Region of interest pooling explained" (2017).

    Returns:
        (R, C, height, width), in the type of ``features``. A bin without a cell on the map gives 0 and passes
        no gradient on. NaN is never a maximum: a bin that holds only NaN gives the lowest float32 number. A
        maximum of zero is always +0. The gradient of the features is the same, bit for bit, on every run, at
        any number of threads and on CUDA; RoIs get no gradient.

    Raises:
        ValueError, TypeError: wrong shapes, types, devices or scales.
        RuntimeError: on the CPU, a row of ``rois`` that is not finite or whose batch index is outside the
            batch; the message names the row. (On CUDA such a row gives zeros.) On CUDA, a map of more than
            32767 cells per side, or a grid of more than 1024 rows and columns together.
        NotImplementedError: CUDA tensors, but the CUDA kernels were not built.
    """
    check_inputs("roi_pool", features, rois)
    if bins not in _RULES:
        raise ValueError(f"roi_pool: bins must be one of {', '.join(_RULES)}, not {bins!r}")
    size = tuple(output_size) if isinstance(output_size, Iterable) else (output_size, output_size)
    if len(size) != 2:
        raise ValueError(f"roi_pool: output_size must be one number or (height, width), not {output_size}")
    if not abs(spatial_scale) < math.inf:
        raise ValueError(f"roi_pool: spatial_scale must be finite, not {spatial_scale}")
    pooled, _ = torch.ops.detector.roi_pool(
        features, rois.detach(), *size, spatial_scale, _RULES[bins], needs_gradient(features)
    )
    return pooled


def _fake(
    features: Tensor, rois: Tensor, height: int, width: int, scale: float, rule: int, with_argmax: bool
) -> tuple[Tensor, Tensor]:
    pooled = features.new_empty((rois.shape[0], features.shape[1], height, width))
    return pooled, fake_argmax(features, pooled, height * width, with_argmax)


def _fake_backward(grad: Tensor, *arguments: Any) -> Tensor:
    batch, height, width = arguments[-3:]
    return grad.new_empty((batch, grad.shape[1], height, width))


def _geometry(features: Tensor, rois: Tensor, height: int, width: int, *settings: Any) -> tuple[Any, ...]:
    scale, rule, _ = settings
    return scale, rule, features.shape[0], *features.shape[2:]


register("roi_pool", _fake, _fake_backward, _geometry)


class RoIPool(nn.Module):
    """`roi_pool` as a module that holds the settings, for maps of one stride."""

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float, bins: str = "caffe") -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.bins = bins

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Return (R, C, height, width) from ``features`` (N, C, H, W) and ``rois`` (R, 5) in input pixels."""
        return roi_pool(features, rois, self.output_size, self.spatial_scale, self.bins)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, bins={self.bins!r}"
