"""Headers of ``.npy`` files from strangers, and maps of such files that cannot end outside the file."""

from __future__ import annotations

import math
import warnings
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.core.files import require_regular

_MAX_HEADER = 10_000
# Version of the format: bytes of the number that gives the header's length.
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4}


class Header(NamedTuple):
    """What a ``.npy`` file says about its array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def data_bytes(self) -> int:
        """How many bytes the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize


class MappedFile(NamedTuple):
    """A ``.npy`` file in memory: all its ``content`` as bytes (n,), of which those from ``start`` to
    ``end`` are the array; what follows is not numpy's."""

    content: NDArray[np.uint8]
    header: Header
    start: int
    end: int

    def array(self) -> NDArray[Any]:
        """Return the array, still in the map."""
        values = self.content[self.start : self.end].view(self.header.dtype)
        return values.reshape(self.header.shape, order="F" if self.header.fortran_order else "C")


def read_header(file: IO[bytes]) -> Header:
    """Read the header of a ``.npy`` file, at most 10,000 bytes; ``file`` then stands at the array.

    Raises ValueError for anything else, and for an array of Python objects.
    """
    start = file.read(8)
    width = _LENGTH_BYTES.get(start[6:], 0)
    length = file.read(width)
    if not start.startswith(b"\x93NUMPY") or not width or len(length) != width:
        raise ValueError("no .npy header of version 1 or 2")
    if int.from_bytes(length, "little") > _MAX_HEADER:
        raise ValueError(f"a header of over {_MAX_HEADER} bytes")
    whole = BytesIO(start + length + file.read(int.from_bytes(length, "little")))
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's own about odd headers
            np.lib.format.read_magic(whole)
            header = Header(*read(whole, max_header_size=_MAX_HEADER))
    except Exception as error:  # numpy lets many kinds out of a damaged header, those of a tokenizer too
        raise ValueError(f"a damaged .npy header: {error}") from error
    if header.dtype.hasobject:
        raise ValueError("Python objects and not plain numbers")
    if any(type(side) is not int or side < 0 for side in header.shape):
        raise ValueError(f"an array of shape {header.shape}")
    return header


def map_file(path: Path) -> MappedFile:
    """Map the ``.npy`` file ``path`` for reading.

    Raises ValueError for a header that does not fit the file, OSError (FileNotFoundError where there is
    none) for a file that cannot be read, and InputError for a pipe or a device.
    """
    if path.exists():
        require_regular(path)
    with path.open("rb") as file:
        header = read_header(file)
        start = file.tell()
        content = np.memmap(file, np.uint8, "r")
    end = start + header.data_bytes
    check_length(end, len(content))
    return MappedFile(content.view(np.ndarray), header, start, end)  # plain array: quicker to look into


def check_length(needed: int, size: int) -> None:
    """Raise ValueError unless a file of ``size`` bytes can hold an array that ends at byte ``needed``."""
    if needed > size:
        raise ValueError(f"it should have {needed} bytes and has {size}")
