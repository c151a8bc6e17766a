"""Sixteen-bit image files whose data have fewer bits, as many cameras and microscopes write them.

The depth of the data is what the file declares: PNG's sBIT chunk, the largest value in a PGM or PPM header,
TIFF's MaxSampleValue. Where it declares nothing, it is the smallest of 8, 12 and 16 bits that holds every
value of the image. Pixels keep the highest 8 bits of that depth.
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
_GUESSES = (8, 12, 16)
_FULL = 65535
_DARK = 64
"""Images that stay below this of 255 although their depth is 16 bits are worth a word."""


class Depth(NamedTuple):
    """Bits that a sample takes in the file (8 or 16), and bits that the file declares its data to have."""

    stored: int
    declared: int | None


def file_depth(image: Image.Image, head: bytes) -> Depth:
    """Return the depth of an image file from Pillow's view of it, not decoded, and its first bytes."""
    if head.startswith(_PNG):
        return Depth(16 if head[24:25] == b"\x10" else 8, _significant_bits(head))
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        stored = _largest(tags.get(_BITS_PER_SAMPLE, (8,)))
        return Depth(16 if stored == 16 else 8, _bits(_largest(tags.get(_MAX_SAMPLE_VALUE, (0,)))))
    found = _PNM.match(head)
    largest = int(found[1]) if found else 255
    return Depth(16 if largest > 255 else 8, _bits(largest))


def to_eight_bits(image: np.ndarray, declared: int | None) -> np.ndarray:
    """Return ``image`` (H, W, 3) uint16 as uint8 by the depth of its data."""
    shift = used_bits(image, declared) - 8
    return (image >> np.uint16(shift)).astype(np.uint8)


def used_bits(image: np.ndarray, declared: int | None) -> int:
    """Return the depth of the data of ``image`` (H, W, 3) uint16, 8 to 16 bits."""
    top = int(image.max())
    if declared is not None and 8 <= declared <= 16 and top < 1 << declared:
        return declared
    return next(bits for bits in _GUESSES if top < 1 << bits)


def doubt(image: np.ndarray, declared: int | None) -> str | None:
    """Return what is doubtful about the depth of ``image`` (H, W, 3) uint16, or None."""
    bits, top = used_bits(image, declared), int(image.max())
    if bits == declared:
        return None
    if bits < 16:
        return (
            f"a 16-bit file whose values end at {top}: read as data of {bits} bits; if they have another "
            "depth, store them scaled to 8 or 16 bits"
        )
    if top >> 8 < _DARK:
        return (
            f"a 16-bit file whose values end at {top}: read as data of 16 bits, so that no pixel is brighter "
            f"than {top >> 8} of 255; if they have fewer bits, store them scaled to 8 or 16 bits"
        )
    return None


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
