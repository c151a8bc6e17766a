"""Selective search (Uijlings, van de Sande, Gevers, Smeulders, IJCV 2013): class-free region proposals.

An image is segmented into regions (Felzenszwalb and Huttenlocher, IJCV 2004) in several colour spaces and
with several thresholds k. In each segmentation, the most similar neighbours are merged until one region is
left, once per similarity measure. The boxes of all regions that occur are the proposals. The constants are
those of the authors' release, which R-CNN, SPP-net and Fast R-CNN used.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector.core.errors import InputError
from detector.ops import _library  # noqa: F401  (registers the operators)
from detector.ops.selective_search_config import SelectiveSearchConfig, as_config, is_whole


class SelectiveSearchResult(NamedTuple):
    """boxes (P, 4) float32, half-open, in pixels of the given image; scores (P,) float32, descending.

    The scores only express the order: they fall evenly from 1 for the first of all proposals to 1 / P for the
    last one, and ``max_proposals`` cuts this list.
    """

    boxes: Tensor
    scores: Tensor


def as_rgb(image: np.ndarray | Tensor) -> Tensor:
    """Return ``image`` as a contiguous uint8 tensor (H, W, 3) on the CPU.

    Takes grey (H, W) or (H, W, 1), which is repeated for all three channels, RGB (H, W, 3), and RGB with
    alpha (H, W, 4), whose alpha is dropped. Raises InputError for anything else.
    """
    tensor = image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        # torch warns about arrays that are not writeable, such as PIL's images; this copies them.
        tensor = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise InputError(
            f"selective_search takes a uint8 array or tensor, not {kind}; scale to 0..255 first."
        )
    if tensor.dim() == 2:
        tensor = tensor[:, :, None]
    if tensor.dim() != 3 or tensor.shape[2] not in (1, 3, 4) or tensor.numel() == 0:
        shape = tuple(tensor.shape)
        raise InputError(
            f"selective_search takes an image (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {shape}."
        )
    channels = tensor.cpu()[:, :, :3]
    return channels.expand(-1, -1, 3).contiguous()


def selective_search(
    image: np.ndarray | Tensor,
    mode: str | SelectiveSearchConfig = "fast",
    seed: int = 0,
    max_proposals: int | None = None,
    *,
    num_threads: int = 1,
) -> SelectiveSearchResult:
    """Propose boxes that may hold an object, the likeliest first.

    The set of boxes depends only on the image and ``mode``. Their order also depends on ``seed``: boxes are
    sorted by their place in the merging order times a random number (section 4.2 of the paper). The result is
    the same on every processor and with any number of threads. Python's global lock is released during the
    search.

    Args:
        image: uint8, RGB (H, W, 3); grey images and images with alpha are converted by ``as_rgb``.
        mode: a name from ``PRESETS`` or a configuration.
        seed: seed of the random numbers that decide the order.
        max_proposals: how many proposals to return at most; None returns all.
        num_threads: threads that share the image's colour spaces and scales.

    Returns:
        Boxes without duplicates, inside the image; none for an image smaller than ``min_side``.

    Raises InputError for an invalid image, mode or number.
    """
    config, rgb = as_config(mode), as_rgb(image)
    if not is_whole(seed, -math.inf, math.inf):
        raise InputError(f"seed is {seed!r}; it must be a whole number.")
    if max_proposals is not None and not is_whole(max_proposals, 0, math.inf):
        raise InputError(f"max_proposals is {max_proposals!r}; it must be 0 or more, or None for all.")
    if not is_whole(num_threads, 1, math.inf):
        raise InputError(f"num_threads is {num_threads!r}; it must be 1 or more.")
    height, width = config.working_size((rgb.shape[0], rgb.shape[1]))
    boxes = torch.ops.detector.selective_search(
        rgb,
        height=height,
        width=width,
        min_side=config.min_side,
        seed=(int(seed) + 2**63) % 2**64 - 2**63,
        max_proposals=-1,
        num_threads=num_threads,
        **config.strategy_arguments(),
    )
    scores = torch.linspace(1, 0, len(boxes) + 1)[:-1]
    return SelectiveSearchResult(boxes[:max_proposals], scores[:max_proposals])
