"""Unpacking: the files of good archives, and refusal of those that are made to do harm."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.core import archives
from detector.core.archives import unpack
from detector.core.errors import InputError

PHOTO = np.random.default_rng(0).bytes(3000)
FILES = {"set/2007/JPEGImages/1.jpg": PHOTO, "set/2007/list.txt": b"1\n", "set/readme": b"not wanted"}
PLACES = (("set/2007/JPEGImages/", "images/"), ("set/2007/", ""))
Write = Callable[[Path, dict[str, bytes]], Path]


def write_tar(path: Path, files: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for info in [*(tar_info(name, type=tarfile.DIRTYPE) for name in ("set", "set/2007")), *more]:
            archive.addfile(info)
        for name, content in files.items():
            archive.addfile(tar_info(name, size=len(content)), io.BytesIO(content))
    return path


def tar_info(name: str, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def write_zip(path: Path, files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.mkdir("set")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


each_kind = pytest.mark.parametrize(
    ("name", "write"), [("a.tar", write_tar), ("a.zip", write_zip)], ids=["tar", "zip"]
)


def call(archive: Path, folder: Path, places: Any = PLACES, most: int = 10_000) -> list[tuple[int, int]]:
    reports: list[tuple[int, int]] = []
    unpack(archive, folder, places, most, lambda done, total: reports.append((done, total)))
    return reports


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


@each_kind
def test_files_are_written_where_they_belong(tmp_path: Path, folder: Path, name: str, write: Write) -> None:
    archive = write(tmp_path / name, FILES)
    assert call(archive, folder) == [(1, 2), (2, 2)]
    assert content(folder) == {"images/1.jpg": PHOTO, "list.txt": b"1\n"}
    (folder / "list.txt").write_bytes(b"half of a kil")
    call(archive, folder)  # after a kill all is written again
    assert content(folder) == {"images/1.jpg": PHOTO, "list.txt": b"1\n"}


@each_kind
@pytest.mark.parametrize(
    "evil",
    [
        "../outside", "/tmp/outside", "set/2007/../../outside", "set/2007/a/../../../../outside",
        "set\\..\\outside", "C:/outside", "set/2007/C:outside", "..",
    ],
)  # fmt: skip
def test_names_that_lead_out_are_refused_before_anything_is_written(
    tmp_path: Path, folder: Path, name: str, write: Write, evil: str
) -> None:
    archive = write(tmp_path / name, {**FILES, evil: b"evil"})
    with pytest.raises(
        InputError, match=r"refused: member .*: its name may lead out of the folder; nothing was"
    ):
        call(archive, folder)
    assert content(folder) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "target"])


def test_an_empty_name_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="may lead out of the folder"):
        call(write_tar(tmp_path / "a.tar", {"": b"evil"}), folder)
    archive = write_zip(tmp_path / "a.zip", {"~": b"evil"}, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"~", b"\0"))  # which zipfile reads as an empty name
    with pytest.raises(InputError, match="may lead out of the folder"):
        call(archive, folder)


@pytest.mark.parametrize(
    "info",
    [
        tar_info("set/2007/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        tar_info("set/2007/link", type=tarfile.SYMTYPE, linkname="list.txt"),
        tar_info("set/2007/hard", type=tarfile.LNKTYPE, linkname="set/2007/list.txt"),
        tar_info("set/2007/device", type=tarfile.CHRTYPE, devmajor=1, devminor=8),
        tar_info("set/2007/disk", type=tarfile.BLKTYPE, devmajor=8),
        tar_info("set/2007/pipe", type=tarfile.FIFOTYPE),
        tar_info("elsewhere/link", type=tarfile.SYMTYPE, linkname="/"),
    ],
    ids=lambda info: f"{info.name}-{info.linkname}",
)
def test_links_and_devices_in_tar_files_are_refused(
    tmp_path: Path, folder: Path, info: tarfile.TarInfo
) -> None:
    archive = write_tar(tmp_path / "a.tar", FILES, info)
    with pytest.raises(InputError, match="it is neither a file nor a folder"):
        call(archive, folder)
    assert content(folder) == {}


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_zip_files_are_refused(tmp_path: Path, folder: Path, mode: int) -> None:
    archive = write_zip(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(archive, "a") as opened:
        info = zipfile.ZipInfo("set/2007/link")
        info.create_system, info.external_attr = 3, (mode | 0o777) << 16
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="it is neither a file nor a folder"):
        call(archive, folder)
    assert content(folder) == {}


def test_a_name_that_zipfile_would_cut_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"set/2007/list.txt_evil": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"list.txt_evil", b"list.txt\0evil"))
    with pytest.raises(InputError, match="may lead out"):
        call(archive, folder)


@each_kind
def test_bombs_are_refused(
    tmp_path: Path, folder: Path, name: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = write(tmp_path / name, {**FILES, "set/2007/zeros": bytes(100_000), "other": bytes(1 << 22)})
    with pytest.raises(InputError, match="more than 500000 members or 200000 bytes"):
        call(large, folder, most=200_000)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 4)
    with pytest.raises(InputError, match="more than 4 members"):
        call(large, folder, most=10**9)
    assert content(folder) == {}


def test_a_member_larger_than_it_says_is_not_written(tmp_path: Path, folder: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"set/2007/zeros": bytes(100_000)})
    data = archive.read_bytes()
    archive.write_bytes(data.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(InputError, match="the archive is damaged: Bad CRC-32"):
        call(archive, folder)
    assert sum(map(len, content(folder).values())) <= 10


@each_kind
def test_two_members_with_the_same_place_are_refused(
    tmp_path: Path, folder: Path, name: str, write: Write
) -> None:
    archive = write(tmp_path / name, {"a/x": b"1", "b/x": b"2"})
    with pytest.raises(InputError, match="its place is that of another member"):
        call(archive, folder, places=(("a/", ""), ("b/", "")))


@each_kind
def test_damage_is_reported(tmp_path: Path, folder: Path, name: str, write: Write) -> None:
    whole = write(tmp_path / name, FILES).read_bytes()
    for damaged in (whole[: len(whole) // 4], b"", b"<html>" * 100):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{name}: the archive is damaged: .*download it again"):
            call(tmp_path / name, folder)


def test_a_flipped_bit_in_a_zip_file_is_noticed(tmp_path: Path, folder: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", FILES, zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[data.index(PHOTO) + 1000] ^= 1
    archive.write_bytes(data)
    with pytest.raises(InputError, match="Bad CRC-32"):
        call(archive, folder)


def test_encrypted_and_unusually_packed_members_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="encrypted or packed in an unusual way"):
        call(write_zip(tmp_path / "a.zip", FILES, zipfile.ZIP_LZMA), folder)
    archive = write_zip(tmp_path / "b.zip", {"set/2007/a": b"x"})
    data = bytearray(archive.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        call(archive, folder)


@each_kind
def test_a_file_in_the_way_is_an_error_of_the_user(
    tmp_path: Path, folder: Path, name: str, write: Write
) -> None:
    (folder / "images").write_bytes(b"in the way")
    with pytest.raises(InputError, match="cannot be unpacked into"):
        call(write(tmp_path / name, FILES), folder)
