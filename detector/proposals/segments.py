"""The segments of a proposal store: immutable pairs of ``.npy`` files, read through memory maps."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from detector.errors import InputError
from detector.proposals.durable import replace_durably

FloatArray = NDArray[np.float32]
_NAME = re.compile(r"segment_(\d{6,})\.(boxes|scores)\.npy")
# A map holds a file descriptor and most systems allow a process 1024 of them.
_OPEN_SEGMENTS = 64
# Pages that were read count as this process's memory until their map is closed, although all share them.
_RESIDENT_BYTES = 64 << 20


def write_segment(
    folder: Path, number: int, boxes: Iterable[FloatArray], scores: Iterable[FloatArray] | None, total: int
) -> None:
    """Write segment ``number`` from blocks of boxes (m, 4) and scores (m,), ``total`` rows in all.

    Blocks are written as they come, so that memory is bounded by the largest one.
    """
    scores_path = segment_path(folder, number, "scores")
    if scores is None:
        scores_path.unlink(missing_ok=True)  # an interrupted writer may have left one under this number
    else:
        _write_blocks(scores_path, scores, (total,))
    _write_blocks(segment_path(folder, number, "boxes"), boxes, (total, 4))


def segment_path(folder: Path, number: int, kind: str) -> Path:
    """Return where the ``boxes`` or ``scores`` of segment ``number`` lie."""
    return folder / f"segment_{number:06d}.{kind}.npy"


def remove_segments(folder: Path, keep: set[int]) -> None:
    """Remove every segment whose number is not in ``keep``, and what interrupted writers left."""
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name.removesuffix(".tmp"))
        if match and (int(match[1]) not in keep or path.suffix == ".tmp"):
            path.unlink(missing_ok=True)


class SegmentMaps:
    """The memory maps of a store's segments, opened when first read, the latest used kept open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: OrderedDict[tuple[int, str], FloatArray] = OrderedDict()
        self._touched = 0

    def read(self, number: int, kind: str, offset: int, count: int) -> FloatArray:
        """Return a copy of ``count`` rows from ``offset``.

        Raises FileNotFoundError for a segment that is gone and InputError for a damaged one.
        """
        mapped = self._maps.get((number, kind))
        if mapped is None:
            mapped = self._open(number, kind)
        self._maps.move_to_end((number, kind))
        if offset + count > len(mapped):
            path = segment_path(self._folder, number, kind)
            raise InputError(
                f"{path} holds {len(mapped)} rows and should hold {offset + count}; make the store anew"
            )
        rows = np.array(mapped[offset : offset + count])
        self._touched += rows.nbytes
        if self._touched > _RESIDENT_BYTES:
            self.close()
        return rows

    def close(self) -> None:
        """Close the maps; they open again when they are needed."""
        self._maps.clear()
        self._touched = 0

    def _open(self, number: int, kind: str) -> FloatArray:
        path = segment_path(self._folder, number, kind)
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise InputError(f"{path} is damaged ({error}); make the proposal store anew") from error
        if mapped.dtype != np.float32 or mapped.shape[1:] != ((4,) if kind == "boxes" else ()):
            raise InputError(
                f"{path} is no segment of a proposal store: {mapped.dtype} of shape {mapped.shape}"
            )
        self._maps[(number, kind)] = mapped.view(np.ndarray)
        while len(self._maps) > 2 * _OPEN_SEGMENTS:
            self._maps.popitem(last=False)
        return self._maps[(number, kind)]


def _write_blocks(path: Path, blocks: Iterable[FloatArray], shape: tuple[int, ...]) -> None:
    with replace_durably(path) as file:
        _write_header(file, shape)
        written = 0
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
            written += len(block)
        if written != shape[0]:
            raise ValueError(f"{path}: {written} rows were written where {shape[0]} were announced")


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
