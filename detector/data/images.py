"""Reading image files: the whole image or a clear error, never a part of the image.

Orientation: what a camera wrote into the file is applied as OpenCV does it. Pillow would also read XMP, which
OpenCV ignores, and reports the size of a rotated TIFF as if it were upright.

Bit depth: many cameras and microscopes write 16-bit files whose data have fewer bits. The depth of the data
is what the file declares, and 16 bits where it declares nothing: a guess from one image's values would make
the images of one data set differ in brightness. Pixels keep the highest 8 bits of that depth. It is declared
by the largest value in a PGM or PPM header, and by TIFF's MaxSampleValue if that is 2^n - 1; other numbers
there are statistics of a single image. PNG's sBIT chunk declares it as well, but by the PNG specification
such data are scaled to 16 bits; so it counts only where the values show that they are not.
"""

from __future__ import annotations

import io
import mmap
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from detector.core.errors import InputError
from detector.core.files import require_regular

# Pillow's names of the formats that OpenCV decodes too.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_REPLACE = (
    "replace the file or leave its id out of the split (tools/check_data.py --fix-list LIST finds all such "
    "images, data.leave_out=LIST leaves them out)"
)
_GIVE_ANOTHER = f"give a whole image file of one of the formats {', '.join(FORMATS)}"
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG", b"IEND"
_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD = 1 << 16  # bytes that contain the headers about the depth
# Tags of TIFF 6.0; EXIF 2.3, table 4, has the same orientation tag.
_TIFF_WIDTH, _TIFF_LENGTH, _BITS_PER_SAMPLE, _ORIENTATION, _MAX_SAMPLE_VALUE = 256, 257, 258, 274, 281
_PNM = re.compile(rb"P[2356](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d{1,5})\s")
_COMMON_DEPTHS = (8, 10, 12, 14)
_FULL = 65535

_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}
# ITU T.81, table B.1: frame headers, which give the size; C4, C8 and CC begin other segments.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# After these bytes no length follows: a stuffed zero, TEM, and RST0 to RST7. Headers have no use for them.
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})

MAX_PIXELS = 2**27
"""Larger images (134 million pixels, 0.4 GB decoded) are refused: a small file can claim to hold them."""
MAX_BYTES = 8 * MAX_PIXELS
"""Larger files (1 GiB) are refused before they are read; three uncompressed channels of 16 bits take less."""


class TruncatedImage(InputError):
    """An image file that ends too early."""


class WrongImageSize(InputError):
    """An image whose size differs from its annotation."""


class TooManyPixels(InputError):
    """An image of more pixels than are decoded."""


class NotAnImage(InputError):
    """A file whose content is of none of the image formats that are read."""


class _InMemory(NamedTuple):
    """An image file that lies in memory; its name stands for it in errors."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


_Source = Path | _InMemory


class LoadedImage:
    """One image, whose pixels are decoded when they are asked for, at most once in each size.

    ``size`` is the (height, width) of the whole image. It comes from `open_image`, or from an array of pixels
    (H, W, 3) uint8, RGB, which is then given for every size.
    """

    def __init__(
        self,
        size: tuple[int, int],
        pixels: np.ndarray,
        decode: Callable[[int], np.ndarray] | None = None,
        factor: int = 1,
    ) -> None:
        """``decode`` gives the image with its sides divided by 2, 4 or 8, or by 1; None gives no other size
        than that of ``pixels``, whose sides are already divided by ``factor``.
        """
        self.size = size
        self._decode = decode
        self._pixels = {factor: pixels}

    @classmethod
    def of(cls, pixels: np.ndarray) -> LoadedImage:
        return cls((pixels.shape[0], pixels.shape[1]), pixels)

    def pixels(self, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """Return the pixels (h, w, 3) uint8, RGB, of the whole image in its own size, or in a smaller one.

        A JPEG file can be decoded with its sides divided by 2, 4 or 8 (rounded up), which takes a fraction of
        the time. With ``at_least`` (height, width) that is done where the result is not smaller than this.

        Raises:
            InputError: as `read_image`.
        """
        factor = 1 if at_least is None or self._decode is None else reduction(self.size, at_least)
        if factor not in self._pixels:
            assert self._decode is not None  # otherwise the only factor is 1
            self._pixels[factor] = self._decode(factor)
        return self._pixels[factor]


def reduction(size: tuple[int, int], at_least: tuple[int, int]) -> int:
    """Return the largest of 8, 4, 2, 1 by which ``size`` can be divided, rounded up, and is ``at_least``."""
    for factor in _REDUCED:
        if all(-(-side // factor) >= wanted for side, wanted in zip(size, at_least, strict=True)):
            return factor
    return 1


def open_image(
    path: Path, size: tuple[int, int] | None = None, at_least: tuple[int, int] | None = None
) -> LoadedImage:
    """Read the file ``path`` and decode it, in the size that `LoadedImage.pixels` chooses for ``at_least``.

    ``size`` is the annotated (height, width); ``at_least`` needs it. The orientation that a camera wrote
    into the file is applied, unless the annotated size shows that the annotator saw the image without it. Of
    samples with 16 bits the highest 8 bits are kept, or the highest 8 of the depth that the file declares.

    Raises:
        InputError: as `read_image`.
    """
    return _open(path, size, at_least)


def decode_image(content: bytes, name: str, max_pixels: int | None = None) -> LoadedImage:
    """Decode the ``content`` of an image file, exactly as `open_image` decodes the file.

    ``name`` stands for the image in errors. An image of more than ``max_pixels`` pixels is refused after a
    look at its header; None takes `MAX_PIXELS`, which no limit can exceed.

    Raises:
        InputError: the content is none of the known formats (`NotAnImage`), has too many pixels
            (`TooManyPixels`), ends too early (`TruncatedImage`) or is damaged.
    """
    most = MAX_PIXELS if max_pixels is None else min(max_pixels, MAX_PIXELS)
    return _open(_InMemory(name, content), most=most)


def _open(
    path: _Source,
    size: tuple[int, int] | None = None,
    at_least: tuple[int, int] | None = None,
    most: int | None = None,
) -> LoadedImage:
    data, depth, frame = _read_bytes(path, most)
    reducible = frame is not None and _is_reducible(frame, size or frame)
    factor = reduction(size, at_least) if reducible and size is not None and at_least is not None else 1
    ignored = 0

    def decode(factor: int) -> np.ndarray:
        flags = (_REDUCED[factor] if factor > 1 else cv2.IMREAD_COLOR) | ignored
        return _decode(path, data, flags, depth)

    image = decode(factor)
    if size is not None and image.shape[:2] != _divided(size, factor):
        ignored = cv2.IMREAD_IGNORE_ORIENTATION
        image = decode(factor)
    whole = size or (image.shape[0], image.shape[1])
    if image.shape[:2] != _divided(whole, factor):
        raise _wrong_size(path, decode(1).shape[:2], whole)
    again = (lambda factor: _to_rgb(decode(factor))) if reducible else None
    return LoadedImage(whole, _to_rgb(image), again, factor)


def _is_reducible(frame: tuple[int, int], size: tuple[int, int]) -> bool:
    """Say whether a JPEG of the stored size ``frame`` has the annotated ``size``, as far as a smaller image
    can show it: sides that differ by less than 8 pixels may become equal.
    """
    return frame in (size, size[::-1]) and (size[0] == size[1] or abs(size[0] - size[1]) >= max(_REDUCED))


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode ``path`` to an array (H, W, 3) uint8, RGB, as `open_image` describes.

    Raises:
        InputError: no such file, not an image, over `MAX_PIXELS`, truncated (`TruncatedImage`), or of
            another size than annotated (`WrongImageSize`).
    """
    return open_image(path, size).pixels()


def _divided(size: tuple[int, int], factor: int) -> tuple[int, int]:
    return -(-size[0] // factor), -(-size[1] // factor)


def _to_rgb(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def low_bit_depth(path: Path) -> str | None:
    """Return what is doubtful about the depth of an image file's data, or None.

    Only files with 16 bits per sample are decoded.

    Raises InputError as `read_image`.
    """
    with _header(path) as image, path.open("rb") as file:
        depth = _file_depth(image, file.read(_HEAD))
    if depth.stored != 16:
        return None
    data, depth, _ = _read_bytes(path)
    pixels = _decode_raw(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return _depth_doubt(pixels, depth) if pixels.dtype == np.uint16 else None


def check_image(path: Path, size: tuple[int, int] | None = None) -> None:
    """Raise InputError where `read_image` would because of the header, the size or a missing end.

    The pixels are not decoded, so damage between the header and the end is not detected.
    """
    _read_whole(path)
    with _header(path) as image:
        stored = _stored_size(image)
        upright = _upright(stored, _orientation(image))
        # OpenCV turns every TIFF upright.
        accepted = (upright,) if image.format == "TIFF" else (upright, stored)
    if size is not None and size not in accepted:
        raise _wrong_size(path, upright, size)


def _wrong_size(path: _Source, actual: tuple[int, ...], annotated: tuple[int, int]) -> WrongImageSize:
    return WrongImageSize(
        f"{path}: the image is {actual[1]}x{actual[0]} pixels, its annotation says "
        f"{annotated[1]}x{annotated[0]}; correct the annotation's <size> or put back the right image"
    )


def stored_view(path: Path) -> tuple[tuple[int, int], int]:
    """Return the (height, width) of an image as it is stored, and its EXIF orientation, 1 to 8.

    Orientation 1, also where none is written, is upright; from 5 on the sides are swapped.

    Raises InputError for a file that is not an image or is over `MAX_PIXELS`.
    """
    with _header(path) as image:
        return _stored_size(image), _orientation(image)


def upright_size(path: Path) -> tuple[int, int]:
    """Return the (height, width) that `read_image` gives without an annotated size, only from the header.

    Raises InputError as `stored_view`.
    """
    return _upright(*stored_view(path))


def _upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size[::-1] if orientation >= 5 else size


@contextmanager
def _header(path: _Source, most: int | None = None) -> Iterator[Image.Image]:
    """Open an image without decoding it, so that a size of over ``most`` pixels can be refused first.

    ``most`` None is `MAX_PIXELS`.
    """
    most = MAX_PIXELS if most is None else most
    if isinstance(path, Path):
        require_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings about large images and odd headers
            opened = path if isinstance(path, Path) else io.BytesIO(path.content)
            with Image.open(opened, formats=FORMATS) as image:
                if image.height * image.width > most:
                    raise _too_many(path, most, (image.height, image.width))
                yield image
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise _too_many(path, most) from None
    except UnidentifiedImageError:
        raise NotAnImage(f"{path}: not a readable image; {_advice(path)}") from None
    except Exception as error:  # Pillow raises many kinds for a damaged header
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path}: cannot read the image: {error.strerror}") from None
        raise InputError(f"{path}: not a readable image; {_advice(path)}") from None


def _advice(path: _Source) -> str:
    return _REPLACE if isinstance(path, Path) else _GIVE_ANOTHER


def _too_many(path: _Source, most: int, size: tuple[int, int] | None = None) -> TooManyPixels:
    stated = "" if size is None else f" ({size[1]}x{size[0]})"
    return TooManyPixels(
        f"{path}: more than {most} pixels{stated}, which is refused; cut the image into tiles"
    )


def _read_bytes(path: _Source, most: int | None = None) -> tuple[np.ndarray, _Depth, tuple[int, int] | None]:
    """Return the bytes (n,) uint8 of an image file that may be decoded, and the depth of its samples.

    The third value is as the second of `_read_whole`; ``most`` is as in `_header`.
    """
    most = MAX_PIXELS if most is None else most
    data, frame = _read_whole(path)
    if frame is not None:  # Pillow would read the header again, which takes longer than all else here
        if frame[0] * frame[1] > most:
            raise _too_many(path, most, frame)
        return data, _Depth(8, None), frame
    with _header(path, most) as image:
        return data, _file_depth(image, data[:_HEAD].tobytes()), None


def _read_whole(path: _Source) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Return the bytes (n,) uint8 of an image file that is not too long and not truncated.

    The second value is the stored (height, width) of a JPEG image, None for other formats and where the
    headers do not give it.
    """
    content = path.content if isinstance(path, _InMemory) else _content(path)
    # A decoder fills missing pixels with grey and only warns, so this looks for the end of the file. It
    # searches backwards: a search through the whole file would hold Python's interpreter lock all the time.
    if content.startswith(_JPEG_START):
        scan, frame = _jpeg_headers(content)
        cut = content.rfind(_JPEG_END, scan) < 0
    else:
        frame, cut = None, content.startswith(_PNG_START) and content.rfind(_PNG_END) < 0
    if cut:
        raise TruncatedImage(f"{path}: the image is truncated; {_advice(path)}")
    return np.frombuffer(content, np.uint8), frame


def _content(path: Path) -> bytes:
    require_regular(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: an image file of over {MAX_BYTES} bytes is refused; {_REPLACE}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the image: {error.strerror}") from None


def _decode(path: _Source, data: np.ndarray, flags: int, depth: _Depth) -> np.ndarray:
    if depth.stored == 16 and depth.declared is not None:
        image = _decode_raw(path, data, flags | cv2.IMREAD_ANYDEPTH)
        bits = _used_bits(image, depth) if image.dtype == np.uint16 else 16
        if bits < 16:
            return (image >> np.uint16(bits - 8)).astype(np.uint8)
    return _decode_raw(path, data, flags)


def _decode_raw(path: _Source, data: np.ndarray, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:  # more pixels than OpenCV is willing to decode, for instance
        raise InputError(f"{path}: OpenCV does not decode this image: {error.err}") from None
    except MemoryError:
        raise InputError(f"{path}: too little memory to decode this image; cut it into tiles") from None
    if image is None:
        raise InputError(f"{path}: not a readable image; {_advice(path)}")
    return image


def _jpeg_headers(data: bytes) -> tuple[int, tuple[int, int] | None]:
    """Return where a JPEG's pixels begin, after the headers, and its (height, width) (ITU T.81, annex B).

    A header may contain a whole thumbnail with an end marker of its own. The size is None where no frame
    header gives it, and where the headers have markers that no encoder writes there.
    """
    at, frame, usual = len(_JPEG_START), None, True
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        marker = data[at + 1]
        if marker == 0xFF:  # any number of FF may precede a marker
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at, usual = at + 2, False
        else:
            if marker in _FRAMES and at + 9 <= len(data):
                height, width = struct.unpack_from(">HH", data, at + 5)
                frame = (height, width) if height and width else None
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at, frame if usual else None


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Return the (height, width) of the pixels as they are stored in a file that Pillow has opened."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        return int(tags[_TIFF_LENGTH]), int(tags[_TIFF_WIDTH])
    return image.height, image.width


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, of a file that Pillow has opened; 1 where none is written."""
    if image.format == "TIFF":
        return _valid_orientation(image.tag_v2.get(_ORIENTATION))  # type: ignore[attr-defined]
    if image.format == "PNG" and "exif" not in image.info and _mentions_exif(image):
        image.load()  # Pillow finds chunks after the pixels only by decoding them
    return exif_orientation(image)


def exif_orientation(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, in the EXIF data of a Pillow image.

    As in OpenCV, it is 1 where the data are damaged, and XMP does not count.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return _valid_orientation(exif.get(_ORIENTATION))
    except Exception:  # Pillow raises many kinds for damaged data
        return 1


def _valid_orientation(written: Any) -> int:
    return written if written in range(1, 9) else 1


def _mentions_exif(image: Image.Image) -> bool:
    with mmap.mmap(image.fp.fileno(), 0, access=mmap.ACCESS_READ) as data:  # type: ignore[attr-defined]
        return data.find(b"eXIf") >= 0


class _Depth(NamedTuple):
    """Bits per sample in the file (8 or 16), and bits that the file declares its data to have.

    ``scaled`` says that data of the declared depth should be scaled to the stored depth.
    """

    stored: int
    declared: int | None
    scaled: bool = False


def _file_depth(image: Image.Image, head: bytes) -> _Depth:
    """Return the depth of an image file that Pillow has opened; ``head`` are its first bytes."""
    if head.startswith(_PNG):
        return _Depth(16 if head[24:25] == b"\x10" else 8, _significant_bits(head), scaled=True)
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        stored = _largest(tags.get(_BITS_PER_SAMPLE, (8,)))
        largest = _largest(tags.get(_MAX_SAMPLE_VALUE, (0,)))
        return _Depth(16 if stored == 16 else 8, None if largest & (largest + 1) else _bits(largest))
    header = _PNM.match(head)
    largest = int(header[1]) if header else 255
    return _Depth(16 if largest > 255 else 8, _bits(largest))


def _used_bits(image: np.ndarray, depth: _Depth) -> int:
    """Return the depth of the data of ``image`` (H, W, 3) uint16, 8 to 16 bits.

    A declared depth that the values exceed is wrong and does not count.
    """
    bits = depth.declared
    if bits is None or not 8 <= bits <= 16 or image.max() >> bits:
        return 16
    return 16 if depth.scaled and _is_scaled(image, bits) else bits


def _depth_doubt(image: np.ndarray, depth: _Depth) -> str | None:
    """Return what is doubtful about the depth of ``image`` (H, W, 3) uint16, or None."""
    top, declared = int(image.max()), depth.declared
    if declared is not None and 8 <= declared <= 16 and (depth.scaled or not top >> declared):
        return None
    if declared is not None:
        return (
            f"a 16-bit file that declares data of {declared} bits, whose values end at {top}: it is read as "
            "data of 16 bits; correct what it declares"
        )
    bits = next((bits for bits in _COMMON_DEPTHS if not top >> bits), 16)
    if top == 0 or bits == 16:
        return None
    return (
        f"a 16-bit file whose values end at {top} of {_FULL}, as if they were data of {bits} bits: it is "
        f"read as data of 16 bits, so that no pixel is brighter than {top >> 8} of 255. If the data set has "
        f"{bits} bits, multiply the values of all its images by {1 << 16 - bits}, or declare the depth in "
        "the files (PGM and PPM: the largest value; TIFF: MaxSampleValue; PNG: sBIT)"
    )


def _is_scaled(image: np.ndarray, bits: int) -> bool:
    """Say whether the values can be data of ``bits`` scaled to 16 bits, by a shift or in proportion."""
    steps = image >> np.uint16(16 - bits)
    by_shift = steps << np.uint16(16 - bits)
    in_proportion = (steps * (_FULL / ((1 << bits) - 1))).round()
    return bool(((image == by_shift) | (image == in_proportion)).all())


def _significant_bits(head: bytes) -> int | None:
    """Return the largest number in PNG's sBIT chunk, which comes before the pixels."""
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
    """Return the bits of data whose largest value is ``largest``.

    None for 0 and for 65535, which many programs write regardless of the data.
    """
    return largest.bit_length() if 0 < largest < _FULL else None
