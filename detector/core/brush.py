"""Brush strokes of Label Studio: the RGBA pixels of an image, run-length encoded bit by bit.

Source: the package rle-pack of thi.ng/umbrella, which Label Studio uses. A stream of bits, the highest first:
32 for the number of values, 5 for the bits per value less one, four times 4 for the bits of a length less
one; then the runs. A run is 1 bit that says whether one value is repeated, 2 bits that choose the bits of its
length, the length less one, and the value, or as many values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from detector.core.errors import InputError
from detector.core.masks import Masks

_MAX_PIXELS = 2**27
_CHANNELS, _ALPHA = 4, 3


def brush_mask(rle: Any, size: tuple[int, int], where: str) -> bytes:
    """Return the compressed counts of the pixels that are not transparent, ``b""`` where there are none.

    ``rle`` is a list of bytes and ``size`` (height, width) that of the image. Raises InputError for other
    content, which is never unpacked beyond the size.
    """
    height, width = size
    if not isinstance(rle, list) or not all(type(one) is int and 0 <= one < 256 for one in rle):
        raise InputError(f"{where}: rle must be a list of whole numbers from 0 to 255")
    if height * width > _MAX_PIXELS:
        raise InputError(f"{where}: a brush mask of {width} x {height} pixels is refused")
    covered = np.zeros(height * width, np.uint8)
    bits = _Bits(bytes(rle))
    try:
        _fill(covered, bits)
    except ValueError as error:
        raise InputError(f"{where}: its rle is damaged ({error}) or of an image of another size") from None
    return Masks.encode(covered.reshape(1, height, width)).counts[0] if covered.any() else b""


def _fill(covered: np.ndarray, bits: _Bits) -> None:
    """Set the pixels of ``covered`` (H * W,) whose alpha is not zero."""
    total = bits.take(32)
    if total != _CHANNELS * len(covered):
        raise ValueError(f"{total} values")
    word = bits.take(5) + 1
    lengths = [bits.take(4) + 1 for _ in range(4)]
    at = 0
    while at < total:
        repeated = bits.take(1)
        end = at + 1 + bits.take(lengths[bits.take(2)])
        if end > total:
            raise ValueError("a run that is too long")
        if repeated:
            if bits.take(word):
                # Pixel k has its alpha at 4 k + 3.
                covered[-(-(at - _ALPHA) // _CHANNELS) : -(-(end - _ALPHA) // _CHANNELS)] = 1
            at = end
        for place in range(at, end):
            if bits.take(word) and place % _CHANNELS == _ALPHA:
                covered[place // _CHANNELS] = 1
        at = end


class _Bits:
    """A stream of bits, the highest of each byte first."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def take(self, count: int) -> int:
        """Return the next ``count`` bits, at most 32, as a number; ValueError at the end."""
        end = self._place + count
        if end > 8 * len(self._content):
            raise ValueError("it ends too early")
        first, last = self._place // 8, -(-end // 8)
        word = int.from_bytes(self._content[first:last], "big") >> (8 * last - end)
        self._place = end
        return word & ((1 << count) - 1)
