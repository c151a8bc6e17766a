"""Masks at a feature map: which cells each region's mask covers, and how much of each.

A cell of the map stands for the square of one stride around its centre, in pixels of the network's input. A
mask is laid on these squares as the view shows it: cut to the view's window, flipped and scaled. The coverage
of a cell is the share of its square that the mask fills, computed exactly; a cell is covered if the pixel at
its centre belongs to the mask. All of it is computed from the runs of the encoding, without decoding a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.core.devices import sent
from detector.core.masks import Masks
from detector.core.structures import ImageMeta, window_size

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CellGrid:
    """Where the cells of a level lie: the centre of cell k is at ``center + k * stride`` on both axes.

    Both are in pixels of the network's input, counted from the edge of the first pixel. ``map_size`` gives
    the (height, width) of the map, in cells, for an input of some (height, width); without it the map ends
    with the last cell that touches the input.
    """

    stride: float
    center: float
    map_size: Callable[[tuple[int, int]], tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CellMasks:
    """The masks of R RoIs at the map of each RoI's level.

    ``windows`` (R, 4) int64 are the cells (x1, y1, x2, y2), half-open, that each mask touches. The cells of
    RoI r, row by row, are entries ``offsets[r]`` to ``offsets[r + 1]`` of ``coverage`` float32, the share of
    each cell that the mask fills, and of ``covered`` bool, whether it fills the cell's centre. A window
    without cells stands for a region that is pooled as its whole box: it has no mask, or its mask covers no
    cell centre, which ``fell_back`` (R,) bool tells. ``windows``, ``offsets`` and ``fell_back`` are always on
    the CPU, where the sizes of what a GPU computes have to be known.
    """

    windows: Tensor
    offsets: Tensor
    coverage: Tensor
    covered: Tensor
    fell_back: Tensor

    def __post_init__(self) -> None:
        if self.windows.dim() != 2 or self.windows.shape[1] != 4 or self.windows.dtype != torch.int64:
            raise ValueError(f"CellMasks.windows must be (R, 4) int64, not {tuple(self.windows.shape)}")
        if len(self.offsets) != len(self) + 1 or len(self.fell_back) != len(self):
            raise ValueError("CellMasks: offsets must have R + 1 rows and fell_back R")
        if not len(self.coverage) == len(self.covered) == int(self.offsets[-1]):
            raise ValueError("CellMasks: coverage and covered must have a row per cell of the windows")

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def present(self) -> int:
        """How many regions have a mask, those included whose mask covers no cell centre."""
        return int((self.fell_back | (self.offsets.diff() > 0)).sum())

    @property
    def fallbacks(self) -> int:
        """How many regions have a mask that covers no cell centre, and so are pooled as their boxes."""
        return int(self.fell_back.sum())

    @property
    def sizes(self) -> Tensor:
        """The (height, width) of each window, (R, 2), in cells."""
        return (self.windows[:, 2:] - self.windows[:, :2]).flip(1)

    @classmethod
    def absent(cls, count: int) -> CellMasks:
        """Return ``count`` regions without masks."""
        return cls(
            torch.zeros(count, 4, dtype=torch.int64),
            torch.zeros(count + 1, dtype=torch.int64),
            torch.zeros(0),
            torch.zeros(0, dtype=torch.bool),
            torch.zeros(count, dtype=torch.bool),
        )

    @classmethod
    def join(cls, parts: Sequence[CellMasks]) -> CellMasks:
        """Return the masks of all ``parts``, one after another; all on one device."""
        if not parts:
            return cls.absent(0)
        ends = np.cumsum([int(part.offsets[-1]) for part in parts]).tolist()
        offsets = [part.offsets[1:] + start for part, start in zip(parts, [0, *ends], strict=False)]
        return cls(
            torch.cat([part.windows for part in parts]),
            torch.cat((torch.zeros(1, dtype=torch.int64), *offsets)),
            torch.cat([part.coverage for part in parts]),
            torch.cat([part.covered for part in parts]),
            torch.cat([part.fell_back for part in parts]),
        )

    def select(self, rows: Tensor | slice) -> CellMasks:
        """Return the masks of ``rows``: a slice, or indices (n,) or a mask (R,) on the CPU."""
        if isinstance(rows, slice):
            rows = torch.arange(len(self))[rows]
        elif rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        starts, counts = self.offsets[:-1][rows], self.offsets.diff()[rows]
        offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        entries = ragged(counts) + torch.repeat_interleave(starts, counts)
        there = sent(entries, self.coverage.device)
        return CellMasks(
            self.windows[rows],
            offsets,
            self.coverage.index_select(0, there),
            self.covered.index_select(0, there),
            self.fell_back[rows],
        )

    def to(self, device: torch.device | str) -> CellMasks:
        """Return the masks with ``coverage`` and ``covered`` on ``device``; all else stays on the CPU."""
        coverage, covered = (part.to(device, non_blocking=True) for part in self.device_tensors())
        return CellMasks(self.windows, self.offsets, coverage, covered, self.fell_back)

    def device_tensors(self) -> list[Tensor]:
        """Return the tensors that `to` moves."""
        return [self.coverage, self.covered]

    def pin_memory(self) -> CellMasks:
        """Return a copy in page-locked memory, from which a GPU copies without waiting."""
        coverage, covered = (part.pin_memory() for part in self.device_tensors())
        return CellMasks(self.windows, self.offsets, coverage, covered, self.fell_back)


def ragged(counts: Tensor) -> Tensor:
    """Return 0..n-1 for each n of ``counts`` (R,), one after another."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(counts) else 0
    return torch.arange(total) - torch.repeat_interleave(ends - counts, counts)


def cell_masks(masks: Masks, meta: ImageMeta, grid: CellGrid) -> CellMasks:
    """Return ``masks``, of the upright original image, at the map of ``grid`` in the view of ``meta``.

    ``meta`` says which window of the image the view shows, its flips and its size; what a mask has outside
    the window is left out. Regions without a mask stay without one.

    Raises:
        ValueError: the masks are of an image of another size.
    """
    if masks.size != meta.original_size:
        raise ValueError(f"masks of an image of {masks.size} for a view of one of {meta.original_size}")
    pieces = _in_view(_pieces(masks), meta)
    shown = window_size(meta.original_size, meta.window)
    extents: Sequence[int | None] = (None, None)
    if grid.map_size is not None:
        extents = grid.map_size(meta.input_size)
    rows, columns = (_axis(shown[axis], meta.input_size[axis], grid, extents[axis]) for axis in range(2))
    return _laid_on(pieces, rows, columns, masks.present)


def cell_masks_by_level(
    masks: Masks, metas: Sequence[ImageMeta], grids: Sequence[CellGrid], roi_levels: Tensor | None
) -> CellMasks:
    """Return ``masks``, each at the map of its own level.

    ``metas`` has a view of the image per scale, ``grids`` a grid per level of the pyramid at one scale. Level
    i is that of scale ``i // len(grids)`` and of grid ``i % len(grids)``; ``roi_levels`` (R,), on the CPU, is
    None if all are of the first.
    """
    if roi_levels is None:
        return cell_masks(masks, metas[0], grids[0])
    order = torch.sort(roi_levels, stable=True).indices
    parts = [
        cell_masks(masks.select(roi_levels == level), metas[level // len(grids)], grids[level % len(grids)])
        for level in roi_levels.unique().tolist()
    ]
    return CellMasks.join(parts).select(torch.argsort(order))


class _Pieces(NamedTuple):
    """Vertical pieces of masks: the mask's row, a column of pixels, and the rows [top, bottom) in it.

    They are sorted by the mask's row.
    """

    row: Integers
    column: Integers
    top: Integers
    bottom: Integers

    def where(self, keep: NDArray[Any]) -> _Pieces:
        return _Pieces(*(part[keep] for part in self))


class _Axis(NamedTuple):
    """One axis of a view: where the edge before pixel v lies in cells, and which cells it is the centre of.

    ``edges`` (n + 1,) are cut to the map, ``extent`` is its cells. The centres in pixels before v are those
    of the cells before ``centers[v]``, (n + 1,).
    """

    edges: Floats
    centers: Integers
    extent: int


def _axis(pixels: int, size: int, grid: CellGrid, extent: int | None) -> _Axis:
    """Describe the axis on which ``pixels`` of the original image fill ``size`` pixels of the input."""
    edges = (np.arange(pixels + 1) * size / pixels - (grid.center - grid.stride / 2)) / grid.stride
    if extent is None:
        extent = max(int(np.ceil(edges[-1])), 0)
    centers = np.floor((grid.center + np.arange(extent) * grid.stride) * pixels / size)
    return _Axis(edges.clip(0, extent), np.searchsorted(centers, np.arange(pixels + 1)), extent)


def _pieces(masks: Masks) -> _Pieces:
    """Cut the runs of all masks, which go down the columns, where a new column begins."""
    height = masks.size[0]
    row, start, end = _runs(masks)
    first, last = start // height, (end - 1) // height
    counts = last - first + 1
    run = np.repeat(np.arange(len(row)), counts)
    column = first[run] + _ragged(counts)
    top = np.where(column == first[run], start[run] - column * height, 0)
    bottom = np.where(column == last[run], end[run] - column * height, height)
    return _Pieces(row[run], column, top, bottom)


def _runs(masks: Masks) -> tuple[Integers, Integers, Integers]:
    """Return for each run of pixels within a mask its row, its first pixel and the one after its last.

    ``core.masks`` describes the encoding of the counts.
    """
    lengths = np.array([len(counts) for counts in masks.counts], dtype=np.int64)
    groups = np.frombuffer(b"".join(masks.counts), np.uint8).astype(np.int64) - 48
    if not len(groups):
        return (np.zeros(0, np.int64),) * 3
    ends = np.flatnonzero(~groups & 32)
    starts = np.concatenate(([0], ends[:-1] + 1))
    bits = 5 * (ends - starts + 1)
    shift = 5 * (np.arange(len(groups)) - np.repeat(starts, bits // 5))
    values = np.add.reduceat((groups & 31) << shift, starts)
    values -= np.where(groups[ends] & 16, np.int64(1) << bits, 0)

    row = np.repeat(np.arange(len(masks)), lengths)[ends]
    begins = np.searchsorted(row, row)  # the first value of the same mask
    place = np.arange(len(row)) - begins
    odd = place % 2 == 1
    counts = np.where(odd, _sums(np.where(odd, values, 0), begins), 0)
    chained = ~odd & (place > 0)  # the first count starts no chain
    counts += np.where(chained, _sums(np.where(chained, values, 0), begins), 0)
    counts += np.where(place == 0, values, 0)
    stops = _sums(counts, begins)
    inside = odd & (counts > 0)
    return row[inside], (stops - counts)[inside], stops[inside]


def _sums(values: Integers, begins: Integers) -> Integers:
    """Return running sums of ``values`` that start again at each of ``begins``."""
    sums = np.cumsum(values)
    before: Integers = sums[begins] - values[begins]
    return sums - before


def _ragged(counts: Integers) -> Integers:
    ends = np.cumsum(counts)
    positions: Integers = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
    return positions


def _in_view(pieces: _Pieces, meta: ImageMeta) -> _Pieces:
    """Return what the view shows of ``pieces``, in pixels of its window, flipped as the view is."""
    height, width = window_size(meta.original_size, meta.window)
    left, above = (0, 0) if meta.window is None else meta.window[:2]
    column, top, bottom = pieces.column - left, pieces.top - above, pieces.bottom - above
    if meta.flipped:
        column = width - 1 - column
    if meta.flipped_vertically:
        top, bottom = height - bottom, height - top
    found = _Pieces(pieces.row, column, top.clip(0, height), bottom.clip(0, height))
    if meta.window is None:
        return found
    return found.where((found.column >= 0) & (found.column < width) & (found.top < found.bottom))


def _laid_on(pieces: _Pieces, rows: _Axis, columns: _Axis, present: NDArray[np.bool_]) -> CellMasks:
    """Return the masks that consist of ``pieces`` at the cells of the two axes."""
    on_map = (columns.edges[pieces.column] < columns.edges[pieces.column + 1]) & (
        rows.edges[pieces.top] < rows.edges[pieces.bottom]
    )
    if not on_map.all():
        pieces = pieces.where(on_map)
    layout = _layout(pieces, rows, columns, len(present))
    coverage, covered = _coverage(pieces, rows, columns, layout), _covered(pieces, rows, columns, layout)
    sizes = layout.sizes[:, 0] * layout.sizes[:, 1]
    hits = np.concatenate(([0], np.cumsum(covered)))
    ends = np.cumsum(sizes)
    falls = hits[ends] == hits[ends - sizes]
    kept = np.repeat(~falls, sizes)
    windows = np.concatenate((layout.first[:, ::-1], layout.first[:, ::-1] + layout.sizes[:, ::-1]), axis=1)
    windows[falls] = 0
    offsets = np.concatenate(([0], np.cumsum(np.where(falls, 0, sizes))))
    return CellMasks(
        torch.from_numpy(windows),
        torch.from_numpy(offsets),
        torch.from_numpy(coverage[kept].astype(np.float32)),
        torch.from_numpy(covered[kept]),
        torch.from_numpy(falls & present),
    )


class _Layout(NamedTuple):
    """Where the cells of each mask stand in one long array while they are summed up.

    Mask r has the cells from ``first[r]`` (row, column) on, ``sizes[r]`` (height, width) of them. Its columns
    begin at ``begin[r]`` and take ``height + 2`` places each, so that what is written after the last cell
    stays within the column. ``order`` takes the cells out of the array, row by row.
    """

    first: Integers
    sizes: Integers
    begin: Integers
    total: int
    order: Integers


def _layout(pieces: _Pieces, rows: _Axis, columns: _Axis, count: int) -> _Layout:
    first, sizes = np.zeros((count, 2), np.int64), np.zeros((count, 2), np.int64)
    found, starts = np.unique(pieces.row, return_index=True)
    if len(found):
        for axis, low, high in (
            (0, rows.edges[pieces.top], rows.edges[pieces.bottom]),
            (1, columns.edges[pieces.column], columns.edges[pieces.column + 1]),
        ):
            begin = np.floor(np.minimum.reduceat(low, starts)).astype(np.int64)
            first[found, axis] = begin
            sizes[found, axis] = np.ceil(np.maximum.reduceat(high, starts)).astype(np.int64) - begin
    places = (sizes[:, 0] + 2) * sizes[:, 1]
    begin = np.cumsum(places) - places
    cells = sizes[:, 0] * sizes[:, 1]
    row = np.repeat(np.arange(count), cells)
    y, x = np.divmod(_ragged(cells), np.maximum(sizes[row, 1], 1))
    return _Layout(first, sizes, begin, int(places.sum()), begin[row] + x * (sizes[row, 0] + 2) + y)


def _coverage(pieces: _Pieces, rows: _Axis, columns: _Axis, layout: _Layout) -> Floats:
    """Return the share of each cell that the masks fill.

    Below a pixel edge at ``i + f`` cells, cell i has the share 1 - f and every later one 1. So a piece adds
    1 - f and f at two places of its column for its upper edge, and takes the same away for its lower edge;
    running sums give the shares.
    """
    height = layout.sizes[pieces.row, 0] + 2
    left, right = columns.edges[pieces.column], columns.edges[pieces.column + 1]
    cell = np.floor(left).astype(np.int64)
    origin = layout.begin[pieces.row] - layout.first[pieces.row, 0]
    changes = np.zeros(layout.total)
    for _ in range(int((np.ceil(right) - cell).max()) if len(cell) else 0):
        share = (np.minimum(right, cell + 1) - np.maximum(left, cell)).clip(0)
        there = np.flatnonzero(share)
        column = (origin + (cell - layout.first[pieces.row, 1]) * height)[there]
        for edge, sign in ((pieces.top, 1.0), (pieces.bottom, -1.0)):
            place = rows.edges[edge[there]]
            whole = np.floor(place)
            part, at = (place - whole) * share[there] * sign, column + whole.astype(np.int64)
            changes += np.bincount(at, share[there] * sign - part, layout.total)
            changes += np.bincount(at + 1, part, layout.total)
        cell += 1
    shares: Floats = np.cumsum(changes)[layout.order].clip(0, 1)
    shares[shares < _NOISE] = 0
    return shares


_NOISE = 1e-9
"""Shares below this are rounding errors of the running sums: a pixel fills more of a cell."""


def _covered(pieces: _Pieces, rows: _Axis, columns: _Axis, layout: _Layout) -> NDArray[np.bool_]:
    """Return which cells have their centre in a pixel of the mask."""
    cell, last = columns.centers[pieces.column], columns.centers[pieces.column + 1]
    chosen = np.flatnonzero(cell < last)
    pieces, cell, last = pieces.where(chosen), cell[chosen].copy(), last[chosen]
    height = layout.sizes[pieces.row, 0] + 2
    origin = layout.begin[pieces.row] - layout.first[pieces.row, 0]
    top, bottom = rows.centers[pieces.top], rows.centers[pieces.bottom]
    changes = np.zeros(layout.total)
    for _ in range(int((last - cell).max()) if len(cell) else 0):
        there = np.flatnonzero((cell < last) & (top < bottom))
        column = (origin + (cell - layout.first[pieces.row, 1]) * height)[there]
        changes += np.bincount(column + top[there], minlength=layout.total)
        changes -= np.bincount(column + bottom[there], minlength=layout.total)
        cell += 1
    covered: NDArray[np.bool_] = np.cumsum(changes)[layout.order] > 0.5
    return covered
