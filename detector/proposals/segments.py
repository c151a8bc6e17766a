"""The segments of a proposal store: immutable ``.npy`` files that hold boxes, scores and masks."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.core.errors import InputError
from detector.core.files import atomic_write, remove_abandoned, require_regular
from detector.core.masks import Masks
from detector.core.structures import Proposals
from detector.proposals.filtering import Limits
from detector.proposals.index import Row
from detector.proposals.npy import read_header

FloatArray = NDArray[np.float32]
Counts = tuple[bytes, ...]
"""The compressed counts of the masks of an image's regions, as in `detector.core.masks.Masks`."""
Offset = TypeVar("Offset", int, NDArray[np.int64])
_NAME = re.compile(r"segment_(\d{6,})\.(boxes|scores|masks|mask_offsets)\.npy")
_OTHERS = re.compile(r"index\.npy|manifest\.json|checked\.bin")
_OLD_TEMPORARY = re.compile(rf"({_NAME.pattern}|index\.npy|manifest\.json)\.tmp")  # of earlier versions
_COLUMNS: dict[str, tuple[int, ...]] = {"boxes": (4,), "scores": (), "masks": (), "mask_offsets": ()}
_TYPES = {"boxes": "<f4", "scores": "<f4", "masks": "|u1", "mask_offsets": "<i8"}
_OPEN_FILES = 128  # most systems allow a process 1024 of them


class DamagedStore(InputError):
    """A file of the store does not hold what was written to it."""


class StoredImage(NamedTuple):
    """What a segment has of one image: boxes (P, 4), scores (P,) or None, the counts of P masks or None."""

    boxes: FloatArray
    scores: FloatArray | None = None
    counts: Counts | None = None


def write_segment(
    folder: Path, number: int, images: Iterable[StoredImage], *, rows: int, scored: bool, masked: bool = False
) -> None:
    """Write segment ``number`` of its ``images``, which have ``rows`` boxes in all.

    Images are written as they come, so that the largest one bounds the memory. ``scored`` says whether any
    image has scores; images without scores get zeros, which the index marks as not theirs. ``masked`` says
    the same of masks; where there are none, their length is zero.
    """
    kinds = ["boxes", *(["scores"] if scored else []), *(["masks", "mask_offsets"] if masked else [])]
    with ExitStack() as stack:
        files = {}
        for kind in kinds:
            files[kind] = stack.enter_context(atomic_write(segment_path(folder, number, kind)))
            _write_header(files[kind], kind, rows + (kind == "mask_offsets"))
        if masked:
            files["mask_offsets"].write(bytes(8))
        end = 0
        for boxes, scores, counts in images:
            files["boxes"].write(np.ascontiguousarray(boxes, "<f4").data)
            if scored:
                values = np.zeros(len(boxes)) if scores is None else scores
                files["scores"].write(np.ascontiguousarray(values, "<f4").data)
            if masked:
                lengths = mask_lengths(counts or (b"",) * len(boxes))
                files["mask_offsets"].write((end + np.cumsum(lengths)).astype("<i8").data)
                end += int(lengths.sum())
                files["masks"].write(b"".join(counts or ()))
        if masked:  # only now their length is known; a header has the same length for each
            files["masks"].seek(0)
            _write_header(files["masks"], "masks", end)
            files["masks"].seek(0, os.SEEK_END)


def _write_header(file: IO[bytes], kind: str, rows: int) -> None:
    header = {"descr": _TYPES[kind], "fortran_order": False, "shape": (rows, *_COLUMNS[kind])}
    np.lib.format.write_array_header_1_0(file, header)


def segment_path(folder: Path, number: int, kind: str) -> Path:
    """Return the path of the ``boxes``, ``scores``, ``masks`` or ``mask_offsets`` of segment ``number``."""
    return folder / f"segment_{number:06d}.{kind}.npy"


def remove_segments(folder: Path, keep: set[int]) -> None:
    """Remove every segment whose number is not in ``keep``, and temporary files of interrupted writers."""
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if (match and int(match[1]) not in keep) or _OLD_TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
    remove_abandoned(folder, lambda name: _NAME.fullmatch(name) or _OTHERS.fullmatch(name))


def greatest_number(folder: Path) -> int:
    """Return the greatest number of a segment in ``folder``, in use or not; 0 where there is none."""
    matches = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in matches if match), default=0)


def checksum_of(boxes: FloatArray, scores: FloatArray | None) -> int:
    """Return the CRC-32 of the bytes of ``boxes`` (P, 4) and then of ``scores`` (P,)."""
    checksum = zlib.crc32(np.ascontiguousarray(boxes).data)
    return checksum if scores is None else zlib.crc32(np.ascontiguousarray(scores).data, checksum)


def mask_lengths(counts: Counts) -> NDArray[np.int64]:
    """Return (P,) the number of bytes of each mask."""
    return np.fromiter(map(len, counts), np.int64, len(counts))


def mask_checksum_of(counts: Counts) -> int:
    """Return the CRC-32 of the lengths of masks, (P,) int64, and then of their bytes."""
    return zlib.crc32(b"".join(counts), zlib.crc32(mask_lengths(counts).astype("<i8").data))


class Located(NamedTuple):
    """Where images lie: ``places`` (n, 6) as `detector.ops.proposals` takes them, while ``files`` exist."""

    places: Tensor
    files: list[_SegmentFile]


class SegmentReader:
    """Reads images from the segments in ``folder`` and keeps the most recently used files open.

    Safe to use from several threads, and in a process that was forked from one that has read before.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = lru_cache(maxsize=_OPEN_FILES)(self._open_file)

    def read(self, row: Row, *, check: bool) -> StoredImage:
        """Return the boxes (P, 4) and the scores (P,) or None at ``row``, in new arrays, without masks.

        With ``check`` their checksum is compared. Raises `DamagedStore` where a file is missing or does not
        hold what ``row`` says.
        """
        boxes = self._open(row.segment, "boxes").read(row.offset, row.boxes)
        scores = self._open(row.segment, "scores").read(row.offset, row.boxes) if row.scored else None
        if check and checksum_of(boxes, scores) != row.checksum:
            raise self._changed(row, "boxes")
        return StoredImage(boxes, scores)

    def read_masks(self, row: Row, *, check: bool) -> Counts | None:
        """Return the counts of the masks at ``row``, ``b""`` for a region without one; None without any.

        With ``check`` their checksum is compared, and whether each describes an image of the size that
        ``row`` says. Raises `DamagedStore` where a file is missing or does not hold what ``row`` says.
        """
        if not row.masked:
            return None
        ends = self._open(row.segment, "mask_offsets").read(row.offset, row.boxes + 1)
        if (ends[1:] < ends[:-1]).any() or ends[0] < 0:
            raise self._changed(row, "mask_offsets")
        start = int(ends[0])
        content = self._open(row.segment, "masks").read(start, int(ends[-1]) - start).tobytes()
        places = (ends - start).tolist()
        counts = tuple(content[first:end] for first, end in pairwise(places))
        if check:
            if mask_checksum_of(counts) != row.mask_checksum:
                raise self._changed(row, "masks")
            self._require_masks(row, counts)
        return counts

    def _require_masks(self, row: Row, counts: Counts) -> None:
        """Raise `DamagedStore` for masks that no encoder writes: pycocotools trusts what it decodes."""
        size = (row.height, row.width)
        rles = [{"size": size, "counts": one} if one else None for one in counts]
        path = segment_path(self._folder, row.segment, "masks")
        try:
            Masks.from_rles(rles, size, f"{path}, image {row.image_id!r}")
        except ValueError as error:
            raise DamagedStore(f"{path} is damaged: {error}") from None

    def _changed(self, row: Row, kind: str) -> DamagedStore:
        path = segment_path(self._folder, row.segment, kind)
        return DamagedStore(f"{path} is damaged: image {row.image_id!r} is not as it was written")

    def read_filtered(
        self, row: Row, size: tuple[int, int], limits: Limits, *, check: bool
    ) -> Proposals | None:
        """Return the proposals at ``row``, filtered for an image of ``size`` (height, width).

        One native call does it, without Python's global lock. None is returned where the files do not hold
        what ``row`` says; `read` says why.
        """
        from detector.ops import proposals as native

        place = [-1, 0, -1, 0, row.boxes, row.checksum if check else -1]
        files = []  # another thread may close the reader: the files stay open as long as they are used here
        try:
            for at, kind in ((0, "boxes"), (2, "scores"))[: 1 + row.scored]:
                files.append(self._open(row.segment, kind))
                files[-1].require(row.offset + row.boxes)
                place[at : at + 2] = files[-1].place(row.offset)
        except DamagedStore:
            return None
        found = native.read_proposals(place, size, *limits)
        return None if found is None else Proposals(boxes=found[0], scores=found[1])

    def locate(self, rows: NDArray[np.void], *, check: NDArray[np.bool_]) -> Located:
        """Return where the images of ``rows`` (n,) of the index lie; those of ``check`` (n,) are compared.

        Raises `DamagedStore` where a file is missing or too short.
        """
        places = np.empty((len(rows), 6), np.int64)
        places[:, 2:4] = -1, 0
        places[:, 4] = rows["boxes"]
        places[:, 5] = np.where(check, rows["checksum"].astype(np.int64), -1)
        files: list[_SegmentFile] = []
        for number in np.unique(rows["segment"]).tolist():
            here = rows["segment"] == number
            for column, kind, chosen in ((0, "boxes", here), (2, "scores", here & rows["scored"])):
                if chosen.any():
                    files.append(self._open(number, kind))
                    offsets = rows["offset"][chosen].astype(np.int64)
                    places[chosen, column], places[chosen, column + 1] = files[-1].place(offsets)
                    files[-1].require(int((offsets + rows["boxes"][chosen]).max()))
        return Located(torch.from_numpy(places), files)

    def close(self) -> None:
        """Close all files; they open again when they are needed."""
        self._open.cache_clear()

    def _open_file(self, number: int, kind: str) -> _SegmentFile:
        return _SegmentFile(segment_path(self._folder, number, kind), kind)


class _SegmentFile:
    """An open file of a segment, whose array has the type and the shape of its ``kind``."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._columns = _COLUMNS[kind]
        self._type = np.dtype(_TYPES[kind])
        self._handle = -1
        try:
            if path.exists():
                require_regular(path)
            self._handle = os.open(path, os.O_RDONLY)
            with open(self._handle, "rb", closefd=False) as file:
                header = read_header(file)
                self._start = file.tell()
        except FileNotFoundError:
            raise DamagedStore(f"{path} is missing") from None
        except InputError as error:  # also where the file has been removed since `exists`
            raise DamagedStore(str(error)) from None
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if header.dtype != self._type or header.fortran_order or header.shape[1:] != self._columns:
            raise self._damaged(f"it holds {header.dtype} of shape {header.shape}")
        if self._start + header.data_bytes > os.fstat(self._handle).st_size:
            raise self._damaged("its end is missing")
        self._rows = header.shape[0] if header.shape else 0

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def require(self, rows: int) -> None:
        """Raise `DamagedStore` unless the file has so many rows."""
        if rows > self._rows:
            raise self._damaged(f"it has {self._rows} rows and needs {rows}")

    def place(self, offset: Offset) -> tuple[int, Offset]:
        """Return the descriptor of the file and where in it row ``offset`` begins, in bytes."""
        return self._handle, self._start + offset * (self._type.itemsize * (self._columns or (1,))[0])

    def read(self, offset: int, rows: int) -> NDArray[Any]:
        """Return ``rows`` rows from ``offset`` on in a new array."""
        self.require(offset + rows)
        values = np.empty((rows, *self._columns), self._type)
        try:
            read = os.preadv(self._handle, [values.data], self.place(offset)[1])
        except OSError as error:
            raise self._damaged(str(error)) from error
        if read != values.nbytes:
            raise self._damaged("its end is missing")
        return values

    def _damaged(self, reason: str) -> DamagedStore:
        return DamagedStore(f"{self._path} is damaged: {reason}")
