"""What the pooling operators share: input checks, gradients, fake kernels, and refused calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detector.ops._library import cuda_kernels_missing

FEATURE_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_inputs(name: str, features: Tensor, rois: Tensor) -> None:
    """Check the tensors that a caller of the function ``name`` passed.

    Raises TypeError or ValueError for a wrong type, shape or device, NotImplementedError for CUDA tensors if
    the CUDA kernels were not built.
    """
    if features.dim() != 4:
        raise ValueError(f"{name}: features must have shape (N, C, H, W), not {tuple(features.shape)}")
    if features.dtype not in FEATURE_TYPES:
        raise TypeError(f"{name}: features must be of a floating point type, not {features.dtype}")
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
    if features.is_cuda and (missing := cuda_kernels_missing()) is not None:
        raise NotImplementedError(f"{name}: {missing}")


def needs_gradient(features: Tensor) -> bool:
    """Return whether the forward pass has to keep the places of the maxima."""
    return torch.is_grad_enabled() and features.requires_grad


def lies_channels_last(features: Tensor) -> bool:
    """Return whether ``features`` are on the CPU and all channels of a cell lie side by side."""
    return features.device.type == "cpu" and features.is_contiguous(memory_format=torch.channels_last)


def fake_argmax(features: Tensor, pooled: Tensor, bins: int, keeps_argmax: bool) -> Tensor:
    """Return the tensor with the places of the maxima of ``pooled``, without data, for fake kernels.

    On the CPU it holds the cell of each maximum and has the shape of ``pooled``. On CUDA it holds the row and
    the column of each maximum and has shape (R, bins, slots); a place takes 16 bits for maps of up to 255
    cells per side, otherwise 32. Slots are channels, rounded up to whole groups (csrc/pooling/cuda/pool.h).
    """
    if not keeps_argmax:
        return features.new_empty((0,), dtype=torch.int32)
    if features.device.type != "cuda":
        return features.new_empty(pooled.shape, dtype=torch.int32)
    small = features.shape[2] <= 255 and features.shape[3] <= 255
    group = 32 * 16 // features.element_size()
    slots = (features.shape[1] + group - 1) // group * group
    return features.new_empty((pooled.shape[0], bins, slots), dtype=torch.int16 if small else torch.int32)


def register(
    name: str,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    geometry: Callable[..., tuple[Any, ...]],
    *,
    tensors: int = 1,
) -> None:
    """Register the gradient and the fake kernels of ``detector::name``, and the calls that are refused.

    The inputs are the features, ``tensors`` others of which the first are the RoIs, and settings; the second
    output is what the forward pass keeps, such as the places of the maxima. ``geometry`` takes the inputs and
    returns the arguments of ``detector::name_backward`` that follow the gradient, the same tensors and what
    was kept.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # otherwise torch makes a gradient of zeros for the places
        ctx.save_for_backward(*inputs[1 : 1 + tensors], output[1])
        ctx.geometry, ctx.without_gradient = geometry(*inputs), (None,) * (len(inputs) - 1)
        ctx.channels_last = lies_channels_last(inputs[0])

    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, *ctx.without_gradient
        operator = getattr(torch.ops.detector, f"{name}_backward")
        result = operator(grad, *ctx.saved_tensors, *ctx.geometry)
        # Otherwise every layer below would have to combine a gradient and a map of different layouts.
        if ctx.channels_last:
            result = result.contiguous(memory_format=torch.channels_last)
        return result, *ctx.without_gradient

    def no_double_backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(f"{name} has no second derivative: its gradient is not differentiable")

    def no_vmap(*args: Any) -> None:
        raise NotImplementedError(
            f"{name} does not work under torch.func.vmap; RoIs already carry a batch index, so give it all"
            " images and RoIs in one call"
        )

    torch.library.register_fake(f"detector::{name}", fake)
    torch.library.register_autograd(f"detector::{name}", backward, setup_context=setup_context)
    torch.library.register_fake(f"detector::{name}_backward", fake_backward)
    torch.library.register_autograd(f"detector::{name}_backward", no_double_backward)
    for operator in (name, f"{name}_backward"):
        torch.library.register_vmap(f"detector::{operator}", no_vmap)
