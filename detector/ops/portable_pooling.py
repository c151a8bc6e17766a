"""RoI pooling and spatial pyramid pooling from standard tensor operators, for exported networks.

`PortablePool` gives what ``roi_pool`` and ``spp_pool`` give for the maps of one image, without a compiled
library, so that a network with it runs wherever ONNX or a program of ``torch.export`` runs.

Maxima. The table (a, b) of a map holds in each cell the maximum of the window of 2^a x 2^b cells that begins
there; each table is the maximum of another one and of that one moved by half a window. A bin of h x w cells
is then the maximum of four cells of one table, with a = floor(log2 h) and b = floor(log2 w): those of windows
that overlap and together cover the bin (the "sparse table" of range-minimum queries; Bender and
Farach-Colton, "The LCA problem revisited", 2000). A maximum is exact whatever the order.

Averages. Windows must not overlap, so h and w are written as sums of powers of two, and the windows of these
sizes are added. Sums of positive numbers keep their digits, which differences of float32 integral images
would not.

Edges of bins are those of ``csrc/pooling/bins.h``. They depend on whole numbers only, the size of a window
and the number of bins, so an exported graph looks them up in a table that is computed here: some runtimes
multiply by a rounded reciprocal where a graph divides, and Caffe's rule depends on the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

RULES = ("caffe", "exact", "spp", "cells")
"""The names of ``Rule`` in ``csrc/pooling/bins.h`` that networks use."""
LOWEST = torch.finfo(torch.float32).min
"""The maximum of a bin that holds nothing but NaN or minus infinity."""
_FARTHEST = 2.0**31  # `to_cell` of bins.h: beyond every map, so that sums cannot overflow


def to_cell(values: Tensor) -> Tensor:
    """Return whole numbers as int64, clamped to +-2^31; NaN becomes the lower limit."""
    above = torch.where(values >= -_FARTHEST, values, torch.full_like(values, -_FARTHEST))
    return above.clamp(max=_FARTHEST).to(torch.int64)


def round_away(values: Tensor) -> Tensor:
    """Return ``values`` rounded to whole numbers, halves away from zero."""
    whole = values.trunc()
    return whole + (values - whole).abs().ge(0.5) * values.sign()


def bin_offsets(rule: str, sizes: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Return where each of ``bins`` begins and ends (..., bins), in cells from the start of its window.

    ``sizes`` (...) int64 are the sizes of the windows in cells.
    """
    numbers, sizes = torch.arange(bins, device=sizes.device), sizes[..., None]
    if rule == "caffe":
        size = sizes.float() / bins
        return (numbers * size).floor().long(), ((numbers + 1) * size).ceil().long()
    begin, end = numbers * sizes, (numbers + 1) * sizes
    return begin // bins, (end + bins - 1) // bins


class Place(NamedTuple):
    """Where the cells of a level lie, in pixels of the network's input; see `PortablePool`."""

    stride: float
    center: float
    shrink: float


class Span(NamedTuple):
    """Where bins begin and end along an axis, int64."""

    begin: Tensor
    end: Tensor


def largest_bin(rule: str, sizes: int, bins: int) -> int:
    """Return the cells of the largest of ``bins`` in windows of up to ``sizes`` cells."""
    begin, end = bin_offsets(rule, torch.arange(sizes + 1), bins)
    return max(int((end - begin).max()), 1)


class PortablePool(nn.Module):
    """Pools each RoI on one or several grids of n x n bins, each from the map of its level.

    ``rule`` is one of `RULES`; ``average`` takes the mean of a bin's cells instead of their maximum.
    ``places`` has stride, center and shrink of each level, in pixels of the network's input. With the rule
    "spp" they are those of ``spp_pool``; with "caffe" and "exact" the center is subtracted from the corners
    of a RoI before they are divided by the stride. "cells" uses none of them.

    ``cells`` is the largest side that a map may have. RoIs that begin and end on the map or one cell beyond
    it are pooled exactly; what other RoIs give is arbitrary, and so is what larger maps give. With
    ``anywhere`` all RoIs are pooled exactly: the edges of bins are computed instead of looked up, and there
    are more tables. An exported network does not need that; it lets any RoI be compared with the native
    operators.
    """

    powers: Tensor
    parts: Tensor

    def __init__(
        self,
        rule: str,
        grids: Sequence[int],
        places: Sequence[tuple[float, float, float]],
        cells: int,
        *,
        average: bool = False,
        anywhere: bool = False,
    ) -> None:
        super().__init__()
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, not {rule!r}")
        self.rule, self.grids, self.average, self.anywhere = rule, tuple(grids), average, anywhere
        self.places = [Place(*place) for place in places]
        self.longest = cells + 3  # rounding may move both ends of a window by a cell; the last one counts
        largest = max(largest_bin(rule, self.longest, bins) for bins in self.grids)
        self.depth = (cells if anywhere else min(largest, cells)).bit_length()
        """The number of powers of two that a window of a table may have as a side, from 1 on."""
        for number, bins in enumerate(self.grids):
            begin, end = bin_offsets(rule, torch.arange(self.longest + 1), bins)
            self.register_buffer(f"begin{number}", begin, persistent=False)
            self.register_buffer(f"end{number}", end, persistent=False)
        lengths = range(self.longest + 1)
        logarithms = [min(max(length, 1).bit_length(), self.depth) - 1 for length in lengths]
        powers = [[logarithm, 2**logarithm] for logarithm in logarithms]
        self.register_buffer("powers", torch.tensor(powers), persistent=False)
        parts = [[_part(length, power) for power in range(self.depth)] for length in lengths]
        self.register_buffer("parts", torch.tensor(parts), persistent=False)

    def forward(self, levels: Sequence[Tensor], rois: Tensor, roi_levels: Tensor | None = None) -> Tensor:
        """Return (R, C * sum(n * n)), grid after grid, each flattened (channel, row, column).

        ``levels`` are maps (1, C, h, w) float32, ``rois`` (R, 4) float32 corners in pixels of the network's
        input, in cells with the rule "cells". ``roi_levels`` (R,) int64 is the level of each; None means the
        first.
        """
        tables = torch.cat((levels[0].new_zeros(1, levels[0].shape[1]), *map(self._tables, levels)))
        start, height, width = self._layout(levels, roi_levels)
        scale, center, shrink = self._places(rois, roi_levels)
        rows = self._window(rois[:, 1:2], rois[:, 3:4], height, scale, center, shrink)
        columns = self._window(rois[:, 0:1], rois[:, 2:3], width, scale, center, shrink)
        pooled = []
        for number, bins in enumerate(self.grids):
            down = Span(*(edge[:, :, None] for edge in self._edges(number, *rows, height)))
            across = Span(*(edge[:, None] for edge in self._edges(number, *columns, width)))
            places = self._places_of_sums if self.average else self._places_of_maxima
            found = self._reduced(tables, places(down, across, start, height, width), bins)
            if self.average:
                cells = (down.end - down.begin) * (across.end - across.begin)
                found = found / cells.clamp(min=1).flatten(1)[:, None]
            pooled.append(found.flatten(1))
        return torch.cat(pooled, dim=1)

    def _reduced(self, tables: Tensor, places: Sequence[Tensor], bins: int) -> Tensor:
        """Return the maxima or sums (R, C, n * n) over several rows of the tables for each bin.

        ``places`` are (R, n, n). One row of bins at a time, which bounds the memory besides the result.
        """
        rows_of_bins = []
        for row in range(bins):
            total = functional.embedding(places[0][:, row], tables)
            for place in places[1:]:
                cells = functional.embedding(place[:, row], tables)
                total = total + cells if self.average else torch.maximum(total, cells)
            rows_of_bins.append(total.transpose(1, 2))
        return torch.cat(rows_of_bins, dim=2)

    def _tables(self, level: Tensor) -> Tensor:
        """Return the tables of a map (1, C, h, w), one after another, (depth * depth * h * w, C)."""
        cells = level[0].permute(1, 2, 0)
        if not self.average:
            cells = torch.where(cells > LOWEST, cells, torch.full_like(cells, LOWEST))  # NaN is no maximum
        rows = [cells]
        for power in range(self.depth - 1):
            rows.append(self._joined(rows[-1], 2**power, 0))
        tables = []
        for table in rows:
            tables.append(table)
            for power in range(self.depth - 1):
                tables.append(self._joined(tables[-1], 2**power, 1))
        return torch.stack(tables).flatten(0, 2)

    def _joined(self, table: Tensor, by: int, dim: int) -> Tensor:
        """Return the table (h, w, C) of windows twice as large along ``dim``, now ``by`` cells."""
        padding = (0, 0, 0, 0, 0, by) if dim == 0 else (0, 0, 0, by)
        padded = functional.pad(table, padding, value=0.0 if self.average else LOWEST)
        moved = padded[by:] if dim == 0 else padded[:, by:]
        return table + moved if self.average else torch.maximum(table, moved)

    def _layout(self, levels: Sequence[Tensor], roi_levels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the first row in the tables, the height and the width of each RoI's level, (R, 1) or (1, 1).

        Row 0 of the tables holds zeros, for bins without cells.
        """
        starts, sides = [torch.ones(1, dtype=torch.int64)], []
        for level in levels:
            sides.append([torch.full((1,), side, dtype=torch.int64) for side in level.shape[2:]])
            starts.append(starts[-1] + self.depth**2 * sides[-1][0] * sides[-1][1])
        heights, widths = zip(*sides, strict=True)
        columns = [torch.cat(list(part)) for part in (starts[:-1], heights, widths)]
        start, height, width = (_of_level(column, roi_levels) for column in columns)
        return start, height, width

    def _places(
        self, rois: Tensor, roi_levels: Tensor | None
    ) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
        """Return scale, center and shrink of each RoI's level, numbers or (R, 1), in the rule's arithmetic.

        With the rule "spp" the first is the stride.
        """
        number_type = torch.float64 if self.rule == "spp" else rois.dtype
        columns = []
        for name in ("stride", "center", "shrink"):
            values = [getattr(place, name) for place in self.places]
            if name == "stride" and self.rule != "spp":
                values = [1.0 / value for value in values]
            same = roi_levels is None or len(set(values)) == 1
            columns.append(
                values[0] if same else _of_level(torch.tensor(values, dtype=number_type), roi_levels)
            )
        return columns[0], columns[1], columns[2]

    def _window(
        self,
        first: Tensor,
        last: Tensor,
        extent: Tensor,
        scale: Tensor | float,
        center: Tensor | float,
        shrink: Tensor | float,
    ) -> tuple[Tensor, Tensor]:
        """Return the first cell and the size of each RoI's window along an axis, (R, 1) int64."""
        if self.rule == "spp":
            left = to_cell(((first.double() - center + shrink) / scale + 0.5).floor())
            right = to_cell(((last.double() - 1.0 - center - shrink) / scale - 0.5).ceil())
            middle = torch.div(left + right, 2, rounding_mode="floor")
            turned = left > right
            left, right = (
                torch.where(turned, middle, side).clamp(min=0).minimum(extent - 1) for side in (left, right)
            )
            return left, right - left + 1
        if self.rule == "cells":
            start, end = to_cell(round_away(first)), to_cell(round_away(last))
        else:
            if isinstance(center, Tensor) or center:
                first, last = first - center, last - center
            start, end = to_cell(round_away(first * scale)), to_cell(round_away(last * scale))
        if self.rule in ("caffe", "exact"):
            return start, torch.where(end < start, 1, end - start + 1)
        return start, (end - start).clamp(min=0)

    def _edges(self, number: int, start: Tensor, size: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the bins of a grid begin and end on the map, (R, n) int64."""
        if self.anywhere:
            begin, end = bin_offsets(self.rule, size[:, 0], self.grids[number])
        else:
            known = size[:, 0].clamp(0, self.longest)
            begin = functional.embedding(known, self.get_buffer(f"begin{number}"))
            end = functional.embedding(known, self.get_buffer(f"end{number}"))
        return (start + begin).clamp(min=0).minimum(extent), (start + end).clamp(min=0).minimum(extent)

    def _places_of_maxima(
        self, rows: Span, columns: Span, start: Tensor, height: Tensor, width: Tensor
    ) -> list[Tensor]:
        """Return four rows of the tables (R, n, n) for each bin, whose maximum is the bin's."""
        (down, tall), (across, wide) = (self._largest_powers(span) for span in (rows, columns))
        start, height, width = start[..., None], height[..., None], width[..., None]
        table = start + (down * self.depth + across) * height * width
        empty = (rows.end <= rows.begin) | (columns.end <= columns.begin)
        return [
            torch.where(empty, 0, table + y * width + x)
            for y in (rows.begin, rows.end - tall)
            for x in (columns.begin, columns.end - wide)
        ]

    def _places_of_sums(
        self, rows: Span, columns: Span, start: Tensor, height: Tensor, width: Tensor
    ) -> list[Tensor]:
        """Return rows of the tables (R, n, n) for each bin, whose sum is the bin's; row 0 adds nothing."""
        lengths = [(span.end - span.begin).clamp(0, self.longest) for span in (rows, columns)]
        down, across = (functional.embedding(length, self.parts).unbind(-1) for length in lengths)
        start, height, width = start[..., None], height[..., None], width[..., None]
        places = []
        for a, y in enumerate(down):
            for b, x in enumerate(across):
                table = start + (a * self.depth + b) * height * width
                at = table + (rows.begin + y) * width + columns.begin + x
                places.append(torch.where((y < 0) | (x < 0), 0, at))
        return places

    def _largest_powers(self, span: Span) -> tuple[Tensor, Tensor]:
        """Return the exponent of the largest power of two within each length, and the power."""
        lengths = (span.end - span.begin).clamp(0, self.longest)
        exponents, powers = functional.embedding(lengths, self.powers).unbind(-1)
        return exponents, powers


def _part(length: int, power: int) -> int:
    """Return where the window of 2^``power`` cells begins in ``length`` cells, the largest first, or -1."""
    return length >> (power + 1) << (power + 1) if length >> power & 1 else -1


def _of_level(column: Tensor, roi_levels: Tensor | None) -> Tensor:
    """Return the number of each RoI's level, (R, 1), or (1, 1) for the first level."""
    return column[:1, None] if roi_levels is None else functional.embedding(roi_levels, column[:, None])
