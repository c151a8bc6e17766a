"""Spatial pyramid pooling of whole feature maps, for the classification of images (SPP-net, section 2.2).

Images of any size give rows of the same length, C * sum(l * l). In a batch that is padded to its largest
image, each image pools only its own cells and never the padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.core.cell_masks import CellMasks
from detector.core.devices import sent
from detector.core.errors import InputError
from detector.core.structures import ImageMeta
from detector.models.backbones import Backbone
from detector.ops.spp_pool import spp_pool, whole_map_rois


class WholeMapPool(nn.Module):
    """A region pool for RoIs in map cells, as ``whole_image_rois`` makes them.

    The pyramid has one grid of l x l bins for each l in ``grids``. ``rule`` says how a side of ``a`` cells is
    divided into l bins. "adaptive": bin i goes from floor(i a / l) to ceil((i + 1) a / l), which works for
    every map. "sliding": windows of ceil(a / l) cells every floor(a / l) cells (section 2.3 of the paper),
    which does not give l bins for every ``a``, and may leave the last cells out. ``reduction`` of a bin is
    "max" or "avg". A row has the layout of ``spp_pool``: the grids in the order given, each (C, l, l)
    flattened, so that the same fc6 fits the pyramid pooling of regions.
    """

    def __init__(
        self, channels: int, grids: Sequence[int], reduction: str = "max", rule: str = "adaptive"
    ) -> None:
        super().__init__()
        if rule not in ("adaptive", "sliding"):
            raise ValueError(f"rule must be adaptive or sliding, not {rule!r}")
        self.grids = tuple(grids)
        self.reduction = reduction
        self.rule = rule
        self.out_features = channels * sum(side * side for side in self.grids)

    def forward(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> Tensor:
        """Return (R, C * sum(l * l)) from the only level, a map (N, C, H, W), and RoIs (R, 5) in whole cells.

        ``masks`` are not used: a RoI is a whole image. RoIs on the CPU are sent to the map's device. With the
        rule "sliding" they should be on the CPU: the host computes the windows, and would have to wait for
        RoIs on a GPU.

        Raises:
            InputError: the rule is "sliding", and a side does not give the number of bins of a grid.
        """
        if roi_levels is not None:
            raise ValueError("whole maps are pooled from one level; call the pool once per test scale")
        if self.rule == "adaptive":
            rois = sent(rois, levels[0].device)
            return spp_pool(levels[0], rois, self.grids, reduction=self.reduction, window="cells")
        return torch.cat([self._slide(levels[0], *row) for row in rois.long().tolist()])

    def windows(self, rois: Tensor, roi_levels: Tensor | None = None) -> Tensor:
        """Return ``rois`` (R, 5), which are whole cells already."""
        return rois

    def _slide(self, features: Tensor, image: int, x1: int, y1: int, x2: int, y2: int) -> Tensor:
        part = features[image : image + 1, :, y1:y2, x1:x2]
        pool = functional.max_pool2d if self.reduction == "max" else functional.avg_pool2d
        rows = []
        for bins in self.grids:
            down, across = sliding_window(y2 - y1, bins), sliding_window(x2 - x1, bins)
            rows.append(pool(part, (down[0], across[0]), (down[1], across[1])).flatten(1))
        return torch.cat(rows, dim=1)

    def extra_repr(self) -> str:
        return f"grids={self.grids}, reduction={self.reduction!r}, rule={self.rule!r}"


def sliding_window(side: int, bins: int) -> tuple[int, int]:
    """Return (window, stride) = (ceil(a / n), floor(a / n)) in cells, for a side of a cells and n bins.

    Raises:
        InputError: such windows do not give n bins; names (a, n).
    """
    window, stride = -(-side // bins), side // bins
    actual = (side - window) // stride + 1 if stride else 0
    if actual != bins:
        gives = f"{actual} bins" if stride else "no bins"
        raise InputError(
            f"model.pool.rule sliding: (a, n) = ({side}, {bins}): windows of ceil(a/n) = {window} cells "
            f"every floor(a/n) = {stride} give {gives} instead of {bins}; set model.pool.rule to adaptive, "
            "or choose a scale whose map has another side"
        )
    return window, stride


def whole_image_rois(backbone: Backbone, metas: Sequence[ImageMeta]) -> Tensor:
    """Return RoIs (N, 5) in map cells, each covering one image of a batch without its padding.

    Raises:
        InputError: an image smaller than one cell of the map; names it.
    """
    sizes = [backbone.map_size(meta.input_size) for meta in metas]
    for meta, size in zip(metas, sizes, strict=True):
        if min(size) < 1:
            height, width = meta.input_size
            raise InputError(
                f"image {meta.image_id!r}: {width}x{height} pixels at the network's input are less than one "
                "cell of the feature map; raise the scales in the config"
            )
    return whole_map_rois(sizes)
