"""MATLAB files: the selective search boxes of rbgirshick/fast-rcnn and of the IJCV release.

Three layouts: one file per data set, with a cell array ``boxes`` of one matrix (P, 4) per image and often a
cell array ``images`` of their names; one file per image, with a matrix ``boxes``; a folder of such files.

SciPy's reader trusts the sizes in a file and crashes on damaged ones. This one reads MATLAB 5 files as a
stream, with one cell of a cell array in memory at a time. Their layout is in "MAT-File Format" by The
MathWorks.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.proposals.readers.raw_images import (
    ALWAYS_ALLOWED,
    MAX_BOXES,
    MAX_RATIO,
    Position,
    RawImage,
    RawImages,
    clear_errors,
    files_of,
    image_place,
    raw_image,
)

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBER_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT_TYPES = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _CHAR, _FIRST_NUMBER, _LAST_NUMBER = 1, 4, 6, 15  # classes of matrices
_COMPLEX = 0x0800
# A cell with a box takes more bytes than this even when compressed; empty cells compress a thousandfold.
_CELLS_OF_ANY_FILE, _CELL_BYTES = 100_000, 8
_MAX_CELL_BYTES = 48 * MAX_BOXES
_BLOCK = 1 << 16
_ERRORS = (ValueError, OverflowError, zlib.error)

Value = NDArray[Any] | str


def read_matlab(source: Path) -> RawImages:
    """Return the images of the file or folder ``source``, one in memory at a time.

    The name of a file with one image is the image id, with or without ``_boxes`` at its end (as in the demo
    of fast-rcnn).
    """
    if source.is_dir():
        files = [(key.removesuffix("_boxes"), path) for key, path in files_of(source, ".mat")]
        return RawImages([key for key, _ in files], (_image(path, key, _boxes(path)) for key, path in files))
    boxes = _boxes(source)
    if not isinstance(boxes, Cells):
        key = source.stem.removesuffix("_boxes")
        return RawImages([key], iter([_image(source, key, boxes)]))
    names = _names(source, len(boxes))
    total = len(boxes)
    keys = (Position(place, total) if names is None else names[place] for place in range(total))
    return RawImages(names or [], (_image(source, key, cell) for key, cell in zip(keys, boxes, strict=True)))


def _boxes(path: Path) -> Cells | Value:
    if (boxes := read_variable(path, "boxes")) is None:
        raise InputError(f"{path} has no variable 'boxes'")
    return boxes


def _names(source: Path, count: int) -> list[str] | None:
    cells = read_variable(source, "images")
    if cells is None:
        return None
    names = [cell for cell in cells if isinstance(cell, str)] if isinstance(cells, Cells) else []
    if len(names) != count:
        raise InputError(f"{source}: 'images' does not hold {count} names, one for each cell of 'boxes'")
    return names


def _image(source: Path, key: str | Position, boxes: Cells | Value) -> RawImage:
    where = image_place(source, key)
    if not isinstance(boxes, np.ndarray):
        raise InputError(f"{where}: 'boxes' is not a matrix")
    return raw_image(key, boxes, "auto", where)


class _Head(NamedTuple):
    kind: int
    shape: tuple[int, ...]
    name: str


def read_variable(path: Path, name: str) -> Cells | Value | None:
    """Return the variable ``name`` of ``path``: a matrix, a text or cells; None if the file has none.

    Raises InputError, also while the cells are read, for a damaged file and for one that unpacks to more
    than ``MAX_RATIO`` times its size.
    """
    with clear_errors(path, ".mat file", *_ERRORS):
        file = path.open("rb")  # stays open: the cells are read from it later
        order = _byte_order(path, file.read(_HEADER_BYTES))
        while tag := file.read(8):
            kind, length = _tag(tag, order)
            end = file.tell() + length
            stream: IO[bytes] | _Stream = file
            if kind == _COMPRESSED:
                stream = _Stream(file, path)
                kind, length = _tag(_take(stream, 8), order)
            if kind != _MATRIX:
                raise ValueError(f"an element of type {kind} where a matrix belongs")
            if (head := _read_head(stream, order)).name == name:
                if head.kind == _CELL:
                    return Cells(path, stream, order, head)
                return _value(stream, order, head)
            file.seek(end)
    return None


class Cells:
    """The matrices and texts of a cell array, column by column; they can be iterated over once."""

    def __init__(self, path: Path, stream: IO[bytes] | _Stream, order: str, head: _Head) -> None:
        self._path = path
        self._stream = stream
        self._order = order
        self._count = math.prod(head.shape)
        if self._count > _CELLS_OF_ANY_FILE + path.stat().st_size // _CELL_BYTES:
            raise ValueError(f"{self._count} cells, more than a file of its size needs")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Value]:
        with clear_errors(self._path, ".mat file", *_ERRORS):
            for _ in range(self._count):
                kind, length = _tag(_take(self._stream, 8), self._order)
                if kind != _MATRIX:
                    raise ValueError("a cell that is not a matrix")
                cell = BytesIO(_take(self._stream, length))
                head = _read_head(cell, self._order) if length else None
                yield np.zeros((0, 0)) if head is None else _value(cell, self._order, head)


class _Stream:
    """The unpacked content of a compressed variable."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self._unpack = zlib.decompressobj()
        self._limit = max(ALWAYS_ALLOWED, MAX_RATIO * path.stat().st_size)
        self._given = 0

    def read(self, count: int) -> bytes:
        parts = []
        while count > 0 and not self._unpack.eof:
            packed = self._unpack.unconsumed_tail or self._file.read(_BLOCK)
            part = self._unpack.decompress(packed, count)
            if not packed and not part:
                break
            parts.append(part)
            count -= len(part)
            self._given += len(part)
        if self._given > self._limit:
            raise InputError(f"{self._path} unpacks to over {MAX_RATIO} times its size; it is refused")
        return b"".join(parts)


def _byte_order(path: Path, header: bytes) -> str:
    if header.startswith(b"MATLAB 7.3"):
        raise InputError(f"{path} is of MATLAB 7.3 (HDF5); save it with -v7")
    orders = {b"IM": "<", b"MI": ">"}
    if len(header) < _HEADER_BYTES or header[126:] not in orders:
        raise ValueError("it has no header of MATLAB 5")
    return orders[header[126:]]


def _take(stream: IO[bytes] | _Stream, count: int) -> bytes:
    if count > _MAX_CELL_BYTES:
        raise ValueError(f"{count} bytes for one matrix")
    data = stream.read(count)
    if len(data) != count:
        raise ValueError("it ends too early")
    return data


def _tag(data: bytes, order: str) -> tuple[int, int]:
    if len(data) != 8:
        raise ValueError("it ends too early")
    kind, length = np.frombuffer(data, f"{order}u4").tolist()
    return kind, length


def _read_data(stream: IO[bytes] | _Stream, order: str) -> tuple[int, bytes]:
    """Return the type and the bytes of a data element, which has up to four bytes inside its tag."""
    tag = _take(stream, 8)
    kind, length = _tag(tag, order)
    if kind >> 16:
        if kind >> 16 > 4:
            raise ValueError("a short element that is long")
        return kind & 0xFFFF, tag[4 : 4 + (kind >> 16)]
    data = _take(stream, length)
    _take(stream, -length % 8)
    return kind, data


def _read_head(stream: IO[bytes] | _Stream, order: str) -> _Head:
    _, flags = _read_data(stream, order)
    _, sides = _read_data(stream, order)
    _, name = _read_data(stream, order)
    word = int(np.frombuffer(flags, f"{order}u4", 1)[0])
    shape = tuple(np.frombuffer(sides, f"{order}i4").tolist())
    if min(shape, default=-1) < 0 or word & _COMPLEX:
        raise ValueError("a matrix of complex numbers or without a shape")
    return _Head(word & 0xFF, shape, name.decode("latin-1"))


def _value(stream: IO[bytes] | _Stream, order: str, head: _Head) -> Value:
    kind, data = _read_data(stream, order)
    if head.kind == _CHAR and kind in _TEXT_TYPES:
        wide = {"utf-16": "-le", "utf-32": "-le"} if order == "<" else {"utf-16": "-be", "utf-32": "-be"}
        return data.decode(_TEXT_TYPES[kind] + wide.get(_TEXT_TYPES[kind], ""))
    if not _FIRST_NUMBER <= head.kind <= _LAST_NUMBER or kind not in _NUMBER_TYPES:
        raise ValueError("a matrix of neither numbers nor text")
    numbers = np.frombuffer(data, f"{order}{_NUMBER_TYPES[kind]}")
    if math.prod(head.shape) != len(numbers):
        raise ValueError(f"a matrix of shape {head.shape[:4]} with {len(numbers)} numbers")
    return numbers.reshape(head.shape, order="F")
