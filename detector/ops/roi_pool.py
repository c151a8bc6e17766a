"""RoI max pooling, the layer Fast R-CNN is built on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detector.ops._autograd import check_inputs, fake_argmax, needs_gradient, register

_RULES = {"caffe": 0, "exact": 1, "partition": 2}  # detector::Rule in csrc/pooling/bins.h


def roi_pool(
    features: Tensor,
    rois: Tensor,
    output_size: int | Sequence[int],
    spatial_scale: float,
    bins: str = "caffe",
) -> Tensor:
    """Pool each RoI to ``output_size`` (height, width) by the maximum in each bin; returns (R, C, h, w).

    ``features`` is (N, C, H, W) in float32, float64, float16 or bfloat16. ``rois`` is (R, 5), rows of
    (batch index, x1, y1, x2, y2) in input pixels, float32 (or float64 with float64 features), and
    ``spatial_scale`` is cells per pixel, 1/16 for a map of stride 16. Coordinates times the scale are rounded
    to whole cells, halves away from zero. Index arithmetic is float64 for float64 features, float32 for all
    others.

    ``bins`` says how the window is cut:

    - ``"caffe"``: the end cell belongs to the window, bins may overlap, and their edges are computed in
      floating point, which for some heights puts the last edge one cell beyond the window. Fast R-CNN's layer
      (Girshick 2015, section 2.1); equal to ``torchvision.ops.roi_pool`` in every value on the CPU, gradient
      included.
    - ``"exact"``: the same window, edges in integers, so that no bin leaves it.
    - ``"partition"``: the end cell is outside and sections do not overlap, as in the article "Region of
      interest pooling explained" (2017).

    A bin without a cell on the map gives 0 and passes no gradient on. NaN is never a maximum: a bin of
    nothing else gives float32's lowest number. A maximum of zero is +0, whatever the signs of its zeros. The
    gradient is the same, bit for bit, on every run, at any number of threads and on CUDA; RoIs get none.

    Raises ValueError or TypeError for wrong shapes, types, devices and scales, and on the CPU RuntimeError
    naming the row of ``rois`` that is not finite or whose batch index is outside the batch; on CUDA such a
    row gives zeros. NotImplementedError for CUDA tensors where the CUDA kernels were not built. On CUDA a map
    has at most 32767 cells a side and a grid at most 1024 rows and columns together; RuntimeError beyond.
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


def _fake_backward(
    grad: Tensor, rois: Tensor, argmax: Tensor, scale: float, rule: int, batch: int, height: int, width: int
) -> Tensor:
    return grad.new_empty((batch, grad.shape[1], height, width))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, rois = inputs[:2]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else a gradient of zeros is made for the places
    ctx.save_for_backward(rois, output[1])
    ctx.geometry = (*inputs[4:6], features.shape[0], *features.shape[2:])


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    rois, argmax = ctx.saved_tensors
    grad_features = torch.ops.detector.roi_pool_backward(grad, rois, argmax, *ctx.geometry)
    return grad_features, *(None,) * 6


torch.library.register_autograd("detector::roi_pool", _backward, setup_context=_setup_context)
register("roi_pool", _fake, _fake_backward)


class RoIPool(nn.Module):
    """:func:`roi_pool` with its settings, for maps of one scale. Raises what the function raises."""

    def __init__(self, output_size: int | Sequence[int], spatial_scale: float, bins: str = "caffe") -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.bins = bins

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Return (R, C, h, w) from ``features`` (N, C, H, W) and ``rois`` (R, 5) in input pixels."""
        return roi_pool(features, rois, self.output_size, self.spatial_scale, self.bins)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, bins={self.bins!r}"
