"""How an image file is stored and which way up a camera says it is, read from the headers as OpenCV does.

Pillow alone would also believe XMP, which OpenCV ignores, and gives a turned TIFF's size as if it were
upright.
"""

from __future__ import annotations

import mmap

from PIL import Image

_ORIENTATION = 0x0112  # EXIF 2.3, table 4; TIFF 6.0 has the same tag
_TIFF_WIDTH, _TIFF_LENGTH = 256, 257


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return the (height, width) of the pixels as they lie in the file that Pillow has opened."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return int(tags[_TIFF_LENGTH]), int(tags[_TIFF_WIDTH])
    return image.height, image.width


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, of a file that Pillow has opened; 1 where none is written."""
    if image.format == "TIFF":
        found = image.tag_v2.get(_ORIENTATION, 1)  # type: ignore[attr-defined]
    else:
        exif = Image.Exif()
        exif.load(_exif(image))
        found = exif.get(_ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def _exif(image: Image.Image) -> bytes:
    if image.format == "PNG" and "exif" not in image.info and _mentions_exif(image):
        image.load()  # Pillow finds what stands behind the pixels only by decoding them
    return image.info.get("exif", b"")


def _mentions_exif(image: Image.Image) -> bool:
    with mmap.mmap(image.fp.fileno(), 0, access=mmap.ACCESS_READ) as data:  # type: ignore[attr-defined]
        return data.find(b"eXIf") >= 0
