"""Networks that differ only in their heads, run on the same image: what they share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detector.core.cell_masks import CellMasks
from detector.core.structures import Embedded
from detector.models.detector import RegionDetector


class _Pooled(NamedTuple):
    levels: tuple[Tensor, ...]
    rois: Tensor
    roi_levels: Tensor | None
    masked: bool
    pooled: Tensor

    def is_of(
        self, levels: Sequence[Tensor], rois: Tensor, roi_levels: Tensor | None, masks: CellMasks | None
    ) -> bool:
        """Whether these are the features of the same regions of the same levels, pooled by masks or not."""
        same = len(levels) == len(self.levels) and all(
            a is b for a, b in zip(levels, self.levels, strict=True)
        )
        if not same or self.masked != (masks is not None) or not torch.equal(rois, self.rois):
            return False
        if roi_levels is None or self.roi_levels is None:
            return roi_levels is self.roi_levels
        return torch.equal(roi_levels, self.roi_levels)


class ImageMemory:
    """The feature levels and pooled regions of the present image; `forget` before the next one."""

    def __init__(self) -> None:
        self.levels: list[tuple[Tensor, list[Tensor]]] = []
        self.regions: list[_Pooled] = []

    def forget(self) -> None:
        self.levels, self.regions = [], []


class SharingDetector(RegionDetector):
    """A network that shares all but its head with others, and computes only what ``memory`` does not have.

    Its results are those of a `RegionDetector` with the same parts, bit for bit. Only one thread may use the
    networks of a memory, without gradients and in evaluation mode.
    """

    def __init__(self, memory: ImageMemory, **parts: Any) -> None:
        super().__init__(**parts)
        self.memory = memory

    def features(self, images: Tensor) -> list[Tensor]:
        for known, levels in self.memory.levels:
            if torch.equal(known, images):
                return list(levels)
        computed = super().features(images)
        self.memory.levels.append((images, computed))
        return list(computed)

    def embed(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> Embedded:
        for known in self.memory.regions:
            if known.is_of(levels, rois, roi_levels, masks):
                return Embedded(known.pooled, self.box_head(known.pooled))
        pooled = self.region_pool(levels, rois, roi_levels, masks)
        self.memory.regions.append(_Pooled(tuple(levels), rois, roi_levels, masks is not None, pooled))
        return Embedded(pooled, self.box_head(pooled))


class Remembered(nn.Module):
    """Layers that several heads share: for the same tensor (not an equal one) they are run once."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.known: list[tuple[Tensor, Tensor]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        for known, outputs in self.known:
            if known is inputs:
                return outputs
        computed: Tensor = self.layers(inputs)
        self.known.append((inputs, computed))
        return computed

    def forget(self) -> None:
        self.known = []
