"""``.npz``: key = image id, value = (P, 4) boxes or (P, 5) with the score last."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from detector.errors import InputError
from detector.proposals.readers.arrays import (
    MAX_ARRAY_BYTES,
    MAX_BOXES,
    RawImage,
    image_place,
    raw_image,
    read_array,
)

# Boxes compress to a third at best; a bomb shrinks a thousandfold.
MAX_RATIO = 100
_ALWAYS_ALLOWED = 64 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes


def read_npz(source: Path) -> Iterator[RawImage]:
    """Yield the images of the archive ``source``, one in memory at a time.

    Raises InputError for a damaged archive, for one that unpacks to more than ``MAX_RATIO`` times its size,
    and for members that are not boxes.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            _check_sizes(source, archive.infolist())
            for member in archive.infolist():
                key = member.filename.removesuffix(".npy")
                where = image_place(source, key)
                with archive.open(member) as file:
                    yield raw_image(key, read_array(file, member.file_size, where), "xyxy", where)
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
