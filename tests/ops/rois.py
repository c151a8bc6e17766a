"""Random RoIs for tests, some of them reversed or outside the image."""

from __future__ import annotations

import torch
from torch import Tensor


def random_rois(
    count: int, images: int, size: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return (count, 5) corners in and around an image of ``size`` (height, width), some of them reversed.

    Every second row lies on multiples of 8, where rounding at stride 16 meets many ties.
    """
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([size[1], size[0], size[1], size[0]], dtype=dtype)
    corners = (torch.rand(count, 4, generator=generator, dtype=dtype) * 1.6 - 0.3) * extent
    corners[::2] = (corners[::2] / 8).round() * 8
    ordered = torch.cat((corners[:, :2].minimum(corners[:, 2:]), corners[:, :2].maximum(corners[:, 2:])), 1)
    corners[: count * 3 // 4] = ordered[: count * 3 // 4]
    batch = torch.randint(images, (count, 1), generator=generator).to(dtype)
    return torch.cat((batch, corners), dim=1)
