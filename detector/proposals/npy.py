"""Reads the header of a ``.npy`` file that may be damaged or malicious."""

from __future__ import annotations

import math
import threading
import warnings
from io import BytesIO
from typing import IO, Any, NamedTuple

import numpy as np

_MAX_HEADER = 10_000
# Up to Python 3.11, ast counts the depth of its recursion per interpreter: of two threads that parse headers
# at the same time one fails with "AST constructor recursion depth mismatch".
_PARSING = threading.Lock()
# Version of the format: bytes of the number that gives the header's length.
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4}


class Header(NamedTuple):
    """What a ``.npy`` file says about its array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def data_bytes(self) -> int:
        """The number of bytes that the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes], *, objects: bool = False) -> Header:
    """Read the header of a ``.npy`` file, at most 10,000 bytes; ``file`` is then at the start of the array.

    Raises ValueError for anything else, and for an array of Python objects unless ``objects`` is set: such an
    array is a pickle, which must not be loaded by numpy.
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
        with _PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's own about odd headers
            np.lib.format.read_magic(whole)
            header = Header(*read(whole, max_header_size=_MAX_HEADER))
    except Exception as error:  # numpy lets many kinds out of a damaged header, those of a tokenizer too
        raise ValueError(f"a damaged .npy header: {error}") from error
    if header.dtype.hasobject and not objects:
        raise ValueError("Python objects and not plain numbers")
    if any(type(side) is not int or side < 0 for side in header.shape):
        raise ValueError(f"an array of shape {header.shape}")
    return header
