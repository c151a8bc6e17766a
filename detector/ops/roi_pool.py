"""RoI max pooling, the layer Fast R-CNN is built on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

RULES = {"caffe": 0, "exact": 1, "partition": 2}


def check_inputs(name: str, features: Tensor, rois: Tensor) -> None:
    """Raise TypeError or ValueError, worded for the caller of ``name``, for what no kernel could use."""
    if features.dim() != 4:
        raise ValueError(f"{name}: features must have shape (N, C, H, W), not {tuple(features.shape)}")
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(f"{name}: rois must have shape (R, 5), not {tuple(rois.shape)}")
    if rois.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"{name}: rois are {rois.dtype}, which cannot hold pixel coordinates (bfloat16 turns 1333 into"
            " 1336); keep them float32"
        )
    if rois.dtype != torch.float32 and (rois.dtype, features.dtype) != (torch.float64, torch.float64):
        raise TypeError(
            f"{name}: rois must be float32, or float64 with float64 features, not {rois.dtype} with"
            f" {features.dtype} features"
        )
    if rois.device != features.device:
        raise ValueError(f"{name}: features are on {features.device} but rois on {rois.device}")


def needs_gradient(features: Tensor) -> bool:
    """Whether the forward pass has to keep the places of the maxima."""
    return torch.is_grad_enabled() and features.requires_grad


def roi_pool(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    bins: str = "caffe",
) -> Tensor:
    """Pool each RoI to ``output_size`` (height, width) by the maximum in each bin; returns (R, C, h, w).

    ``features`` is (N, C, H, W) in float32, float64, float16 or bfloat16. ``rois`` is (R, 5), rows of
    (batch index, x1, y1, x2, y2) in input pixels, float32 (or float64 with float64 features), and
    ``spatial_scale`` is cells per pixel, 1/16 for a map of stride 16. Coordinates times the scale are rounded
    to whole cells, halves away from zero.

    ``bins`` says how the window is cut:

    - ``"caffe"``: the end cell belongs to the window, bins may overlap and their edges are computed in
      floating point, as in Fast R-CNN's layer (Girshick 2015, section 2.1) and torchvision's ``roi_pool``.
    - ``"exact"``: the same window, bin edges in integers, so that no bin leaves the window.
    - ``"partition"``: the end is exclusive and the sections do not overlap, as in the article "Region of
      interest pooling explained" (2017).

    A bin without a cell on the map gives 0 and takes no gradient. Index arithmetic is float64 for float64
    features and float32 for all others.
    """
    check_inputs("roi_pool", features, rois)
    if bins not in RULES:
        raise ValueError(f"roi_pool: bins must be one of {', '.join(RULES)}, not {bins!r}")
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    pooled, _ = torch.ops.detector.roi_pool(
        features, rois, height, width, spatial_scale, RULES[bins], needs_gradient(features)
    )
    return pooled


@torch.library.register_fake("detector::roi_pool")
def _fake(
    features: Tensor,
    rois: Tensor,
    height: int,
    width: int,
    spatial_scale: float,
    rule: int,
    with_argmax: bool,
) -> tuple[Tensor, Tensor]:
    shape = (rois.shape[0], features.shape[1], height, width)
    return features.new_empty(shape), features.new_empty(shape if with_argmax else (0,), dtype=torch.int32)


@torch.library.register_fake("detector::roi_pool_backward")
def _fake_backward(grad: Tensor, rois: Tensor, argmax: Tensor, batch: int, height: int, width: int) -> Tensor:
    return grad.new_empty((batch, grad.shape[1], height, width))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, rois = inputs[:2]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(rois, output[1])
    ctx.map_shape = (features.shape[0], *features.shape[2:])


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    rois, argmax = ctx.saved_tensors
    grad_features = torch.ops.detector.roi_pool_backward(grad, rois, argmax, *ctx.map_shape)
    return grad_features, None, None, None, None, None, None


torch.library.register_autograd("detector::roi_pool", _backward, setup_context=_setup_context)


class RoIPool(nn.Module):
    """:func:`roi_pool` for a map of one ``stride`` (input pixels per cell)."""

    def __init__(self, output_size: int | tuple[int, int], stride: float, bins: str = "caffe") -> None:
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else output_size
        self.stride = stride
        self.bins = bins

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """Return (R, C, h, w) from ``features`` (N, C, H, W) and ``rois`` (R, 5) in input pixels."""
        return roi_pool(features, rois, self.output_size, 1.0 / self.stride, self.bins)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, stride={self.stride}, bins={self.bins!r}"
