"""``.npz``: key = image id, value = (P, 4) boxes or (P, 5) with the score last."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detector.core.errors import InputError
from detector.proposals.readers.arrays import (
    MAX_ARRAY_BYTES,
    MAX_BOXES,
    RawImage,
    RawImages,
    image_place,
    raw_image,
    read_array,
)

# Boxes compress to a third at best; a bomb shrinks a thousandfold.
MAX_RATIO = 100
_ALWAYS_ALLOWED = 64 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes


def read_npz(source: Path) -> RawImages:
    """Return the images of the archive ``source``, one in memory at a time.

    Raises InputError for a damaged archive, for one that unpacks to more than ``MAX_RATIO`` times its size,
    and for members that are not boxes.
    """
    with _clean_errors(source), zipfile.ZipFile(source) as archive:
        _check_sizes(source, archive.infolist())
        return RawImages([_key(member) for member in archive.infolist()], _images(source))


def _images(source: Path) -> Iterator[RawImage]:
    with _clean_errors(source), zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            where = image_place(source, _key(member))
            with archive.open(member) as file:
                array = read_array(file, member.file_size, where)
                yield raw_image(_key(member), array, "xyxy", where)


def _key(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


@contextmanager
def _clean_errors(source: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        RuntimeError,
        struct.error,
    ) as error:
        raise InputError(f"{source} is no readable .npz archive ({error})") from error


def _check_sizes(source: Path, members: list[zipfile.ZipInfo]) -> None:
    total = sum(member.file_size for member in members)
    if total > max(_ALWAYS_ALLOWED, MAX_RATIO * source.stat().st_size):
        raise InputError(f"{source} unpacks to {total} bytes, over {MAX_RATIO} times its size; it is refused")
    for member in members:
        if not member.filename.endswith(".npy"):
            raise InputError(f"{source} holds {member.filename!r}, which is no array; leave it out")
        if member.compress_type not in _METHODS:
            raise InputError(f"{source}: {member.filename!r} is packed in a way that numpy does not write")
        if member.file_size > MAX_ARRAY_BYTES:
            raise InputError(
                f"{source}: {member.filename!r} has {member.file_size} bytes; one image holds at most "
                f"{MAX_BOXES} boxes"
            )
