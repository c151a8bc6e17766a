"""TEMPORARY reference until the native operator is merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.core.structures import Normalization


def normalization_table(normalization: Normalization) -> Tensor:
    pixels = torch.arange(256, dtype=torch.float32).expand(3, 256)
    mean = torch.tensor(normalization.mean).view(3, 1)
    deviation = torch.tensor(normalization.deviation).view(3, 1)
    return (pixels / normalization.maximum - mean) / deviation


def normalize_images(images: Tensor, table: Tensor, sizes: Sequence[tuple[int, int]], *, bgr: bool) -> Tensor:
    if bgr:
        images = images.flip(3)
    out = torch.stack([table[c][images[..., c].long()] for c in range(3)], dim=1)
    out = out.contiguous(memory_format=torch.channels_last)
    for one, (height, width) in zip(out, sizes, strict=True):
        one[:, height:] = 0
        one[:, :, width:] = 0
    return out
