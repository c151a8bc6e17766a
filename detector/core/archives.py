"""Unpack archives of other people: nothing outside the folder, no links or devices, no more than announced.

Every member is checked before the first one is written. Tar files go through Python's own filter "data" as
well.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from detector.core.catalogue import ANY_FOLDER
from detector.core.errors import InputError
from detector.core.files import require_regular
from detector.core.progress import ReportProgress

MAX_MEMBERS = 500_000
"""An archive with more members is refused; COCO's largest has 118,288."""

_CHUNK = 1 << 20
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
)


class _Member(NamedTuple):
    name: str
    size: int
    is_folder: bool
    is_file: bool
    source: tarfile.TarInfo | zipfile.ZipInfo


def unpack(
    archive: Path, folder: Path, places: Sequence[tuple[str, str]], most: int, report: ReportProgress
) -> None:
    """Write the members of ``archive``, a .tar or .zip, below the existing ``folder``.

    ``places`` says where a member belongs, see `detector.core.catalogue.Archive`; others are left out. Files
    that exist are written again. ``most`` is the number of bytes that all members may have together.
    ``report`` is called with the number of members done and of all.

    Raises:
        InputError: the archive is damaged, or a member (also one that is left out) leads out of the folder,
            is neither a file nor a folder, is encrypted, or has the same place as another; there are more
            than `MAX_MEMBERS` members or ``most`` bytes; or the files cannot be written.
    """
    require_regular(archive)
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as opened:
                targets = _targets(archive, _zip_members(archive, opened), places, most)
                for number, (member, target) in enumerate(targets, start=1):
                    with opened.open(member.source) as source:  # type: ignore[arg-type]
                        _write(source, folder / target)
                    report(number, len(targets))
        else:
            with tarfile.open(archive, "r:") as opened_tar:
                targets = _targets(archive, _tar_members(opened_tar), places, most)
                for number, (member, target) in enumerate(targets, start=1):
                    _extract(opened_tar, member, folder, target)
                    report(number, len(targets))
    except _DAMAGE as error:
        raise InputError(
            f"{archive}: the archive is damaged: {error}; remove it, and download it again"
        ) from None
    except OSError as error:
        raise InputError(
            f"{archive}: cannot be unpacked into {folder}: {error.strerror or error}; free space on the "
            "disk, and call the command again"
        ) from None


def _targets(
    archive: Path, members: Iterator[_Member], places: Sequence[tuple[str, str]], most: int
) -> list[tuple[_Member, str]]:
    """Return the files to write, each with its path below the folder, after checking every member."""
    targets: dict[str, _Member] = {}
    bytes_in_all = 0
    for number, member in enumerate(members, start=1):
        _check(archive, member)
        bytes_in_all += member.size
        if number > MAX_MEMBERS or bytes_in_all > most:
            raise InputError(
                f"{archive}: refused: it holds more than {MAX_MEMBERS} members or {most} bytes, which this "
                "archive cannot have; remove it, and download it again"
            )
        target = None if member.is_folder else _place(member.name, places)
        if target is not None and targets.setdefault(target, member) is not member:
            raise _refusal(archive, member, "its place is that of another member")
    return [(member, target) for target, member in targets.items()]


def _place(name: str, places: Sequence[tuple[str, str]]) -> str | None:
    for beginning, target in places:
        if beginning.startswith(ANY_FOLDER):
            beginning = f"{name.partition('/')[0]}/{beginning.removeprefix(ANY_FOLDER)}"
        if name.startswith(beginning):
            return target + name.removeprefix(beginning)
    return None


def _check(archive: Path, member: _Member) -> None:
    if not (member.is_file or member.is_folder):
        raise _refusal(archive, member, "it is neither a file nor a folder")
    path = PurePosixPath(member.name)
    unsafe = path.is_absolute() or ".." in path.parts or not path.parts
    if unsafe or any(character in member.name for character in "\\:\0"):
        raise _refusal(archive, member, "its name may lead out of the folder")


def _refusal(archive: Path, member: _Member, reason: str) -> InputError:
    return InputError(
        f"{archive}: refused: member {member.name!r:.120}: {reason}; nothing was unpacked. Remove the "
        "archive, and get it from its publisher"
    )


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
        folder = info.filename.endswith("/")  # `is_dir` fails for an empty name
        plain = kind in (0, stat.S_IFDIR if folder else stat.S_IFREG)
        member = _Member(info.filename, info.file_size, folder and plain, plain and not folder, info)
        # zipfile itself would turn what follows a null character, and backslashes, into other names
        if info.orig_filename != info.filename:
            raise _refusal(archive, member, "its name may lead out of the folder")
        if info.flag_bits & _ENCRYPTED or info.compress_type not in _PACKINGS:
            raise _refusal(archive, member, "it is encrypted or packed in an unusual way")
        yield member


def _tar_members(opened: tarfile.TarFile) -> Iterator[_Member]:
    for info in opened:
        yield _Member(info.name, info.size, info.isdir(), info.isreg(), info)


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while data := source.read(_CHUNK):  # at the end zipfile compares the CRC
            file.write(data)


def _extract(opened: tarfile.TarFile, member: _Member, folder: Path, target: str) -> None:
    assert isinstance(member.source, tarfile.TarInfo)
    opened.extract(member.source.replace(name=target, deep=False), folder, filter="data")
