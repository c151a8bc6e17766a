"""Pooling over the cells that each region's mask covers: the maximum, or an average weighted by coverage.

Each mask has a window of cells, whose size the host knows. The windows are copied out of the map in groups of
about the same size, padded to the largest of the group, and each group is pooled at once. Nothing here makes
the host wait for a GPU. On a CPU averages and samples are sums over lists of cells instead
(``ops.masked_bags``), which is several times as fast. With ``torch.use_deterministic_algorithms``, which
``train.deterministic`` sets, gradients are the same on every run.

- ``"cells"``: a bin's maximum is that of its covered cells, those whose centre the mask covers. For RoIAlign
  it is the maximum of the bin's samples that lie in covered cells, each interpolated as usual.
- ``"weighted"``: a bin's average is the sum of coverage times value over its cells, divided by the sum of
  their coverage. For RoIAlign each cell also counts with the weight with which the bin's samples read it.

A bin's cells are those of the bin without a mask, by the rules of ``csrc/pooling/bins.h``. A bin without a
covered cell, or with no coverage, gives 0 and passes no gradient on. A region with an empty window in
``CellMasks`` is pooled as its whole box: by the same maximum or average over all cells of its bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from detector.core.cell_masks import CellMasks
from detector.core.devices import sent
from detector.ops.masked_bags import Bins, Cells, bin_averages, sample_maxima
from detector.ops.roi_align import axis_weights, ordered, roi_align, sample_grid
from detector.ops.roi_pool import roi_pool
from detector.ops.spp_pool import spp_pool
from detector.ops.windows import projected_windows, rounded_windows

MODES = ("cells", "weighted")
Parts = Iterator[tuple[Tensor, Tensor]]
"""Numbers of RoIs (r,) on the CPU, and (r, D), what is pooled for them."""
_NUMBERS = 2**24
"""Numbers that a group of windows may have, channels counted."""
_STEPS = (3, 6, 10, 16, 25, 40, 64, 100, 160, 256)
"""Sides of windows, in cells, between which sides are pooled together."""


def masked_roi_pool(
    features: Tensor, rois: Tensor, masks: CellMasks, output_size: int, spatial_scale: float, mode: str
) -> Tensor:
    """Return (R, C * n * n): ``roi_pool`` with n x n bins of rule "caffe" over what ``masks`` cover.

    ``features``, ``rois`` and ``spatial_scale`` are as there. Without masks, mode "cells" is ``roi_pool``.

    Raises:
        ValueError: another mode, or another number of masks than of RoIs; also as ``roi_pool``.
    """

    def bins(rows: Tensor, axis: int, side: int, extent: int) -> tuple[Tensor, Tensor]:
        corners = rounded_windows(rows, spatial_scale)
        return _caffe_bins(corners[:, 1 + axis], corners[:, 3 + axis], side, extent)

    def boxed(rows: Tensor) -> Tensor:
        if mode == "cells":
            return roi_pool(features, rows, output_size, spatial_scale).flatten(1)
        return _bin_averages(features, rows, output_size, bins)

    def maxima(crops: _Crops) -> Tensor:
        corners = rounded_windows(crops.rois, spatial_scale)[:, 1:]
        return roi_pool(crops.maps, crops.placed(corners), output_size, 1.0).flatten(1)

    return _pool_bins(features, rois, masks, mode, (output_size,), bins, boxed, maxima)


def masked_spp_pool(
    features: Tensor,
    rois: Tensor,
    masks: CellMasks,
    levels: Sequence[int],
    spatial_scale: float,
    window: str,
    center: float,
    shrink: float | None,
    mode: str,
) -> Tensor:
    """Return (R, C * sum(l * l)): ``spp_pool`` over what ``masks`` cover.

    The arguments are as there; ``window`` is "spp" or "roi". Without masks, mode "cells" is ``spp_pool`` with
    reduction "max" and mode "weighted" with "avg".

    Raises:
        ValueError: another mode, or another number of masks than of RoIs; also as ``spp_pool``.
    """
    inside = 0.5 / spatial_scale if shrink is None else shrink

    def windows(rows: Tensor, height: int, width: int) -> Tensor:
        """Return the windows (R, 4) in cells, half-open."""
        if window == "roi":
            corners = rounded_windows(rows, spatial_scale)[:, 1:]
            first, last = corners[:, :2], corners[:, 2:].maximum(corners[:, :2])
        else:
            first, last = projected_windows(rows, spatial_scale, center, inside)[:, 1:].split(2, dim=1)
            middle = ((first + last) / 2).floor()
            first, last = torch.where(first > last, middle, first), torch.where(first > last, middle, last)
            most = sent(torch.tensor([width - 1, height - 1], dtype=first.dtype), first.device)
            first, last = first.clamp(min=0).minimum(most), last.clamp(min=0).minimum(most)
        return torch.cat((first, last + 1), dim=1).to(rows.dtype)

    height, width = features.shape[2:]

    def bins(rows: Tensor, axis: int, side: int, extent: int) -> tuple[Tensor, Tensor]:
        corners = windows(rows, height, width)
        return _exact_bins(corners[:, axis], corners[:, 2 + axis], side, extent)

    def boxed(rows: Tensor) -> Tensor:
        reduction = "max" if mode == "cells" else "avg"
        return spp_pool(features, rows, levels, spatial_scale, reduction, window, center, shrink)

    def maxima(crops: _Crops) -> Tensor:
        placed = crops.placed(windows(crops.rois, height, width))
        return spp_pool(crops.maps, placed, levels, window="cells")

    return _pool_bins(features, rois, masks, mode, levels, bins, boxed, maxima)


def _pool_bins(
    features: Tensor,
    rois: Tensor,
    masks: CellMasks,
    mode: str,
    sides: Sequence[int],
    bins: Bins,
    boxed: Callable[[Tensor], Tensor],
    maxima: Callable[[_Crops], Tensor],
) -> Tensor:
    """Pool grids of ``sides`` x ``sides`` bins: ``maxima`` of covered cells, or averages over ``bins``."""
    if mode == "cells":
        return _pool(features, rois, masks, mode, boxed, maxima)

    def averages(crops: _Crops) -> Tensor:
        return _averages(crops, sides, bins)

    def on_cpu(cells: Cells, rows: Tensor) -> Parts:
        return bin_averages(cells, rows, sides, bins)

    return _pool(features, rois, masks, mode, boxed, averages, on_cpu)


def masked_roi_align(
    features: Tensor,
    rois: Tensor,
    masks: CellMasks,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    mode: str,
) -> Tensor:
    """Return (R, C * n * n): RoIAlign with n x n bins over what ``masks`` cover.

    The arguments are as those of ``roi_align``. Without masks, mode "weighted" is ``roi_align``, and "cells"
    is the maximum of the samples instead of their mean. Samples outside the map are left out. In mode "cells"
    on a GPU a RoI must not be larger than the window of its mask, which holds for the mask's own box.

    Raises:
        ValueError: another mode, or another number of masks than of RoIs; also as ``roi_align``.
    """
    settings = (output_size, spatial_scale, sampling_ratio)

    def boxed(rows: Tensor) -> Tensor:
        return roi_align(features, rows, *settings).flatten(1)

    def averages(crops: _Crops) -> Tensor:
        weights = [
            axis_weights(
                *crops.edges(axis), output_size, crops.extents[axis], *settings[1:], crops.cells[axis]
            )
            for axis in range(2)
        ]
        return _weighted(crops, *weights)

    def maxima(crops: _Crops) -> Tensor:
        return _sample_maxima(crops, *settings)

    def on_cpu(cells: Cells, rows: Tensor) -> Parts:
        return sample_maxima(cells, rows, *settings)

    corners = ordered(rois, len(features))
    if mode == "weighted":
        return _pool(features, corners, masks, mode, boxed, averages)
    masks = _with_boxes(features, rois, masks, spatial_scale)
    return _pool(features, corners, masks, mode, boxed, maxima, on_cpu, samples=output_size)


class _Crops(NamedTuple):
    """The windows of r masks, cut out of the map and padded to h x w cells.

    ``maps`` (r, C, h, w) hold the features. For the maxima over cells, cells that are not covered have the
    lowest number, with ``margin`` they keep their values. ``coverage`` (r, h, w) and ``covered`` are zero
    beyond the masks' windows. ``cells`` are the rows (r, h) and the columns (r, w) on the map, whose
    ``extents`` are (height, width).
    """

    maps: Tensor
    coverage: Tensor
    covered: Tensor
    rois: Tensor
    cells: tuple[Tensor, Tensor]
    extents: tuple[int, int]

    def edges(self, axis: int) -> tuple[Tensor, Tensor]:
        """Return the first and the last edges of the RoIs (r,), along axis 0 (vertical) or 1."""
        return self.rois[:, 2 - axis], self.rois[:, 4 - axis]

    def placed(self, corners: Tensor) -> Tensor:
        """Return RoI rows (r, 5) for ``corners`` (r, 4), in cells of the map, on the cut maps."""
        corner = torch.stack((self.cells[1][:, 0], self.cells[0][:, 0]), dim=1).repeat(1, 2)
        numbers = torch.arange(len(corners), device=corners.device, dtype=corners.dtype)
        return torch.cat((numbers[:, None], corners - corner.to(corners.dtype)), dim=1)


def _pool(
    features: Tensor,
    rois: Tensor,
    masks: CellMasks,
    mode: str,
    boxed: Callable[[Tensor], Tensor],
    masked: Callable[[_Crops], Tensor],
    on_cpu: Callable[[Cells, Tensor], Parts] | None = None,
    *,
    samples: int = 0,
) -> Tensor:
    """Pool the regions with masks by ``masked``, group by group, and the others by ``boxed``.

    On a CPU ``on_cpu`` takes the place of ``masked`` where there is one: it pools the rows it is given.
    With ``samples``, the bins per side, ``masked`` interpolates: the crops show one cell more on each side,
    and values of cells that are not covered.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if len(masks) != len(rois):
        raise ValueError(f"{len(masks)} masks for {len(rois)} RoIs")
    extents = (features.shape[2], features.shape[3])
    most = torch.tensor([extents[1], extents[0]])
    windows = torch.cat((masks.windows[:, :2].clamp(min=0), masks.windows[:, 2:].minimum(most)), dim=1)
    whole = (windows[:, 2:] <= windows[:, :2]).any(1)
    hides = mode == "cells" and not samples
    exact = torch.float64 if features.dtype == torch.float64 else torch.float32
    margin = min(samples, 1)

    def parts() -> Parts:
        boxes = whole.nonzero()[:, 0]
        if len(boxes) or not len(rois):
            yield boxes, boxed(rois.index_select(0, sent(boxes, rois.device)))
        numbers = _flat(features if hides else features.to(exact), hides)  # sums are computed in float32
        if on_cpu is not None and _knows_rois(rois):
            cells = Cells(numbers, extents, rois.to(exact), masks)
            for rows, pooled in on_cpu(cells, (~whole).nonzero()[:, 0]) if not whole.all() else ():
                yield rows, pooled.to(features.dtype)
            return
        for rows in _groups(windows, whole, features.shape[1], samples):
            pooled = masked(_cut(numbers, rois.to(exact), masks, windows, rows, extents, margin, hides))
            if hides:
                pooled = functional.threshold(pooled, _lowest(pooled.dtype), 0)
            yield rows, pooled.to(features.dtype)

    with torch.autocast(features.device.type, enabled=False):
        return _in_order(parts(), len(rois), rois.device)


def _knows_rois(rois: Tensor) -> bool:
    """Return whether the host may look at ``rois`` without waiting for a device."""
    return rois.device.type == "cpu"


def _in_order(parts: Parts, count: int, device: torch.device) -> Tensor:
    """Return the rows (R, D) of all ``parts``, pairs of row numbers on the CPU and rows."""
    if torch.is_grad_enabled():
        order, results = zip(*parts, strict=True)
        return torch.cat(results).index_select(0, sent(torch.argsort(torch.cat(order)), device))
    result = None
    for rows, pooled in parts:
        result = pooled.new_empty(count, pooled.shape[1]) if result is None else result
        result.index_copy_(0, sent(rows, device), pooled)
    assert result is not None
    return result


def _flat(features: Tensor, hides: bool) -> Tensor:
    """Return the cells of the map (N * H * W, C), with ``hides`` one more that has the lowest numbers."""
    cells = features.permute(0, 2, 3, 1).flatten(0, 2)
    if not hides:
        return cells
    return torch.cat((cells, cells.new_full((1, cells.shape[1]), _lowest(cells.dtype))))


def _lowest(dtype: torch.dtype) -> float:
    """Return what an empty bin's maximum is at most: the operators start from the lowest float32 number."""
    return max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)


def _groups(windows: Tensor, whole: Tensor, channels: int, samples: int) -> Iterator[Tensor]:
    """Yield rows (r,) whose ``windows`` have about the same size, all but those that are ``whole``."""
    rows = (~whole).nonzero()[:, 0]
    sides = windows[rows, 2:] - windows[rows, :2] + samples  # a bin has at most one sample more than cells
    kinds = torch.bucketize(sides, torch.tensor(_STEPS)) @ torch.tensor([len(_STEPS) + 1, 1])
    for kind in kinds.unique().tolist():
        mine = kinds == kind
        largest = int(sides[mine].amax(0).prod()) * channels
        yield from rows[mine].split(max(_NUMBERS // max(largest, 1), 1))


def _cut(
    numbers: Tensor,
    rois: Tensor,
    masks: CellMasks,
    windows: Tensor,
    rows: Tensor,
    extents: tuple[int, int],
    margin: int,
    hides: bool,
) -> _Crops:
    """Cut the windows of ``rows`` out of the map, whose cells (N * H * W, C) are ``numbers``.

    With ``hides`` the last row of ``numbers`` takes the place of every cell that is not covered.
    """
    device, (height, width) = rois.device, extents
    most = torch.tensor([width, height])
    corner = (windows[rows, :2] - margin).clamp(min=0)
    sides = (windows[rows, 2:] + margin).minimum(most) - corner
    across, down = sides.amax(0).tolist()
    per_row = torch.cat(
        (corner, windows[rows], masks.windows[rows][:, [0, 1, 2]], masks.offsets[:-1][rows, None]), dim=1
    )
    here = sent(per_row, device)[:, :, None, None].unbind(1)
    left, above, x1, y1, x2, y2, full_left, full_top, full_right, offset = here  # each (r, 1, 1)
    y = above + torch.arange(down, device=device)[:, None]
    x = left + torch.arange(across, device=device)
    within = (y >= y1) & (y < y2) & (x >= x1) & (x < x2)
    entry = torch.where(within, offset + (y - full_top) * (full_right - full_left) + x - full_left, 0)
    coverage, covered = masks.coverage[entry] * within, masks.covered[entry] & within
    chosen = sent(rows, device)
    rows_here = rois.index_select(0, chosen)
    cell = (rows_here[:, 0].long()[:, None, None] * height + y.clamp(max=height - 1)) * width
    cell = cell + x.clamp(max=width - 1)
    if hides:
        cell = torch.where(covered, cell, len(numbers) - 1)
    maps = numbers.index_select(0, cell.flatten()).view(len(rows), down, across, -1).permute(0, 3, 1, 2)
    return _Crops(maps, coverage, covered, rows_here, (y[:, :, 0], x[:, 0, :]), extents)


def _caffe_bins(first: Tensor, last: Tensor, side: int, extent: int) -> tuple[Tensor, Tensor]:
    """Return the bins of rule "caffe" (``csrc/pooling/bins.h``) for the first and the last cells (R,)."""
    size = torch.where(last < first, 1, last - first + 1)[:, None] / side
    number = torch.arange(side, device=first.device, dtype=first.dtype)
    begin, end = (number * size).floor(), ((number + 1) * size).ceil()
    return (first[:, None] + begin).clamp(0, extent), (first[:, None] + end).clamp(0, extent)


def _exact_bins(first: Tensor, end: Tensor, side: int, extent: int) -> tuple[Tensor, Tensor]:
    """Return the bins of rule "exact" for windows [first, end) of whole cells (R,)."""
    size, start = (end - first).long()[:, None], first.long()[:, None]
    number = torch.arange(side, device=first.device)
    begin, stop = (
        (number * size).div(side, rounding_mode="floor"),
        -(-(number + 1) * size).div(side, rounding_mode="floor"),
    )
    return (start + begin).clamp(0, extent), (start + stop).clamp(0, extent)


def _bin_averages(features: Tensor, rois: Tensor, side: int, bins: Bins) -> Tensor:
    """Return (R, C * n * n): the average of all cells of each bin."""
    height, width = features.shape[2:]
    numbers = rois.to(torch.float64 if features.dtype == torch.float64 else torch.float32)
    left, right = bins(numbers, 0, side, width)
    top, bottom = bins(numbers, 1, side, height)
    image = numbers[:, :1, None].expand(-1, side, side)
    edges = [
        part.to(numbers.dtype).expand(-1, side, side)
        for part in (left[:, None], top[:, :, None], right[:, None], bottom[:, :, None])
    ]
    cells = torch.stack((image, *edges), dim=3).flatten(0, 2)
    pooled = spp_pool(features, cells, (1,), reduction="avg", window="cells")
    return pooled.view(len(rois), side * side, features.shape[1]).transpose(1, 2).flatten(1)


def _averages(crops: _Crops, sides: Sequence[int], bins: Bins) -> Tensor:
    """Return the averages of all grids, weighted by coverage."""
    parts = []
    for side in sides:
        weights = []
        for axis in range(2):
            begin, end = bins(crops.rois, 1 - axis, side, crops.extents[axis])
            cells = crops.cells[axis][:, None]
            weights.append(((cells >= begin[:, :, None]) & (cells < end[:, :, None])).to(crops.maps.dtype))
        parts.append(_weighted(crops, *weights))
    return torch.cat(parts, dim=1)


def _weighted(crops: _Crops, rows: Tensor, columns: Tensor) -> Tensor:
    """Return (r, C * n * n) for the weights of the rows (r, n, h) and the columns (r, n, w) in each bin."""
    weights = rows[:, :, None, :, None] * columns[:, None, :, None, :]
    weights = (weights * crops.coverage[:, None, None].to(weights.dtype)).flatten(3).flatten(1, 2)
    total = weights.sum(2, keepdim=True)
    weights = weights / torch.where(total > 0, total, 1)
    return torch.bmm(crops.maps.flatten(2), weights.transpose(1, 2)).flatten(1)


def _with_boxes(features: Tensor, rois: Tensor, masks: CellMasks, spatial_scale: float) -> CellMasks:
    """Return ``masks`` in which regions pooled as boxes have windows, with every cell covered.

    The windows are whole maps on a GPU, whose RoIs the host does not know, and else the cells of the RoIs.
    """
    whole = (masks.windows[:, 2:] <= masks.windows[:, :2]).any(1)
    if not whole.any():
        return masks
    rows = whole.nonzero()[:, 0]
    height, width = features.shape[2:]
    most = torch.tensor([width, height])
    windows = torch.cat((torch.zeros(2, dtype=torch.int64), most)).expand(len(rows), 4).clone()
    if rois.device.type == "cpu":
        corners = (rois[rows, 1:] * spatial_scale - 0.5).clamp(-2, max(height, width) + 2)
        windows[:, :2] = corners[:, :2].floor().long().clamp(min=0).minimum(most - 1)
        windows[:, 2:] = (corners[:, 2:].ceil().long() + 1).clamp(min=1).minimum(most)
        windows[:, 2:] = windows[:, 2:].maximum(windows[:, :2] + 1)
    counts = (windows[:, 2:] - windows[:, :2]).prod(1)
    ones = torch.ones(int(counts.sum()), device=masks.coverage.device)
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    boxes = CellMasks(windows, offsets, ones, ones.bool(), torch.zeros(len(rows), dtype=torch.bool))
    others = (~whole).nonzero()[:, 0]
    back = torch.argsort(torch.cat((rows, others)))
    return CellMasks.join([boxes, masks.select(others)]).select(back)


def _sample_maxima(crops: _Crops, bins: int, spatial_scale: float, sampling_ratio: int) -> Tensor:
    """Return (r, C * n * n): the maxima of the samples of each bin that lie in covered cells."""
    axes = [_samples(crops, axis, bins, spatial_scale, sampling_ratio) for axis in range(2)]
    (rows, y, on_rows), (columns, x, on_columns) = axes
    values = torch.matmul(crops.maps, columns[:, None].transpose(2, 3))  # (r, C, h, samples across)
    values = torch.matmul(rows[:, None], values)  # (r, C, samples down, samples across)
    number = torch.arange(len(crops.rois), device=crops.rois.device)[:, None, None]
    counts = crops.covered[number, y[:, :, None], x[:, None, :]]
    counts = counts & on_rows[:, :, None] & on_columns[:, None, :]
    values = torch.where(counts[:, None], values, -math.inf)
    values = values.unflatten(3, (bins, -1)).unflatten(2, (bins, -1)).amax((3, 5))
    return torch.where(values == -math.inf, 0, values).flatten(1)


def _samples(
    crops: _Crops, axis: int, bins: int, spatial_scale: float, sampling_ratio: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the samples along one axis, those of each bin one after another, some of them unused.

    These are (r, samples, h), the weights with which each reads the cells of the crop; (r, samples), the cell
    of the crop that it lies in; and (r, samples) bool, whether it is used.
    """
    extent, cells = crops.extents[axis], crops.cells[axis]
    start, size, count = sample_grid(*crops.edges(axis), bins, spatial_scale, sampling_ratio)
    most = sampling_ratio
    if not sampling_ratio:
        most = max(-(-cells.shape[1] // bins) + 1, 1)
        if count.device.type == "cpu":
            most = max(int(count.max()), 1)
        elif not torch.compiler.is_compiling():
            torch._assert_async((count <= most).all())
    number = torch.arange(most, device=start.device, dtype=start.dtype)
    step = (size / count.clamp(min=1))[:, None, None]
    origin = start[:, None] + torch.arange(bins, device=start.device) * size[:, None]
    place = (origin[:, :, None] + (number + 0.5) * step).flatten(1)
    used = (number < count[:, None, None]).expand(-1, bins, -1).flatten(1)
    used = used & (place >= -1) & (place <= extent)
    place = place.clamp(0, extent - 1)
    weights = (1 - (place[:, :, None] - cells[:, None].to(place.dtype)).abs()).clamp(min=0)
    cell = (place + 0.5).floor().long() - cells[:, :1]
    used = used & (cell >= 0) & (cell < cells.shape[1])
    return weights, cell.clamp(0, cells.shape[1] - 1), used
