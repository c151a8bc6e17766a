"""Files of numpy: an ``.npz`` archive with one array per image, or a folder with one ``.npy`` file per image.

An array holds boxes (P, 4), or (P, 5) with the score last. The key in the archive, or the path in the folder
without its suffix, is the image id.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.proposals.npy import read_header
from detector.proposals.readers.raw_images import (
    ALWAYS_ALLOWED,
    MAX_BOXES,
    MAX_RATIO,
    RawImage,
    RawImages,
    clear_errors,
    files_of,
    image_place,
    raw_image,
)

MAX_ARRAY_BYTES = MAX_BOXES * 5 * 8 + 10_240
"""The numbers of one image in a file: five columns of the widest type, and a header."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, struct.error)


def read_npz(source: Path) -> RawImages:
    """Return the images of the archive ``source``, one in memory at a time.

    Raises InputError for a damaged archive, for one that unpacks to more than ``MAX_RATIO`` times its size,
    and for members that are not boxes.
    """
    with clear_errors(source, ".npz archive", *_ERRORS), zipfile.ZipFile(source) as archive:
        _check_sizes(source, archive.infolist())
        return RawImages([_key(member) for member in archive.infolist()], _images(source))


def _images(source: Path) -> Iterator[RawImage]:
    with clear_errors(source, ".npz archive", *_ERRORS), zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            where = image_place(source, _key(member))
            with archive.open(member) as file:
                array = read_array(file, member.file_size, where)
                yield raw_image(_key(member), array, "xyxy", where)


def _key(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _check_sizes(source: Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(member.file_size for member in members)
    if total > max(ALWAYS_ALLOWED, MAX_RATIO * source.stat().st_size):
        raise InputError(f"{source} unpacks to {total} bytes, over {MAX_RATIO} times its size; it is refused")
    for member in members:
        if not member.filename.endswith(".npy"):
            raise InputError(f"{source} holds {member.filename!r}, which is not an array; leave it out")
        if member.compress_type not in _METHODS:
            raise InputError(f"{source}: {member.filename!r} is compressed in a way numpy does not use")
        if member.file_size > MAX_ARRAY_BYTES:
            raise InputError(
                f"{source}: {member.filename!r} has {member.file_size} bytes; one image holds at most "
                f"{MAX_BOXES} boxes"
            )


def read_npy_folder(folder: Path) -> RawImages:
    """Return the images of a folder of ``<id>.npy``: (P, 4) boxes or (P, 5) with the score last."""
    files = files_of(folder, ".npy")
    images = (raw_image(key, _read_npy(path), "xyxy", str(path)) for key, path in files)
    return RawImages([key for key, _ in files], images)


def _read_npy(path: Path) -> NDArray[Any]:
    with clear_errors(path, ".npy file"):
        if (size := path.stat().st_size) > MAX_ARRAY_BYTES:
            raise InputError(f"{path} has {size} bytes; one image holds at most {MAX_BOXES} boxes")
        with path.open("rb") as file:
            return read_array(file, size, str(path))


def read_array(file: IO[bytes], declared: int, where: str) -> NDArray[Any]:
    """Read one ``.npy`` file of ``declared`` bytes; ``where`` names file and image.

    Its shape is compared with ``declared`` before memory is allocated. Raises InputError for a damaged file
    and for other content than numbers: Python objects would have to be unpickled.
    """
    try:
        header = read_header(file)
    except (ValueError, EOFError) as error:
        raise InputError(f"{where}: no readable array ({error})") from error
    if header.dtype.kind not in "iuf":
        raise InputError(f"{where}: holds {header.dtype} and not plain numbers")
    length = header.data_bytes
    if len(header.shape) > 2 or length > MAX_ARRAY_BYTES or max(header.shape, default=0) > MAX_BOXES:
        raise InputError(f"{where}: expected shape (P, 4) or (P, 5), not {header.shape}")
    if length > declared:
        raise InputError(f"{where}: announces {length} bytes of boxes and has {declared}")
    data = file.read(length)
    if len(data) != length:
        raise InputError(f"{where}: ends after {len(data)} of {length} bytes")
    return np.frombuffer(data, header.dtype).reshape(header.shape, order="F" if header.fortran_order else "C")
