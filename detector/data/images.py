"""Reading image files: the whole image or a clear error, never half of one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from detector.core.errors import InputError
from detector.core.files import require_regular
from detector.data.bit_depth import Depth, doubt, file_depth, to_eight_bits, used_bits
from detector.data.orientation import orientation, stored_size

# Pillow's names of what OpenCV decodes too.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_REPLACE = (
    "replace the file or leave its id out of the split (tools/check_data.py --fix-list LIST finds all such "
    "images, data.leave_out=LIST leaves them out)"
)
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_HEAD = 1 << 16  # bytes in which the headers that say something about the depth lie
_PNG_START, _PNG_END = b"\x89PNG", b"IEND"


MAX_PIXELS = 2**27
"""Larger images (134 million pixels, 0.4 GB decoded) are refused: a small file can claim to hold them."""


MAX_BYTES = 8 * MAX_PIXELS
"""Larger files (1 GiB) are refused before they are read; three uncompressed channels of 16 bits take less."""


class TruncatedImage(InputError):
    """An image file that ends too early."""


class WrongImageSize(InputError):
    """An image of another size than its annotation says."""


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode ``path`` to an array (H, W, 3) uint8, RGB.

    ``size`` is the annotated (height, width). The orientation that a camera wrote into the file is
    applied, unless the annotated size says that the annotator saw the image without it. Of files with 16
    bits per sample the highest 8 bits are kept, or those of the depth that `bit_depth` finds declared.

    Raises:
        InputError: no such file, not an image, one of over `MAX_PIXELS`, truncated (`TruncatedImage`), or
            of another size than annotated (`WrongImageSize`).
    """
    data, depth = _read_bytes(path)
    image = _decode(path, data, cv2.IMREAD_COLOR, depth)
    if size is not None and image.shape[:2] != size:
        image = _decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, depth)
        if image.shape[:2] != size:
            raise _wrong_size(path, image.shape[:2], size)
    return np.ascontiguousarray(image[:, :, ::-1])


def low_bit_depth(path: Path) -> str | None:
    """Return what is doubtful about the depth of an image file's data, or None; only files with 16 bits per
    sample are decoded.

    Raises InputError as `read_image`.
    """
    require_regular(path)
    with _header(path) as image, path.open("rb") as file:
        depth = file_depth(image, file.read(_HEAD))
    if depth.stored != 16:
        return None
    data, depth = _read_bytes(path)
    pixels = _decode_raw(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return doubt(pixels, depth) if pixels.dtype == np.uint16 else None


def check_image(path: Path, size: tuple[int, int] | None = None) -> None:
    """Raise InputError where `read_image` would because of the header, the size or a missing end.

    The pixels are not decoded, so damage between the header and the end is not found.
    """
    _read_whole(path)
    with _header(path) as image:
        stored = stored_size(image)
        upright = stored[::-1] if orientation(image) >= 5 else stored
        views = (upright,) if image.format == "TIFF" else (upright, stored)  # OpenCV turns every TIFF upright
    if size is not None and size not in views:
        raise _wrong_size(path, upright, size)


def _wrong_size(path: Path, found: tuple[int, ...], annotated: tuple[int, int]) -> WrongImageSize:
    return WrongImageSize(
        f"{path}: the image is {found[1]}x{found[0]} pixels, its annotation says "
        f"{annotated[1]}x{annotated[0]}; correct the annotation's <size> or put back the right image"
    )


def stored_view(path: Path) -> tuple[tuple[int, int], int]:
    """Return the (height, width) that an image file is stored with and its EXIF orientation, 1 to 8.

    Orientation 1, also where none is written, is upright; from 5 on the sides are swapped.

    Raises InputError for a file that is no image, or one of over `MAX_PIXELS`.
    """
    with _header(path) as image:
        return stored_size(image), orientation(image)


def upright_size(path: Path) -> tuple[int, int]:
    """Return the (height, width) that `read_image` gives without an annotated size, from the header alone.

    Raises InputError as `stored_view`.
    """
    (height, width), turned = stored_view(path)
    return (width, height) if turned >= 5 else (height, width)


@contextmanager
def _header(path: Path) -> Iterator[Image.Image]:
    """Open an image without decoding it, so that its size can be refused first."""
    require_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own about large images and odd headers
            with Image.open(path, formats=_FORMATS) as image:
                if image.height * image.width > MAX_PIXELS:
                    raise InputError(_bomb(path, f" ({image.width}x{image.height})"))
                yield image
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(_bomb(path, "")) from None
    except Exception:  # Pillow lets many kinds out of a damaged header
        raise InputError(f"{path}: not a readable image; {_REPLACE}") from None


def _bomb(path: Path, size: str) -> str:
    return f"{path}: more than {MAX_PIXELS} pixels{size}, which is refused; cut the image into tiles"


def _read_bytes(path: Path) -> tuple[np.ndarray, Depth]:
    """Return the bytes (n,) uint8 of an image file that may be decoded, and the depth of its samples."""
    data = _read_whole(path)
    with _header(path) as image:
        return data, file_depth(image, data[:_HEAD].tobytes())


def _read_whole(path: Path) -> np.ndarray:
    """Return the bytes (n,) uint8 of an image file that is not too long and not truncated."""
    require_regular(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: an image file of over {MAX_BYTES} bytes is refused; {_REPLACE}")
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot read the image: {error.strerror}") from None
    _refuse_truncated(path, data.tobytes())
    return data


def _decode(path: Path, data: np.ndarray, flags: int, depth: Depth) -> np.ndarray:
    if depth.stored == 16 and depth.declared is not None:
        image = _decode_raw(path, data, flags | cv2.IMREAD_ANYDEPTH)
        if image.dtype == np.uint16 and used_bits(image, depth) < 16:
            return to_eight_bits(image, depth)
    return _decode_raw(path, data, flags)


def _decode_raw(path: Path, data: np.ndarray, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:  # more pixels than OpenCV is willing to decode, for instance
        raise InputError(f"{path}: OpenCV does not decode this image: {error.err}") from None
    except MemoryError:
        raise InputError(f"{path}: too little memory to decode this image; cut it into tiles") from None
    if image is None:
        raise InputError(f"{path}: not a readable image; {_REPLACE}")
    return image


def _refuse_truncated(path: Path, data: bytes) -> None:
    # A decoder fills what is missing with grey and only warns, so the end is looked for here.
    jpeg_cut = data.startswith(_JPEG_START) and data.find(_JPEG_END, _first_scan(data)) < 0
    png_cut = data.startswith(_PNG_START) and _PNG_END not in data
    if jpeg_cut or png_cut:
        raise TruncatedImage(f"{path}: the image is truncated; {_REPLACE}")


def _first_scan(data: bytes) -> int:
    """Return where the pixels of a JPEG begin: behind the headers, one of which may hold a whole thumbnail
    with an end mark of its own (ITU T.81, annex B)."""
    at = len(_JPEG_START)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        filled = data[at + 1] == 0xFF  # any number of FF may stand before a marker
        at += 1 if filled else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at
