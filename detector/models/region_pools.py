"""Region pools: from feature levels and RoI rows to one row of pooled features per RoI."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from detector.core.cell_masks import CellGrid, CellMasks
from detector.core.devices import sent
from detector.ops import roi_pool, spp_pool
from detector.ops.masked_pooling import MODES, masked_roi_align, masked_roi_pool, masked_spp_pool
from detector.ops.roi_align import roi_align
from detector.ops.windows import projected_windows, rounded_windows

PerLevel = float | Sequence[float]
"""A number for every level, or one number per level of a pyramid."""


class LevelPool(nn.Module):
    """A pool that works on one level at a time; several levels are pooled one after another.

    A level is the feature map of one batch of images, at one scale. ``stride`` and ``center`` are in
    network-input pixels: one number for all levels, or one per level of a feature pyramid. With pyramids at
    several scales, level i takes number i modulo the length. ``mask`` "cells" and "weighted" pool what the
    regions' masks cover (`ops.masked_pooling`), and regions without masks by the same maximum or average;
    "none" pools boxes. Subclasses define ``out_features`` and ``pool``, and ``windows`` where different RoIs
    may pool the same cells.
    """

    out_features: int

    def __init__(self, stride: PerLevel = 1, center: PerLevel = 0.0, mask: str = "none") -> None:
        super().__init__()
        if mask not in ("none", *MODES):
            raise ValueError(f"mask must be none, {' or '.join(MODES)}, not {mask!r}")
        self.mask = mask
        self.strides, self.centers = _per_level(stride), _per_level(center)
        if len(self.strides) != len(self.centers) and 1 not in (len(self.strides), len(self.centers)):
            raise ValueError(f"{len(self.strides)} strides but {len(self.centers)} centers")

    def pool(self, features: Tensor, rois: Tensor, level: int = 0, masks: CellMasks | None = None) -> Tensor:
        """Return (R, D) for the map (N, C, h, w) of ``level`` and ``rois`` (R, 5) in network-input pixels.

        ``masks`` are as in `forward`, for this level.
        """
        raise NotImplementedError

    def windows(self, rois: Tensor, roi_levels: Tensor | None = None) -> Tensor:
        """Return a row per RoI, (R, n). RoIs of one level whose rows are equal pool to equal bits.

        ``roi_levels`` (R,) are as in `forward`.
        """
        return rois

    def geometry(self, level: int) -> tuple[float, float]:
        """Return the stride and the center of a level."""
        return self.strides[level % len(self.strides)], self.centers[level % len(self.centers)]

    def cell_grid(
        self, level: int, map_size: Callable[[tuple[int, int]], tuple[int, int]] | None = None
    ) -> CellGrid:
        """Return where the cells of a level lie by this pool's rule, on which masks are to be laid."""
        stride, center = self.geometry(level)
        return CellGrid(stride, center, map_size)

    def forward(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> Tensor:
        """Return (R, D) for RoI rows (R, 5), each in pixels of its own level's input image.

        ``masks`` are those of the RoIs, laid on `cell_grid` of each one's level; None stands for regions
        without masks. They are left out where the pool's ``mask`` is "none".

        ``roi_levels`` (R,) should be on the CPU: RoIs are sorted by level, and the number of RoIs of each
        level has to be known before any work is given to the device. None pools all from the first level.
        """
        if self.mask == "none":
            masks = None
        if roi_levels is None:
            return self.pool(levels[0], rois, 0, masks)
        roi_levels = roi_levels.cpu()
        order = torch.sort(roi_levels, stable=True).indices
        counts = torch.bincount(roi_levels, minlength=len(levels)).tolist()
        back = sent(torch.argsort(order), rois.device)
        by_level = rois.index_select(0, sent(order, rois.device)).split(counts)
        of_level = [None if masks is None else masks.select(rows) for rows in order.split(counts)]
        pooled = [
            self.pool(level, rows, number, covered)
            for number, (level, rows, covered) in enumerate(zip(levels, by_level, of_level, strict=True))
        ]
        return torch.cat(pooled).index_select(0, back)

    def _masks(self, masks: CellMasks | None, rois: Tensor) -> CellMasks:
        return CellMasks.absent(len(rois)).to(rois.device) if masks is None else masks

    def _geometries(self, rois: Tensor, roi_levels: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """Return `geometry` of each RoI's level, (R, 1) float64, or two numbers where all have the same."""
        if roi_levels is None or len(self.strides) == len(self.centers) == 1:
            return self.geometry(0)
        places = roi_levels.cpu()
        strides, centers = (
            sent(torch.tensor(part, dtype=torch.float64)[places % len(part), None], rois.device)
            for part in (self.strides, self.centers)
        )
        return strides, centers


def _per_level(value: PerLevel) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


class RoIPooling(LevelPool):
    """RoI max pooling to ``output_size`` x ``output_size`` bins (Fast R-CNN, section 2.1).

    ``stride`` and ``center`` are the backbone's, in network-input pixels. ``center`` is subtracted from RoI
    coordinates before they are rounded to cells; 0 is Caffe's rule. Rows are flattened in the order (channel,
    row, column), as Caffe's fc6 weights expect.
    """

    def __init__(
        self,
        channels: int,
        output_size: int,
        stride: PerLevel,
        center: PerLevel = 0.0,
        *,
        mask: str = "none",
    ) -> None:
        super().__init__(stride, center, mask)
        self.output_size = output_size
        self.out_features = channels * output_size**2

    def pool(self, features: Tensor, rois: Tensor, level: int = 0, masks: CellMasks | None = None) -> Tensor:
        size, (stride, center) = self.output_size, self.geometry(level)
        rows = moved(rois, center)
        if self.mask == "none":
            return roi_pool(features, rows, (size, size), 1.0 / stride).flatten(1)
        return masked_roi_pool(features, rows, self._masks(masks, rois), size, 1.0 / stride, self.mask)

    def windows(self, rois: Tensor, roi_levels: Tensor | None = None) -> Tensor:
        stride, center = self._geometries(rois, roi_levels)
        return rounded_windows(moved(rois, center), 1.0 / stride)


def moved(rois: Tensor, by: Tensor | float) -> Tensor:
    """Return ``rois`` (R, 5) with ``by`` subtracted from all coordinates, in the type of the RoIs."""
    if isinstance(by, Tensor):
        by = by.to(rois.dtype)
    elif not by:
        return rois
    return torch.cat((rois[:, :1], rois[:, 1:] - by), dim=1)


class RoIAlignPooling(LevelPool):
    """RoIAlign with ``output_size`` x ``output_size`` bins (Mask R-CNN, section 3), torchvision's operator.

    ``sampling_ratio`` is the number of samples per bin and axis, 0 for as many as the bin has cells.
    ``center`` None puts the centre of cell k at (k + 0.5) * stride (``aligned=True``); a number puts it at
    k * stride + center, counted from the edge of the first pixel. Rows are flattened (channel, row, column).
    """

    def __init__(
        self,
        channels: int,
        output_size: int,
        stride: PerLevel,
        center: PerLevel | None = None,
        *,
        sampling_ratio: int = 0,
        mask: str = "none",
    ) -> None:
        middle = [part / 2 for part in _per_level(stride)] if center is None else center
        super().__init__(stride, middle, mask)
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.out_features = channels * output_size**2

    def pool(self, features: Tensor, rois: Tensor, level: int = 0, masks: CellMasks | None = None) -> Tensor:
        stride, center = self.geometry(level)
        rows, settings = (
            moved(rois, center - stride / 2),
            (self.output_size, 1.0 / stride, self.sampling_ratio),
        )
        if self.mask == "none":
            return roi_align(features, rows, *settings).flatten(1)
        return masked_roi_align(features, rows, self._masks(masks, rois), *settings, self.mask)


class PyramidPooling(LevelPool):
    """A spatial pyramid over each region's window (SPP-net, sections 2.2 and 4.1, appendix A).

    The pyramid has one grid of l x l bins for each l in ``grids``. ``window`` "spp" projects boxes to cells
    as SPP-net does, with the receptive-field ``center`` of the first cell in 0-based input pixels and
    ``shrink`` in input pixels (None: half a stride); "roi" rounds them as RoI pooling does. A row holds the
    grids in the order given, each flattened (channel, row, column). ``mask`` takes the place of
    ``reduction``: "cells" is a maximum, "weighted" an average.
    """

    def __init__(
        self,
        channels: int,
        grids: Sequence[int],
        stride: PerLevel,
        *,
        reduction: str = "max",
        window: str = "spp",
        center: PerLevel = 0.0,
        shrink: float | None = None,
        mask: str = "none",
    ) -> None:
        super().__init__(stride, center, mask)
        self.grids = tuple(grids)
        self.reduction = reduction
        self.window = window
        self.shrink = shrink
        self.out_features = channels * sum(side * side for side in self.grids)

    def pool(self, features: Tensor, rois: Tensor, level: int = 0, masks: CellMasks | None = None) -> Tensor:
        stride, center = self.geometry(level)
        where = (self.window, center, self.shrink)
        if self.mask == "none":
            return spp_pool(features, rois, self.grids, 1.0 / stride, self.reduction, *where)
        covered = self._masks(masks, rois)
        return masked_spp_pool(features, rois, covered, self.grids, 1.0 / stride, *where, self.mask)

    def cell_grid(
        self, level: int, map_size: Callable[[tuple[int, int]], tuple[int, int]] | None = None
    ) -> CellGrid:
        stride, center = self.geometry(level)
        # From the index of a pixel to its centre; window "roi" puts cell k at k * stride.
        return CellGrid(stride, 0.0 if self.window == "roi" else center + 0.5, map_size)

    def windows(self, rois: Tensor, roi_levels: Tensor | None = None) -> Tensor:
        stride, center = self._geometries(rois, roi_levels)
        scale = 1.0 / stride
        if self.window == "roi":
            return rounded_windows(rois, scale)
        shrink = 0.5 / scale if self.shrink is None else self.shrink
        return projected_windows(rois, scale, center, shrink)
