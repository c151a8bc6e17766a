"""The zip archive around a file of ``torch.save``: whole, uncompressed, with right checksums.

torch reads an archive without comparing its checksums, and inflates whatever is compressed in it.
"""

from __future__ import annotations

import itertools
import struct
import zipfile
from typing import BinaryIO

_END, _END_64, _LOCATOR = 22, 56, 20
"""Bytes of the records at the end of an archive."""
MAX_MEMBERS = 200_000
_CHUNK = 1 << 22
_ENCRYPTED = 0x1


class DamagedFile(ValueError):
    """The bytes of a file are not what ``torch.save`` writes; the message says how, without the file."""


def checked_members(file: BinaryIO) -> dict[str, int]:
    """Return the bytes of each member of the archive ``file`` by its name, without the folder in front.

    Reads the whole file once. What the archive's index says has to agree with the places at which its parts
    lie, so that all readers of zip files see the same members.

    Raises:
        DamagedFile: cut off; a checksum, an offset or a name that does not agree; or members that would grow
            when they are read, which torch.save does not write.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_end(file, archive, len(members))
            _check_packing(members)
            for member in members:
                with archive.open(member) as content:
                    while content.read(_CHUNK):  # the last read compares the checksum
                        pass
    except (DamagedFile, MemoryError):
        raise
    except Exception as error:  # zipfile raises many kinds for damaged archives
        raise DamagedFile(f"{error!s:.200}") from None
    return _by_name(members)


def read_member(file: BinaryIO, name: str) -> bytes:
    """Return the content of a member whose archive `checked_members` has found in order."""
    with zipfile.ZipFile(file) as archive:
        return archive.read(f"{archive.namelist()[0].partition('/')[0]}/{name}")


def _check_end(file: BinaryIO, archive: zipfile.ZipFile, count: int) -> None:
    """Refuse an index that is not where its own records say, at the end of the file."""
    size = file.seek(0, 2)
    tail = _read(file, max(size - _END - _LOCATOR - _END_64, 0), size)
    end = struct.unpack("<4s4H2LH", tail[-_END:])
    if end[0] != b"PK\5\6" or end[7]:
        raise DamagedFile("the file does not end where its archive does")
    entries, length, start, behind = end[4], end[5], end[6], size - _END
    locator = tail[-_END - _LOCATOR : -_END]
    if locator[:4] == b"PK\6\7":
        behind -= _LOCATOR + _END_64
        wide = struct.unpack("<4sQ2H2L4Q", tail[-_END - _LOCATOR - _END_64 : -_END - _LOCATOR])
        entries, length, start = wide[7], wide[8], wide[9]
        if wide[0] != b"PK\6\6" or struct.unpack("<LQL", locator[4:])[1] != behind:
            raise DamagedFile("the records at the archive's end do not agree")
    if archive.start_dir != start or start + length != behind or entries != count:
        raise DamagedFile("the archive's index is not where it should be")


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _check_packing(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise DamagedFile(f"an archive of {len(members)} parts; over {MAX_MEMBERS} is refused")
    for member in members:
        if member.flag_bits & _ENCRYPTED:
            raise DamagedFile("its archive is encrypted")
        if member.compress_type != zipfile.ZIP_STORED:
            raise DamagedFile("its archive is compressed, which torch.save never does")
        if member.compress_size != member.file_size:
            raise DamagedFile("the sizes in the archive's index do not agree")
    ordered = sorted(members, key=lambda member: member.header_offset)
    for before, after in itertools.pairwise(ordered):
        if before.header_offset + before.file_size > after.header_offset:
            raise DamagedFile("parts of the archive overlap")


def _by_name(members: list[zipfile.ZipInfo]) -> dict[str, int]:
    """Return the sizes by name; torch takes the folder of the first member for all, whatever the case."""
    folder = members[0].filename.partition("/")[0] + "/" if members else ""
    found = {member.filename.removeprefix(folder): member.file_size for member in members}
    if len({name.casefold() for name in found}) != len(members):
        raise DamagedFile("two parts of the archive have the same name")
    if any(not member.filename.startswith(folder) for member in members):
        raise DamagedFile("the parts of the archive lie in different folders")
    return found
