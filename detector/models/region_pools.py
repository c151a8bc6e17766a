"""Region pools: from feature levels and RoI rows to one row of pooled features per RoI."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.core.devices import sent
from detector.ops import SpatialPyramidPool, roi_pool
from detector.ops.windows import projected_windows, rounded_windows


class LevelPool(nn.Module):
    """A pool that works on one level at a time; several levels are pooled one after another.

    A level is the feature map of one batch of images, at one scale. Subclasses define ``out_features`` and
    ``pool``, and ``windows`` where different RoIs may pool the same cells.
    """

    out_features: int

    def pool(self, features: Tensor, rois: Tensor) -> Tensor:
        """Return (R, D) for ``features`` (N, C, h, w) and ``rois`` (R, 5) in network-input pixels."""
        raise NotImplementedError

    def windows(self, rois: Tensor) -> Tensor:
        """Return a row per RoI, (R, 5). RoIs of one level whose rows are equal pool to equal bits."""
        return rois

    def forward(self, levels: Sequence[Tensor], rois: Tensor, roi_levels: Tensor | None = None) -> Tensor:
        """Return (R, D) for RoI rows (R, 5), each in pixels of its own level's input image.

        ``roi_levels`` (R,) should be on the CPU: RoIs are sorted by level, and the number of RoIs of each
        level has to be known before any work is given to the device. None pools all from the first level.
        """
        if roi_levels is None:
            return self.pool(levels[0], rois)
        roi_levels = roi_levels.cpu()
        order = torch.sort(roi_levels, stable=True).indices
        counts = torch.bincount(roi_levels, minlength=len(levels)).tolist()
        back = sent(torch.argsort(order), rois.device)
        by_level = rois.index_select(0, sent(order, rois.device)).split(counts)
        pooled = [self.pool(level, rows) for level, rows in zip(levels, by_level, strict=True)]
        return torch.cat(pooled).index_select(0, back)


class RoIPooling(LevelPool):
    """RoI max pooling to ``output_size`` x ``output_size`` bins (Fast R-CNN, section 2.1).

    ``stride`` and ``center`` are the backbone's, in network-input pixels. ``center`` is subtracted from RoI
    coordinates before they are rounded to cells; 0 is Caffe's rule. Rows are flattened in the order (channel,
    row, column), as Caffe's fc6 weights expect.
    """

    def __init__(self, channels: int, output_size: int, stride: int, center: float = 0.0) -> None:
        super().__init__()
        self.output_size = output_size
        self.stride = stride
        self.center = center
        self.out_features = channels * output_size**2

    def pool(self, features: Tensor, rois: Tensor) -> Tensor:
        size = (self.output_size, self.output_size)
        return roi_pool(features, self._from_center(rois), size, 1.0 / self.stride).flatten(1)

    def windows(self, rois: Tensor) -> Tensor:
        return rounded_windows(self._from_center(rois), 1.0 / self.stride)

    def _from_center(self, rois: Tensor) -> Tensor:
        return torch.cat((rois[:, :1], rois[:, 1:] - self.center), dim=1) if self.center else rois


class PyramidPooling(LevelPool):
    """A spatial pyramid over each region's window (SPP-net, sections 2.2 and 4.1, appendix A).

    The pyramid has one grid of l x l bins for each l in ``grids``. ``window`` "spp" projects boxes to cells
    as SPP-net does, with the receptive-field ``center`` of the first cell in 0-based input pixels and
    ``shrink`` in input pixels (None: half a stride); "roi" rounds them as RoI pooling does. A row holds the
    grids in the order given, each flattened (channel, row, column).
    """

    def __init__(
        self,
        channels: int,
        grids: Sequence[int],
        stride: int,
        *,
        reduction: str = "max",
        window: str = "spp",
        center: float = 0.0,
        shrink: float | None = None,
    ) -> None:
        super().__init__()
        self.pyramid = SpatialPyramidPool(grids, 1.0 / stride, reduction, window, center, shrink)
        self.scale = 1.0 / stride
        self.window = window
        self.center = center
        self.shrink = 0.5 / self.scale if shrink is None else shrink
        self.out_features = channels * sum(side * side for side in grids)

    def pool(self, features: Tensor, rois: Tensor) -> Tensor:
        pooled: Tensor = self.pyramid(features, rois)
        return pooled

    def windows(self, rois: Tensor) -> Tensor:
        if self.window == "roi":
            return rounded_windows(rois, self.scale)
        return projected_windows(rois, self.scale, self.center, self.shrink)
