"""Sixteen-bit image files whose data have fewer bits, as many cameras and microscopes write them.

The depth of the data is what the file declares, and 16 bits where it declares nothing: a guess from one
image's values would make the images of one data set differ in brightness. Pixels keep the highest 8 bits of
that depth. It is declared by the largest value in a PGM or PPM header, and by TIFF's MaxSampleValue if that
is 2^n - 1; other numbers there are statistics of a single image. PNG's sBIT chunk declares it as well, but by
the PNG specification such data are scaled to 16 bits; so it counts only where the values show that they are
not.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # TIFF 6.0
_PNM = re.compile(rb"P[2356](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d{1,5})\s")
_USUAL = (8, 10, 12, 14)
_FULL = 65535


class Depth(NamedTuple):
    """Bits that a sample takes in the file (8 or 16), and bits that the file declares its data to have.

    ``scaled`` says that data of the declared bits should be scaled to the stored ones.
    """

    stored: int
    declared: int | None
    scaled: bool = False


def file_depth(image: Image.Image, head: bytes) -> Depth:
    """Return the depth of an image file from Pillow's view of it, not decoded, and its first bytes."""
    if head.startswith(_PNG):
        return Depth(16 if head[24:25] == b"\x10" else 8, _significant_bits(head), scaled=True)
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        stored = _largest(tags.get(_BITS_PER_SAMPLE, (8,)))
        largest = _largest(tags.get(_MAX_SAMPLE_VALUE, (0,)))
        return Depth(16 if stored == 16 else 8, None if largest & (largest + 1) else _bits(largest))
    found = _PNM.match(head)
    largest = int(found[1]) if found else 255
    return Depth(16 if largest > 255 else 8, _bits(largest))


def to_eight_bits(image: np.ndarray, depth: Depth) -> np.ndarray:
    """Return ``image`` (H, W, 3) uint16 as uint8 by the depth of its data."""
    return (image >> np.uint16(used_bits(image, depth) - 8)).astype(np.uint8)


def used_bits(image: np.ndarray, depth: Depth) -> int:
    """Return the depth of the data of ``image`` (H, W, 3) uint16, 8 to 16 bits.

    A declared one that the values do not fit into is wrong and does not count.
    """
    bits = depth.declared
    if bits is None or not 8 <= bits <= 16 or image.max() >> bits:
        return 16
    return 16 if depth.scaled and _is_scaled(image, bits) else bits


def doubt(image: np.ndarray, depth: Depth) -> str | None:
    """Return what is doubtful about the depth of ``image`` (H, W, 3) uint16, or None."""
    top, declared = int(image.max()), depth.declared
    if declared is not None and 8 <= declared <= 16 and (depth.scaled or not top >> declared):
        return None
    if declared is not None:
        return (
            f"a 16-bit file that declares data of {declared} bits, whose values end at {top}: it is read as "
            "data of 16 bits; correct what it declares"
        )
    bits = next((bits for bits in _USUAL if not top >> bits), 16)
    if top == 0 or bits == 16:
        return None
    return (
        f"a 16-bit file whose values end at {top} of {_FULL}, as if they were data of {bits} bits: it is "
        f"read as data of 16 bits, so that no pixel is brighter than {top >> 8} of 255. If the data set has "
        f"{bits} bits, multiply the values of all its images by {1 << 16 - bits}, or declare the depth in "
        "the files (PGM and PPM: the largest value; TIFF: MaxSampleValue; PNG: sBIT)"
    )


def _is_scaled(image: np.ndarray, bits: int) -> bool:
    """Say whether values below 2^bits can be ``bits`` scaled to 16, by a shift or in proportion."""
    steps = image >> np.uint16(16 - bits)
    by_shift = steps << np.uint16(16 - bits)
    in_proportion = (steps * (_FULL / ((1 << bits) - 1))).round()
    return bool(((image == by_shift) | (image == in_proportion)).all())


def _significant_bits(head: bytes) -> int | None:
    """Return the largest number in PNG's sBIT chunk, which stands before the pixels."""
    at = len(_PNG)
    while at + 8 <= len(head):
        length, kind = struct.unpack(">I4s", head[at : at + 8])
        if kind == b"sBIT":
            return max(head[at + 8 : at + 8 + min(length, 4)], default=None)
        if kind == b"IDAT":
            return None
        at += length + 12
    return None


def _largest(value: object) -> int:
    values = value if isinstance(value, tuple) else (value,)
    return max((int(number) for number in values if isinstance(number, int | float)), default=0)


def _bits(largest: int) -> int | None:
    """Return the bits of data that end at ``largest``; None for 0 and for 65535, which writers put there
    whatever the data are."""
    return largest.bit_length() if 0 < largest < _FULL else None
