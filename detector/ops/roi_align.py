"""RoIAlign, torchvision's operator with a gradient that is the same on every run, on CUDA too.

torchvision's CUDA backward pass adds with atomics, in another order each time. Its deterministic substitute
keeps every sample of every RoI and can run out of memory (pytorch/vision#8168). But RoIAlign is separable:
the weight with which a bin reads a cell is the product of a weight of the cell's row and one of its column,

    pooled[r, c, p, q] = sum over y, x of  rows[r, p, y] * columns[r, q, x] * features[image of r, c, y, x]

so the gradient of the features is two products of dense matrices, which are deterministic and take memory
for (R, C, bins, W) numbers at most, in chunks of RoIs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torchvision.ops  # noqa: F401  # registers torch.ops.torchvision
from torch import Tensor

from detector.ops._pooling import check_inputs

_NUMBERS = 2**25
"""Numbers that one chunk of the gradient keeps at a time."""
_NEAR = 7
"""Samples of a bin that may touch a cell when their number is adaptive. They lie more than half a cell apart
where a bin has several, so at most five are less than a cell away; one more on each side allows for
rounding."""


def roi_align(
    features: Tensor, rois: Tensor, output_size: int, spatial_scale: float, sampling_ratio: int = 0
) -> Tensor:
    """Return the mean of bilinear samples in each of ``output_size`` x ``output_size`` bins of each RoI.

    This is ``torchvision.ops.roi_align`` with ``aligned=True`` (Mask R-CNN, He et al. 2017, section 3; the
    half-cell shift is detectron2's): the centre of cell k is at (k + 0.5) / ``spatial_scale``. Nothing is
    rounded. On the CPU values and gradients are torchvision's, bit for bit; on CUDA values are, and gradients
    differ in the last digits, but not from run to run.

    Args:
        features: (N, C, H, W), float32, float64, float16 or bfloat16. The last two are computed in float32.
        rois: (R, 5), rows of (batch index, x1, y1, x2, y2) in pixels of the network's input, float32 (or
            float64 with float64 features). They get no gradient.
        output_size: bins per side.
        spatial_scale: map cells per pixel.
        sampling_ratio: samples per bin and axis; 0 takes as many as the bin has cells, rounded up.

    Returns:
        (R, C, output_size, output_size), in the type of ``features``. A sample more than a cell outside the
        centres of the map counts as 0, and a RoI whose corners are reversed counts as one without extent.

    Raises:
        ValueError, TypeError, NotImplementedError: as ``roi_pool``.
        RuntimeError: on the CPU, a row of ``rois`` that is not finite or whose batch index is outside the
            batch; the message names the row.
    """
    check_inputs("roi_align", features, rois)
    if not 0 < spatial_scale < math.inf:
        raise ValueError(f"roi_align: spatial_scale must be positive and finite, not {spatial_scale}")
    if output_size < 1 or sampling_ratio < 0:
        raise ValueError(
            f"roi_align: output_size must be at least 1 and sampling_ratio at least 0, not {output_size} and"
            f" {sampling_ratio}"
        )
    numbers = features if features.dtype == torch.float64 else features.float()
    settings = (output_size, spatial_scale, sampling_ratio)
    corners = _ordered(rois.detach().to(numbers.dtype), len(features))
    if numbers.is_cuda and numbers.requires_grad and torch.is_grad_enabled():
        pooled: Tensor = _WithDeterministicGradient.apply(numbers, corners, *settings)
    else:
        pooled = _align(numbers, corners, *settings)
    return pooled.to(features.dtype)


def _ordered(rois: Tensor, images: int) -> Tensor:
    """Return ``rois`` with each last corner at or after the first; torchvision fails for reversed ones."""
    if rois.device.type == "cpu":
        sound = rois.isfinite().all(1) & (rois[:, 0] >= 0) & (rois[:, 0] < images)
        if not torch.compiler.is_compiling() and not sound.all():
            row = int((~sound).nonzero()[0])
            raise RuntimeError(
                f"roi_align: row {row} of rois is {rois[row].tolist()}; it must be finite, with a batch index"
                f" from 0 to {images - 1}"
            )
    return torch.cat((rois[:, :3], rois[:, 3:].maximum(rois[:, 1:3])), dim=1)


def _align(features: Tensor, rois: Tensor, bins: int, scale: float, ratio: int) -> Tensor:
    pooled: Tensor = torch.ops.torchvision.roi_align(features, rois, scale, bins, bins, ratio, True)
    return pooled


class _WithDeterministicGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, rois: Tensor, bins: int, scale: float, ratio: int) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.settings = features.shape, (scale, ratio)
        return _align(features, rois, bins, scale, ratio)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rois,) = ctx.saved_tensors
        return align_gradient(grads[0], rois, ctx.shape, *ctx.settings), None, None, None, None


def align_gradient(
    grad: Tensor, rois: Tensor, shape: tuple[int, int, int, int], spatial_scale: float, sampling_ratio: int
) -> Tensor:
    """Return the gradient (N, C, H, W) of the features for ``grad`` (R, C, n, n), the gradient of the output.

    ``shape`` is that of the features. The sum over RoIs goes in chunks, always the same ones.
    """
    images, channels, height, width = shape
    bins = grad.shape[2]
    total = grad.new_zeros(images * height, channels * width)
    chunk = max(_NUMBERS // max(bins * max(channels * width, images * height), 1), 1)
    for start in range(0, len(rois), chunk):
        part, part_grad = rois[start : start + chunk], grad[start : start + chunk]
        rows = _axis_weights(part[:, 2], part[:, 4], bins, height, spatial_scale, sampling_ratio)
        columns = _axis_weights(part[:, 1], part[:, 3], bins, width, spatial_scale, sampling_ratio)
        of_image = part[:, :1] == torch.arange(images, device=part.device)
        rows = rows[:, :, None, :] * of_image[:, None, :, None]  # (r, n, N, H), zero in other images
        spread = torch.matmul(part_grad.transpose(1, 2).flatten(1, 2), columns)  # (r, n * C, W)
        total.addmm_(rows.flatten(0, 1).flatten(1).T, spread.view(-1, channels * width))
    return total.view(images, height, channels, width).transpose(1, 2)


def _axis_weights(
    first: Tensor,
    last: Tensor,
    bins: int,
    extent: int,
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    """Return (R, n, ``extent``): the weight with which each of n bins reads each cell along one axis.

    ``first`` and ``last`` (R,) are the edges of the RoIs in pixels. Sample i of bin p lies at
    start + p * size + (i + 0.5) * size / count, and cell k at k, computed as torchvision computes them.
    """
    start, end = first * spatial_scale - 0.5, last * spatial_scale - 0.5
    size = (end - start) / bins
    count = torch.full_like(size, sampling_ratio) if sampling_ratio else size.ceil()
    cells = torch.arange(extent, device=first.device)[None, None].to(first.dtype)
    origin = start[:, None] + torch.arange(bins, device=first.device) * size[:, None]  # of each bin
    step = (size / count.clamp(min=1))[:, None]
    if sampling_ratio:
        number = torch.arange(sampling_ratio, device=first.device, dtype=first.dtype)[:, None, None, None]
    else:
        before = ((cells - 1 - origin[:, :, None]) / step[:, :, None] - 0.5).floor().clamp(min=0)
        number = before + torch.arange(_NEAR, device=first.device)[:, None, None, None]
    place = origin[:, :, None] + (number + 0.5) * step[:, :, None]  # (samples, R, n, h)
    counts = (number >= 0) & (number < count[:, None, None]) & (place >= -1) & (place <= extent)
    weight = (1 - (place.clamp(0, extent - 1) - cells).abs()).clamp(min=0)
    return torch.where(counts, weight, 0).sum(0) / count.clamp(min=1)[:, None, None]
