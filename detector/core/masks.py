"""The masks of regions, run-length encoded as COCO's API does, so that thousands of them fit into memory.

A mask says for every pixel of the upright original image whether it belongs to the region. pycocotools
encodes and decodes; the counts run down the columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from detector.core.errors import InputError

MAX_PIXELS = 2**31 - 1
"""Pixels of the largest image with masks: pycocotools counts them with 32 bits."""
_DENSE_BYTES = 64 << 20
_AREAS_AT_ONCE = 255  # pycocotools puts their number into 8 bits, which NumPy 2 refuses for more


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of the P regions of an image of ``size`` (height, width), in original-image pixels.

    ``counts`` has the compressed counts of each mask's run-length encoding, as ``pycocotools.mask`` returns
    them. A region without a mask has ``b""``: it is its whole box.

    Raises:
        ValueError: a size without pixels, or of more than `MAX_PIXELS`.
    """

    size: tuple[int, int]
    counts: tuple[bytes, ...]

    def __post_init__(self) -> None:
        height, width = self.size
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            raise ValueError(f"masks of an image of {width}x{height} pixels")

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def encode(cls, masks: NDArray[Any] | Tensor) -> Masks:
        """Encode ``masks`` (P, H, W) of bool, or of numbers that are 0 outside the region.

        Raises:
            ValueError: another number of dimensions.
        """
        array = np.asarray(masks)
        if array.ndim != 3:
            raise ValueError(f"masks have shape {array.shape}, expected (P, H, W)")
        counts: list[bytes] = []
        rows = max(_DENSE_BYTES // max(array[0].size, 1), 1) if len(array) else 1
        for start in range(0, len(array), rows):
            part = (array[start : start + rows] != 0).astype(np.uint8)
            encoded = coco_mask.encode(np.asfortranarray(part.transpose(1, 2, 0)))
            counts.extend(one["counts"] for one in encoded)
        return cls((array.shape[1], array.shape[2]), tuple(counts))

    @classmethod
    def from_rles(cls, rles: Sequence[Any], size: tuple[int, int], where: str) -> Masks:
        """Take run-length encodings from outside: mappings with ``size`` [height, width] and ``counts``.

        ``counts`` are compressed (text or bytes) or a list of whole numbers, run after run, as COCO's files
        have them; None in the place of a mapping is a region without a mask. ``where`` names the source in
        errors.

        Raises:
            InputError: another type, another size than ``size``, or counts that do not fill the image.
        """
        counts = tuple(_counts_of(rle, size, f"{where}, mask {n}") for n, rle in enumerate(rles))
        rows = [row for row, rle in enumerate(rles) if rle is not None]
        damaged, pixels = _pixels([counts[row] for row in rows])
        for row, bad, total in zip(rows, damaged.tolist(), pixels.tolist(), strict=True):
            if bad:
                raise InputError(f"{where}, mask {row}: its counts are damaged")
            if total != size[0] * size[1]:
                raise InputError(
                    f"{where}, mask {row}: its counts do not fill an image of {size[1]}x{size[0]} pixels"
                )
        return cls(size, counts)

    @classmethod
    def absent(cls, count: int, size: tuple[int, int]) -> Masks:
        """Return ``count`` regions without masks."""
        return cls(size, (b"",) * count)

    @classmethod
    def join(cls, parts: Sequence[Masks]) -> Masks:
        """Return the masks of all ``parts``, one after another; they are of the same image."""
        sizes = {part.size for part in parts}
        if len(sizes) != 1:
            raise ValueError(f"masks of images of {len(sizes)} sizes cannot be joined")
        return cls(sizes.pop(), tuple(counts for part in parts for counts in part.counts))

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which regions (P,) have a mask."""
        return np.array([bool(counts) for counts in self.counts], dtype=np.bool_)

    def select(self, keep: Tensor | NDArray[Any]) -> Masks:
        """Return the masks that ``keep`` selects, a mask (P,) or indices (n,)."""
        rows = np.asarray(keep)
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        return Masks(self.size, tuple(self.counts[row] for row in rows.tolist()))

    def take(self, rows: Tensor) -> Masks:
        """Return the masks of ``rows`` (n,) int64; -1 stands for a region without a mask."""
        return Masks(self.size, tuple(b"" if row < 0 else self.counts[row] for row in rows.tolist()))

    def rles(self) -> list[dict[str, Any] | None]:
        """Return each mask as pycocotools takes it, None for a region without one."""
        size = list(self.size)
        return [{"size": size, "counts": counts} if counts else None for counts in self.counts]

    def dense(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint8]]]:
        """Yield the masks that are there, decoded, some at a time: rows (n,), and (H, W, n) uint8 of 0 and 1.

        Regions without a mask are left out. A part has at most 64 MiB, or one mask.
        """
        rows = np.flatnonzero(self.present)
        step = max(_DENSE_BYTES // (self.size[0] * self.size[1]), 1)
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            yield chosen, coco_mask.decode(self._rles(chosen))

    def within(self, window: tuple[int, int, int, int]) -> Masks:
        """Return the masks without what lies outside ``window`` (x1, y1, x2, y2), whole pixels, half-open.

        The window may leave the image. Regions without a mask stay without one.
        """
        height, width = self.size
        x1, y1 = (min(max(corner, 0), side) for corner, side in zip(window[:2], (width, height), strict=True))
        x2, y2 = (min(max(corner, 0), side) for corner, side in zip(window[2:], (width, height), strict=True))
        inside = np.zeros((height, width), np.uint8, order="F")
        inside[y1:y2, x1:x2] = 1
        frame = coco_mask.encode(inside)
        cut = [rle and coco_mask.merge([rle, frame], intersect=True) for rle in self.rles()]
        return Masks(self.size, tuple(b"" if rle is None else rle["counts"] for rle in cut))

    def boxes(self) -> Tensor:
        """Return the exact boxes (P, 4), half-open, of the masks; zeros for empty masks and missing ones."""
        boxes = np.zeros((len(self), 4), np.float32)
        rows = np.flatnonzero(self.present)
        if len(rows):
            found = coco_mask.toBbox(self._rles(rows))
            boxes[rows] = np.concatenate((found[:, :2], found[:, :2] + found[:, 2:]), axis=1)
        return torch.from_numpy(boxes)

    def areas(self) -> Tensor:
        """Return the number of pixels (P,) int64 of each mask; 0 for regions without one."""
        areas = np.zeros(len(self), np.int64)
        rows = np.flatnonzero(self.present)
        for start in range(0, len(rows), _AREAS_AT_ONCE):
            part = rows[start : start + _AREAS_AT_ONCE]
            areas[part] = coco_mask.area(self._rles(part))
        return torch.from_numpy(areas)

    def _rles(self, rows: NDArray[np.intp]) -> list[dict[str, Any]]:
        size = list(self.size)
        return [{"size": size, "counts": self.counts[row]} for row in rows.tolist()]


def _counts_of(rle: object, size: tuple[int, int], where: str) -> bytes:
    """Return the compressed counts of one encoding, whose content is still to be checked."""
    if rle is None:
        return b""
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        sam = isinstance(rle, Mapping) and "segmentation" in rle
        fix = "; give what it has under 'segmentation'" if sam else ""
        raise InputError(f"{where}: expected a run-length encoding with 'size' and 'counts'{fix}")
    given = rle["size"]
    if not isinstance(given, list | tuple) or [*given] != [*size]:
        raise InputError(f"{where}: its size {given!r:.80} is not the image's, [{size[0]}, {size[1]}]")
    runs = rle["counts"]
    compressed = _compressed(runs, size, where) if isinstance(runs, list | tuple) else runs
    if isinstance(compressed, str):
        try:
            compressed = compressed.encode("ascii")
        except UnicodeEncodeError:
            raise InputError(f"{where}: counts hold characters that no encoder writes") from None
    if not isinstance(compressed, bytes):
        raise InputError(f"{where}: counts must be text, bytes or a list of whole numbers")
    return compressed


def _compressed(runs: Sequence[Any], size: tuple[int, int], where: str) -> bytes:
    whole = all(type(run) is int and 0 <= run <= MAX_PIXELS for run in runs)
    if not whole or sum(runs) != size[0] * size[1]:
        raise InputError(f"{where}: its counts do not fill an image of {size[1]}x{size[0]} pixels")
    counts: bytes = coco_mask.frPyObjects({"size": list(size), "counts": list(runs)}, *size)["counts"]
    return counts


def _pixels(counts: Sequence[bytes]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which of M compressed ``counts`` are damaged (M,), and how many pixels each describes (M,).

    pycocotools reads and writes past the end of its buffers where counts are damaged. Each count is written
    in groups of five bits, the lowest first, in characters from 48 on; bit 32 says that another group
    follows, and bit 16 of the last group is the sign. From the fourth count on it is the difference to the
    count before the last one. The pixels of damaged counts are 0, and all masks are read at once.
    """
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    damaged, pixels = lengths == 0, np.zeros(len(counts), np.int64)
    groups = np.frombuffer(b"".join(counts), np.uint8).astype(np.int64) - 48
    masks = np.repeat(np.arange(len(counts)), lengths)
    damaged[masks[(groups < 0) | (groups > 63)]] = True
    last = np.cumsum(lengths)[lengths > 0] - 1
    damaged[masks[last[groups[last] & 32 != 0]]] = True
    groups, masks = groups[~damaged[masks]], masks[~damaged[masks]]

    ends = np.flatnonzero(~groups & 32)
    starts = np.concatenate(([0], ends[:-1] + 1))[: len(ends)]
    sizes = ends - starts + 1
    damaged[masks[starts[sizes > 7]]] = True  # a count of 32 bits and its sign
    if not len(ends):
        return damaged, pixels
    place = np.minimum(np.arange(len(groups)) - np.repeat(starts, sizes), 7)
    values = np.add.reduceat((groups & 31) << (5 * place), starts)
    values -= np.where(groups[ends] & 16, np.int64(1) << (5 * np.minimum(sizes, 7)), 0)
    runs, owners = _undone(values, masks[starts])
    damaged[owners[runs < 0]] = True
    np.add.at(pixels, owners, runs)
    pixels[damaged] = 0
    return damaged, pixels


def _undone(
    values: NDArray[np.int64], owners: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the runs (n,), in another order, that ``values`` (n,) of the masks ``owners`` (n,) stand for.

    In each mask the first value is a run, and the others are differences in two chains, one after the other.
    The second array (n,) has the owners of the runs.
    """
    first = np.searchsorted(owners, owners)  # the place of the mask's first value
    number = np.arange(len(values)) - first
    chain = np.where(number == 0, 0, 1 + number % 2)
    order = np.lexsort((chain, owners))
    ranked, kinds = values[order], owners[order] * 3 + chain[order]
    totals = np.cumsum(ranked)
    begin = np.searchsorted(kinds, kinds)  # the place where the chain begins
    return totals - totals[begin] + ranked[begin], owners[order]
