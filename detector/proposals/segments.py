"""The segments of a proposal store: immutable pairs of ``.npy`` files, read through memory maps."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import atomic_write, require_regular
from detector.proposals.npy import Header, check_length, map_file, read_header

FloatArray = NDArray[np.float32]
_NAME = re.compile(r"segment_(\d{6,})\.(boxes|scores)\.npy")
_UNFINISHED = re.compile(rf"\.?({_NAME.pattern}|index\.npy|manifest\.json)(\.\d+)?\.tmp")
"""What interrupted writers leave, also those of earlier versions."""
_BUFFER = 1 << 18
Signature = tuple[tuple[int, ...] | None, ...]
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
        match = _NAME.fullmatch(path.name)
        if _UNFINISHED.fullmatch(path.name) or (match and int(match[1]) not in keep):
            path.unlink(missing_ok=True)


def greatest_number(folder: Path) -> int:
    """Return the greatest number of a segment in ``folder``, in use or not; 0 where there is none."""
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in matches if match), default=0)


class Part(NamedTuple):
    """An open file of a segment: its ``rows`` of boxes or scores, ``row_bytes`` each, begin at ``start``."""

    file: BinaryIO
    start: int
    rows: int
    row_bytes: int


@contextmanager
def open_part(folder: Path, number: int, kind: str) -> Iterator[Part]:
    """Open the ``boxes`` or ``scores`` of segment ``number`` for reading.

    Raises FileNotFoundError where the file is missing, ValueError for one that is no such part.
    """
    path = segment_path(folder, number, kind)
    if path.exists():
        require_regular(path)
    with path.open("rb", buffering=_BUFFER) as file:
        header = read_header(file)
        _check_kind(header, kind)
        check_length(file.tell() + header.data_bytes, os.fstat(file.fileno()).st_size)
        yield Part(file, file.tell(), header.shape[0], 16 if kind == "boxes" else 4)


class SegmentMaps:
    """The memory maps of a store's segments, opened when first read, the latest used kept open.

    ``check`` is called with a segment's number before its files are first mapped, and again where they have
    been replaced since; it raises InputError for a damaged one. ``checked`` says which it need not be
    called for, such as what `checked` returned in another process.
    """

    def __init__(
        self, folder: Path, check: Callable[[int], None], checked: Mapping[int, Signature] | None = None
    ) -> None:
        self._folder = folder
        self._check = check
        self.checked: dict[int, Signature] = dict(checked or {})
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
                f"{path} holds {len(mapped)} rows and should hold {offset + count}; make the store again"
            )
        rows = np.array(mapped[offset : offset + count])
        self._touched += rows.nbytes
        if self._touched > _RESIDENT_BYTES:
            self.close()
        return rows

    def check(self, number: int) -> None:
        """Check segment ``number`` unless this has been done."""
        signature = self._signature(number)
        if self.checked.get(number) != signature:
            self._check(number)
            self.checked[number] = signature

    def close(self) -> None:
        """Close the maps; they open again when they are needed."""
        self._maps.clear()
        self._touched = 0

    def _open(self, number: int, kind: str) -> FloatArray:
        self.check(number)
        path = segment_path(self._folder, number, kind)
        try:
            mapped = map_file(path)
            _check_kind(mapped.header, kind)
        except (FileNotFoundError, InputError):
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}); make the proposal store again") from error
        self._maps[(number, kind)] = mapped.array()
        while len(self._maps) > 2 * _OPEN_SEGMENTS:
            self._maps.popitem(last=False)
        return self._maps[(number, kind)]

    def _signature(self, number: int) -> Signature:
        """Return what changes when the files of a segment are replaced; FileNotFoundError without boxes."""
        boxes = segment_path(self._folder, number, "boxes").stat()
        try:
            scores = segment_path(self._folder, number, "scores").stat()
        except FileNotFoundError:
            return _of_file(boxes), None
        return _of_file(boxes), _of_file(scores)


def _of_file(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_kind(header: Header, kind: str) -> None:
    sides = (4,) if kind == "boxes" else ()
    if header.dtype != np.float32 or header.fortran_order or header.shape[1:] != sides or not header.shape:
        raise ValueError(f"no {kind} of a segment: {header.dtype} of shape {header.shape}")


def _write_blocks(path: Path, blocks: Iterable[FloatArray], shape: tuple[int, ...]) -> None:
    with atomic_write(path) as file:
        _write_header(file, shape)
        written = 0
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
            written += len(block)
        if written != shape[0]:
            raise ValueError(f"{path}: {written} rows were written where {shape[0]} were announced")


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
