"""Turns a batch of uint8 images into the input of a network: one pass over the pixels, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detector.core.structures import Normalization
from detector.ops._library import cuda_kernels_missing


def normalization_table(normalization: Normalization) -> Tensor:
    """Return what ``normalization`` makes of each pixel value, (3, 256) float32, on the CPU.

    Row c belongs to the network's input channel c, so the rows are blue, green and red with ``bgr``. Column v
    is ``(v / maximum - mean) / deviation``, computed in float32 and in this order.
    """
    pixels = torch.arange(256, dtype=torch.float32)
    mean = torch.tensor(normalization.mean).view(3, 1)
    deviation = torch.tensor(normalization.deviation).view(3, 1)
    return (pixels / normalization.maximum - mean) / deviation


def normalize_images(images: Tensor, table: Tensor, sizes: Sequence[tuple[int, int]], *, bgr: bool) -> Tensor:
    """Return the network input for a padded batch of images; the bits are the same on CPU and CUDA.

    The host does not wait for the device. There is no gradient, because images are data.

    Args:
        images: (N, H, W, 3) uint8, RGB, contiguous.
        table: (3, 256) float32, contiguous, on the device of ``images``: the value of each of the network's
            input channels for each value of a pixel, see `normalization_table`.
        sizes: (height, width) of each image in pixels; what lies right of it or below it is padding.
        bgr: whether the network's first input channel is blue.

    Returns:
        (N, 3, H, W) float32 in channels-last memory format. The padding is 0.0, the mean colour, whatever
        ``images`` hold there.

    Raises:
        ValueError: for a wrong shape, for tensors that are not contiguous or not on one device, or for sizes
            that are not N or do not lie within H x W.
        TypeError: for a wrong type.
        NotImplementedError: for CUDA tensors if the CUDA kernels were not built, in the backward pass if
            ``table`` requires a gradient, and under torch.func.vmap.
    """
    _check(images, table, sizes)
    flat = [side for size in sizes for side in size]
    return torch.ops.detector.normalize_images(images, table, flat, bgr).permute(0, 3, 1, 2)


def _check(images: Tensor, table: Tensor, sizes: Sequence[tuple[int, int]]) -> None:
    for name, tensor, dtype in (("images", images, torch.uint8), ("table", table, torch.float32)):
        if tensor.dtype != dtype:
            raise TypeError(f"normalize_images: {name} must be of type {dtype}, not {tensor.dtype}")
    if images.dim() != 4 or images.shape[3] != 3:
        raise ValueError(f"normalize_images: images must have shape (N, H, W, 3), not {tuple(images.shape)}")
    if tuple(table.shape) != (3, 256):
        raise ValueError(f"normalize_images: table must have shape (3, 256), not {tuple(table.shape)}")
    for name, tensor in (("images", images), ("table", table)):
        if not tensor.is_contiguous():
            raise ValueError(f"normalize_images: {name} must be contiguous; call .contiguous() first")
    if table.device != images.device:
        raise ValueError(f"normalize_images: images are on {images.device} but table on {table.device}")
    _check_sizes(sizes, images.shape)
    if images.is_cuda and (missing := cuda_kernels_missing()) is not None:
        raise NotImplementedError(f"normalize_images: {missing}")


def _check_sizes(sizes: Sequence[tuple[int, int]], shape: Sequence[int]) -> None:
    count, limit_height, limit_width = shape[:3]
    if len(sizes) != count:
        raise ValueError(f"normalize_images: {count} images need as many sizes, not {len(sizes)}")
    for index, (height, width) in enumerate(sizes):
        if not (0 <= height <= limit_height and 0 <= width <= limit_width):
            raise ValueError(
                f"normalize_images: image {index} has {height} x {width} pixels, but the batch holds"
                f" {limit_height} x {limit_width} per image"
            )


def _fake(images: Tensor, table: Tensor, sizes: list[int], bgr: bool) -> Tensor:
    return images.new_empty(images.shape, dtype=torch.float32)


def _no_gradient(ctx: Any, grad: Tensor) -> None:
    raise NotImplementedError("normalize_images has no gradient: images and the table are data")


def _no_vmap(*args: Any) -> None:
    raise NotImplementedError(
        "normalize_images does not work under torch.func.vmap; give it all images as one batch"
    )


torch.library.register_fake("detector::normalize_images", _fake)
torch.library.register_autograd("detector::normalize_images", _no_gradient)
torch.library.register_vmap("detector::normalize_images", _no_vmap)
