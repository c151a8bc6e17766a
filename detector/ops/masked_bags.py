"""Masked pooling on a CPU, as sums over lists of cells (``torch.nn.functional.embedding_bag``).

The host knows the RoIs there, so each bin reads only the cells that it needs. Windows cut out of the map, as
``ops.masked_pooling`` pools them on a GPU, would copy each window and pad it, which takes longer than the
sums themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from detector.core.cell_masks import CellMasks, ragged
from detector.ops.roi_align import sample_grid

Bins = Callable[[Tensor, int, int, int], tuple[Tensor, Tensor]]
"""Returns the first cells (R, n) and those after the last of the n bins of RoI rows, clipped to the map.

The arguments are the RoI rows, the axis (0 for x, 1 for y), n, and the extent of the map.
"""
_NUMBERS = 2**21
"""Numbers that a part of the RoIs may give, channels counted: they stay in the processor's cache."""


class Cells(NamedTuple):
    """The cells (N * H * W, C) of a map whose ``extents`` are (H, W), for RoI rows (R, 5) and their masks."""

    numbers: Tensor
    extents: tuple[int, int]
    rois: Tensor
    masks: CellMasks

    def origins(self, rows: Tensor) -> Tensor:
        """Return (r,): what to add to ``y * W + x`` of a cell for its row in ``numbers``."""
        height, width = self.extents
        return self.rois[rows, 0].long() * (height * width)

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return (r,) each: what to add to ``y * w + x`` for a cell's place in ``masks``, and the w."""
        x, y, right, _ = self.masks.windows[rows].unbind(1)
        return self.masks.offsets[:-1][rows] - y * (right - x) - x, right - x


def bin_averages(
    cells: Cells, rows: Tensor, sides: Sequence[int], bins: Bins
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parts of ``rows`` and (r, C * sum(n * n)), the averages of all grids, weighted by coverage."""
    largest = max(side * side for side in sides) * cells.numbers.shape[1]
    for part in rows.split(max(_NUMBERS // largest, 1)):
        yield part, torch.cat([_grid_averages(cells, part, side, bins) for side in sides], dim=1)


def _grid_averages(cells: Cells, rows: Tensor, side: int, bins: Bins) -> Tensor:
    width, windows = cells.extents[1], cells.masks.windows[rows]
    (x1, x2), (y1, y2) = (
        [edge.long() for edge in bins(cells.rois[rows], axis, side, cells.extents[1 - axis])]
        for axis in range(2)
    )
    x1, y1 = x1.maximum(windows[:, 0, None]), y1.maximum(windows[:, 1, None])
    wide = (x2.minimum(windows[:, 2, None]) - x1).clamp(min=0)[:, None].expand(-1, side, -1)
    high = (y2.minimum(windows[:, 3, None]) - y1).clamp(min=0)[:, :, None]
    counts = (wide * high).flatten()

    of_bin = torch.repeat_interleave(torch.arange(len(counts)), counts)
    here = ragged(counts)
    down = here // wide.flatten()[of_bin]
    across = here - down * wide.flatten()[of_bin]
    first, stride = cells.entries(rows)
    entry = first[:, None, None] + y1[:, :, None] * stride[:, None, None] + x1[:, None]
    entry = entry.flatten()[of_bin] + across + down * stride.repeat_interleave(side * side)[of_bin]
    cell = (cells.origins(rows)[:, None, None] + y1[:, :, None] * width + x1[:, None]).flatten()
    cell = cell[of_bin] + across + down * width

    weights = cells.masks.coverage[entry].to(cells.numbers.dtype)
    total = weights.new_zeros(len(counts)).index_add_(0, of_bin, weights)
    weights = weights / torch.where(total > 0, total, 1)[of_bin]
    offsets = counts.cumsum(0) - counts
    found = functional.embedding_bag(cell, cells.numbers, offsets, mode="sum", per_sample_weights=weights)
    return found.view(len(rows), side * side, -1).transpose(1, 2).flatten(1)


def sample_maxima(
    cells: Cells, rows: Tensor, bins: int, spatial_scale: float, sampling_ratio: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parts of ``rows`` and (r, C * n * n): the maxima of each bin's samples that lie in covered cells.

    RoIs whose bins have the same numbers of samples are pooled together.
    """
    grids = [
        sample_grid(cells.rois[rows, first], cells.rois[rows, first + 2], bins, spatial_scale, sampling_ratio)
        for first in (2, 1)
    ]
    counts = torch.stack([count.long() for _, _, count in grids], dim=1)
    kinds, kind = torch.unique(counts, dim=0, return_inverse=True)
    for number, (high, wide) in enumerate(kinds.tolist()):
        mine = (kind == number).nonzero()[:, 0]
        largest = max(high * wide, 1) * bins * bins * cells.numbers.shape[1]
        for part in mine.split(max(_NUMBERS // largest, 1)):
            if not high * wide:
                yield rows[part], cells.numbers.new_zeros(len(part), cells.numbers.shape[1] * bins * bins)
                continue
            samples = [
                _samples(start[part], size[part], count, bins, extent)
                for (start, size, _), count, extent in zip(grids, (high, wide), cells.extents, strict=True)
            ]
            values = (
                _sampled(cells, rows[part], *samples).unflatten(2, (bins, wide)).unflatten(1, (bins, high))
            )
            values = values.amax(4).amax(2)
            values = torch.where(values == -torch.inf, 0, values)
            yield rows[part], values.permute(0, 3, 1, 2).flatten(1)


class _Samples(NamedTuple):
    """Samples along one axis: (r, s, 2) the two cells that each reads and their weights, then (r, s) the cell
    in which it lies, and whether it is on the map."""

    reads: Tensor
    weights: Tensor
    cell: Tensor
    used: Tensor


def _samples(start: Tensor, size: Tensor, count: int, bins: int, extent: int) -> _Samples:
    number = torch.arange(count, dtype=start.dtype)
    origin = start[:, None] + torch.arange(bins) * size[:, None]
    place = (origin[:, :, None] + (number + 0.5) * (size / count)[:, None, None]).flatten(1)
    used = (place >= -1) & (place <= extent)
    place = place.clamp(0, extent - 1)
    low = place.floor()
    weights = torch.stack((1 - (place - low), place - low), dim=2)
    reads = torch.stack((low, (low + 1).clamp(max=extent - 1)), dim=2).long()
    return _Samples(reads, weights, (place + 0.5).floor().long(), used)


def _sampled(cells: Cells, rows: Tensor, down: _Samples, across: _Samples) -> Tensor:
    """Return the values (r, samples down, samples across, C), -inf where a sample's cell is not covered."""
    y, x = down.cell[:, :, None], across.cell[:, None]
    x1, y1, x2, y2 = (edge[:, None, None] for edge in cells.masks.windows[rows].unbind(1))
    inside = (y >= y1) & (y < y2) & (x >= x1) & (x < x2) & down.used[:, :, None] & across.used[:, None]
    first, stride = (part[:, None, None] for part in cells.entries(rows))
    used = inside & cells.masks.covered[torch.where(inside, first + y * stride + x, 0)]
    origin = cells.origins(rows)[:, None, None, None, None]
    reads = origin + down.reads[:, :, None, :, None] * cells.extents[1] + across.reads[:, None, :, None]
    weights = down.weights[:, :, None, :, None] * across.weights[:, None, :, None]
    found = functional.embedding_bag(
        reads.view(-1, 4), cells.numbers, mode="sum", per_sample_weights=weights.view(-1, 4)
    )
    return found.masked_fill(~used.view(-1, 1), -torch.inf).view(*used.shape, -1)
