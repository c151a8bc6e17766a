"""Files are written whole or not at all, and only regular files are opened."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from detector.core.errors import InputError
from detector.core.files import (
    atomic_write,
    link_or_copy,
    read_json,
    read_short_text,
    remove_abandoned,
    require_regular,
    write_text,
)
from detector.core.xml_files import parse_xml
from detector.data.images import read_image, stored_view

Reader = Callable[[Path], object]
READERS: tuple[Reader, ...] = (
    read_image,
    stored_view,
    parse_xml,
    read_json,
    lambda path: read_short_text(path, "the list"),
)


def test_regular_files_and_links_to_them_pass(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    require_regular(tmp_path / "file")
    require_regular(tmp_path / "link")


@pytest.mark.parametrize("read", READERS)
def test_no_reader_waits_for_a_named_pipe(tmp_path: Path, read: Reader) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(InputError, match=rf"{name}: .*is a named pipe"):
            read(tmp_path / name)


@pytest.mark.parametrize("read", READERS)
def test_every_other_kind_is_named(tmp_path: Path, read: Reader) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(InputError, match="is a socket"):
            read(tmp_path / "s")
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"/dev/zero: .*is a device"):
        read(Path("/dev/zero"))
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "missing")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("a\0b", "n" * 300, "circle"):
        with pytest.raises(InputError, match="cannot open the file"):
            read(tmp_path / name)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_changes_when_the_block_ends(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "made" / "file"
    with atomic_write(path, durable=durable) as file:
        file.write(b"old")
        assert not path.exists()
    with atomic_write(path, "w", durable=durable) as file:
        file.write("new \udc80\n")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new \\udc80\n"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def _full_disk(file: IO[bytes], *, within_torch: bool) -> None:
    """Fail as a full disk does, or as torch.save then does: with an error of its own."""
    file.write(b"half")
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        if not within_torch:
            raise
        fault = RuntimeError("unexpected pos 64 vs 0")
        fault.__context__ = error
        raise fault from None


@pytest.mark.parametrize("within_torch", [False, True])
def test_a_full_disk_is_one_clear_error(tmp_path: Path, within_torch: bool) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    message = r"file: cannot write the file: No space left on device; free space"
    with pytest.raises(InputError, match=message), atomic_write(path) as file:
        _full_disk(file, within_torch=within_torch)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("fault"), InputError("wrong")], ids=repr)
def test_other_errors_pass_and_leave_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, atomic_write(tmp_path / "file"):
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no folder")
    with pytest.raises(InputError, match=r"text/file: cannot write the file: (Not a directory|File exists)"):
        write_text(tmp_path / "text" / "file", "")


def test_a_link_stays_when_its_source_goes(tmp_path: Path) -> None:
    source, target = tmp_path / "step_4.pt", tmp_path / "best.pt"
    source.write_bytes(b"four")
    target.write_bytes(b"older")
    link_or_copy(source, target)
    assert source.samefile(target)
    link_or_copy(source, target)  # again: nothing to do, and no temporary file stays
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "step_4.pt"}
    source.unlink()
    assert target.read_bytes() == b"four"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK])
def test_a_copy_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "step_4.pt").write_bytes(b"four")
    link_or_copy(tmp_path / "step_4.pt", tmp_path / "best.pt")
    assert (tmp_path / "best.pt").read_bytes() == b"four"
    assert not (tmp_path / "step_4.pt").samefile(tmp_path / "best.pt")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_fails_leaves_the_older_file(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"older")
    with pytest.raises(InputError, match=r"best\.pt: cannot write the file: .*step_4\.pt"):
        link_or_copy(tmp_path / "step_4.pt", tmp_path / "best.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
    assert (tmp_path / "best.pt").read_bytes() == b"older"


def test_temporary_files_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead = (".index.npy.7.tmp", ".index.npy.123456.tmp")
    others = ("index.npy.7.tmp", ".other.npy.7.tmp", ".index.npy.x.tmp", "index.npy", ".index.npy.tmp")
    for name in (*dead, *others):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / ".index.npy.8.tmp")
    (tmp_path / ".index.npy.9.tmp").symlink_to("index.npy")
    with atomic_write(tmp_path / "index.npy") as file:
        file.write(b"new")
        remove_abandoned(tmp_path, "index.npy".__eq__)
    assert (tmp_path / "index.npy").read_bytes() == b"new"
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {*others, ".index.npy.8.tmp", ".index.npy.9.tmp"}
    remove_abandoned(tmp_path / "missing", "index.npy".__eq__)
