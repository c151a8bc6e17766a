"""A feature pyramid over the blocks of a backbone (FPN, Lin et al., CVPR 2017), and its rule for regions."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

REFERENCE_SIDE = 224.0
"""A region of this side in pixels belongs to the map of stride 16, the paper's P4 (section 4.2)."""
_REFERENCE_LEVEL = 4
_ROUNDING = 1e-6  # torchvision's; a side of exactly 112 must not fall below its level by a rounding error


class FeaturePyramid(nn.Module):
    """Turns the maps of several blocks into levels of equal width, with semantic information in all.

    Each map goes through a 1x1 convolution; the next coarser level, enlarged to its size by repeating cells,
    is added, and the sum goes through a 3x3 convolution (paper, section 3). This is torchvision's module.

    Attributes: ``channels``; ``strides`` and ``centers`` of the levels in network-input pixels, from fine to
    coarse, as the backbone's.
    """

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], centers: Sequence[float], channels: int
    ) -> None:
        super().__init__()
        self.layers = FeaturePyramidNetwork(list(widths), channels)
        self.channels = channels
        self.strides = tuple(strides)
        self.centers = tuple(centers)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return levels (N, ``channels``, h, w) of the sizes of ``maps`` (N, C, h, w), fine to coarse."""
        named = OrderedDict((str(number), features) for number, features in enumerate(maps))
        return list(self.layers(named).values())

    def place(self, rois: Tensor, scales: Tensor | None) -> Tensor:
        """Return the level (R,) int64 that each of ``rois`` (R, 5) is pooled from; all are on the CPU.

        With several scales, ``scales`` (R,) has the number of each RoI's scale, and the levels of all scales
        follow each other: scale * L + level.
        """
        level = pyramid_level(rois[:, 1:], self.strides)
        return level if scales is None else scales * len(self.strides) + level


def pyramid_level(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Return the number (R,) int64 of the level, among ``strides``, for ``boxes`` (R, 4) in input pixels.

    This is k = floor(4 + log2(sqrt(w h) / 224)) for a level of stride 2^k (paper, section 4.2, equation 1);
    where no level has this stride, the next finer one that exists, or else the finest.
    """
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    k = torch.floor(_REFERENCE_LEVEL + torch.log2(sides / REFERENCE_SIDE) + _ROUNDING)
    levels = torch.tensor([math.log2(stride) for stride in strides], dtype=k.dtype)
    return (torch.bucketize(k, levels, right=True) - 1).clamp(min=0)
