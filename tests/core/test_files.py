"""Only regular files are opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from detector.core.errors import InputError
from detector.core.files import read_json, read_short_text, require_regular
from detector.data.images import read_image, stored_view
from detector.data.voc.xml import parse_xml

READERS = (read_image, stored_view, parse_xml, read_json, lambda path: read_short_text(path, "the list"))


def test_regular_files_and_links_to_them_pass(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    require_regular(tmp_path / "file")
    require_regular(tmp_path / "link")


@pytest.mark.parametrize("read", READERS)
def test_no_reader_waits_for_a_named_pipe(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(InputError, match=rf"{name}: .*is a named pipe"):
            read(tmp_path / name)


@pytest.mark.parametrize("read", READERS)
def test_every_other_kind_is_named(tmp_path: Path, read) -> None:
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
