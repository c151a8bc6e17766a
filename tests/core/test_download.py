"""Downloads from a server on this machine: whole, broken off, slow, wrong, refused, redirected, shared."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.client import BadStatusLine
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np
import pytest
from torchvision.datasets.utils import calculate_md5

from detector.core import download
from detector.core.catalogue import PublishedFile
from detector.core.download import Unavailable, fault_of, fetch, require_space
from detector.core.errors import InputError
from tests.conftest import PROJECT
from tests.web import Web, serving

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("no_proxy", "*")
    with serving(file__bin=CONTENT) as server:
        yield server


def published(web: Web, *names: str, **changes: Any) -> PublishedFile:
    urls = tuple(map(web.url, names or ("file.bin",)))
    values: dict[str, Any] = {"size": len(CONTENT), "checksum": MD5, "page": "https://example.org/page"}
    return PublishedFile(name="file.bin", urls=urls, **(values | changes))


def only_file(folder: Path) -> str:
    (path,) = folder.iterdir()
    return path.name


def test_a_file_arrives_under_its_name_alone_and_is_not_asked_for_again(web: Web, tmp_path: Path) -> None:
    target = tmp_path / "below" / "file.bin"
    assert fetch(published(web), target) == target
    assert target.read_bytes() == CONTENT
    assert only_file(target.parent) == "file.bin"
    assert fetch(published(web), target) == target
    assert web.bytes_asked_from() == [None]


def test_a_broken_connection_is_continued_where_it_broke(web: Web, tmp_path: Path) -> None:
    web.breaks = [100_000, 50_000, 0, 0, 1]
    fetch(published(web), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    starts = [100_000, 150_000, 150_000, 150_000, 150_001]
    assert web.bytes_asked_from() == [None, *(f"bytes={start}-" for start in starts)]


def test_a_server_that_refuses_ranges_sends_all_again(web: Web, tmp_path: Path) -> None:
    web.ranges, web.breaks = False, [200_000, 250_000]
    fetch(published(web), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(web.asked) == 3


@pytest.mark.parametrize("checksum", [MD5, None], ids=["checksum", "none"])
def test_a_file_that_has_changed_meanwhile_is_not_mixed_with_its_old_bytes(
    web: Web, tmp_path: Path, checksum: str | None
) -> None:
    web.files["file.bin"], web.etag = bytes(300_000), '"old"'
    web.breaks = [120_000, *[0] * download.TRIES]
    with pytest.raises(Unavailable):
        fetch(published(web, checksum=checksum), tmp_path / "file.bin")
    assert (tmp_path / "file.bin.part").stat().st_size == 120_000
    web.files["file.bin"], web.etag = CONTENT, '"new"'
    fetch(published(web, checksum=checksum), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_without_etag_a_mixture_is_noticed_and_downloaded_again(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(bytes(1000))
    web.etag = None
    fetch(published(web), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert web.bytes_asked_from() == ["bytes=1000-", None]


def test_without_etag_and_checksum_nothing_is_continued(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(bytes(1000))
    web.etag = None
    fetch(published(web, checksum=None), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert web.bytes_asked_from() == [None]


def test_an_unknown_size_and_length_are_no_obstacle(web: Web, tmp_path: Path) -> None:
    web.length = False
    fetch(published(web, size=None, about=1 << 20), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_that_is_complete_is_only_verified(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(published(web), tmp_path / "file.bin")
    assert not web.asked
    (tmp_path / "file.bin").unlink()
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(published(web, size=None), tmp_path / "file.bin")  # the server answers 416: begin again
    assert web.bytes_asked_from() == [f"bytes={len(CONTENT)}-", None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_the_wrong_part_of_the_file_is_not_written(web: Web, tmp_path: Path) -> None:
    web.breaks, web.first_byte = [1000], 7
    fetch(published(web), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert web.bytes_asked_from() == [None, "bytes=1000-", None]


def test_wrong_bytes_are_refused_and_not_kept(web: Web, tmp_path: Path) -> None:
    wrong = bytearray(CONTENT)
    wrong[200_000] ^= 1
    web.files["file.bin"] = bytes(wrong)
    with pytest.raises(Unavailable) as caught:
        fetch(published(web), tmp_path / "file.bin")
    said = str(caught.value)
    digest = hashlib.md5(wrong).hexdigest()
    assert f"not the published file: its MD5 begins with {digest} instead of {MD5[4:]}" in said
    assert f"by hand from https://example.org/page and put it at {tmp_path / 'file.bin'}" in said
    assert not (tmp_path / "file.bin").exists()
    web.files["file.bin"] = CONTENT
    fetch(published(web), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_second_address_is_tried(web: Web, tmp_path: Path) -> None:
    web.files |= {"wrong.bin": b"x" * len(CONTENT), "short.bin": b"<html>login</html>"}
    web.redirects["away"] = "ftp://127.0.0.1/file.bin"
    file = published(web, "gone.bin", "short.bin", "wrong.bin", "away", "file.bin")
    fetch(file, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    with pytest.raises(Unavailable) as caught:
        fetch(published(web, *(url.rpartition("/")[2] for url in file.urls[:-1])), tmp_path / "again.bin")
    for reason in ("answered 404", "offers 18 bytes instead of 300000", "its MD5", "is not followed"):
        assert reason in str(caught.value)


def test_redirections_are_followed(web: Web, tmp_path: Path) -> None:
    web.redirects |= {"first": "/second", "second": web.url("file.bin")}
    web.breaks = [5000]
    fetch(published(web, "first"), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [span for path, span in web.asked if path == "file.bin"] == [None, "bytes=5000-"]


def test_an_encrypted_connection_is_not_left() -> None:
    request = download.urllib.request.Request("https://example.org/a")
    with pytest.raises(download._Refused, match="not followed"):
        download._Redirects().redirect_request(request, None, 302, "", {}, "http://example.org/a")


def test_an_overloaded_server_is_asked_again_with_growing_pauses(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    monkeypatch.setattr(download, "FIRST_WAIT", 1.0)
    web.statuses = [503, 429, 500]
    fetch(published(web), tmp_path / "file.bin")
    assert [wait for wait in waits if wait] == [1.0, 2.0, 4.0]
    web.statuses = [502] * 20
    with pytest.raises(Unavailable, match=f"answered 502 Bad Gateway, {download.TRIES} times in a row"):
        fetch(published(web), tmp_path / "other.bin")
    assert not list(tmp_path.glob("other*"))


def test_a_server_that_says_nothing_counts_as_broken(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    monkeypatch.setattr(download, "TRIES", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"
        with pytest.raises(Unavailable, match="no answer: timed out, 2 times in a row"):
            fetch(_at(url), tmp_path / "file.bin")


def _at(url: str) -> PublishedFile:
    return PublishedFile(name="file.bin", urls=(url,), page="page", checksum=MD5)


def test_a_connection_that_brings_almost_nothing_is_made_again(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SLOW_FOR", 0.02)
    monkeypatch.setattr(download, "SLOWEST", 10**6)
    web.files["file.bin"], web.pause = CONTENT[:10_000], 0.02
    file = published(web, size=10_000, checksum=None)
    fetch(file, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[:10_000]
    first, second, *_ = web.bytes_asked_from()
    assert first is None
    assert second is not None


def test_a_slow_server_is_waited_for(web: Web, tmp_path: Path) -> None:
    web.pause = 0.0005
    fetch(published(web), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_more_bytes_than_the_file_can_have_are_not_taken(web: Web, tmp_path: Path) -> None:
    web.length, web.files["file.bin"] = False, CONTENT * 3
    with pytest.raises(Unavailable, match="sends more than 300000 bytes"):
        fetch(published(web), tmp_path / "file.bin")


class Fault(NamedTuple):
    error: Exception
    again: bool
    says: str


@pytest.mark.parametrize(
    "fault",
    [
        Fault(URLError(socket.gaierror(-2, "Name or service not known")), False, "cannot be reached"),
        Fault(URLError(OSError(errno.ENETUNREACH, "Network is unreachable")), False, "cannot be reached"),
        Fault(URLError(ConnectionRefusedError(111, "Connection refused")), True, "no answer: Connection"),
        Fault(BadStatusLine("garbage"), True, "no answer: garbage"),
        Fault(ValueError("invalid literal for int()"), False, "cannot be reached: invalid literal"),
        Fault(URLError(ssl.SSLCertVerificationError(1, "bad")), False, "its certificate is not valid"),
    ],
    ids=lambda fault: type(getattr(fault.error, "reason", fault.error)).__name__,
)
def test_only_what_may_pass_is_tried_again(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    tries = 0

    class Opener:
        def open(self, *_: object, **__: object) -> None:
            nonlocal tries
            tries += 1
            raise fault.error

    if isinstance(reason := getattr(fault.error, "reason", None), ssl.SSLCertVerificationError):
        reason.verify_message = "self-signed"
    monkeypatch.setattr(download.urllib.request, "build_opener", lambda *_: Opener())
    with pytest.raises(Unavailable, match=fault.says):
        fetch(published(web), tmp_path / "file.bin")
    assert tries == (download.TRIES if fault.again else 1)
    assert not list(tmp_path.iterdir())


def test_a_file_put_there_by_hand_is_taken_if_it_is_the_published_one(web: Web, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(CONTENT)
    fetch(published(web), target)
    target.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=r"not the published file: it has 299999 bytes instead of 300000"):
        fetch(published(web), target)
    target.write_bytes(CONTENT[:-1] + b"\0")
    with pytest.raises(InputError, match=r"its MD5 begins with .* remove it, and it is downloaded again"):
        fetch(published(web), target)
    assert not web.asked


def test_checksums_are_those_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    for checksum in (f"md5:{calculate_md5(path)}", f"sha256:{hashlib.sha256(CONTENT).hexdigest()[:8]}"):
        file = PublishedFile(name="file.bin", urls=(), page="", checksum=checksum)
        assert fault_of(file, path) is None
        path.write_bytes(CONTENT[::-1])
        assert fault_of(file, path)
        path.write_bytes(CONTENT)


def test_a_disk_with_too_little_space_is_noticed_first(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": download.RESERVE + len(CONTENT) - 1})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"file\.bin needs 68 MB on the disk of .*, which has 67 MB free"):
        fetch(published(web), tmp_path / "file.bin")
    assert not web.asked
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1])  # one byte less is needed
    fetch(published(web), tmp_path / "file.bin")
    require_space(tmp_path / "not" / "yet", 0, "nothing")


def test_a_full_disk_loses_nothing(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdopen

    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: memoryview) -> int:
            if self._file.tell() + len(data) > 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return int(self._file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(download.os, "fdopen", lambda *a, **k: Full(real(*a, **k)))
    monkeypatch.setattr(download, "_CHUNK", 1 << 14)
    with pytest.raises(
        InputError, match=r"file\.bin\.part: cannot write: No space left on device; free space"
    ):
        fetch(published(web), tmp_path / "file.bin")
    assert 0 < (tmp_path / "file.bin.part").stat().st_size <= 100_000
    monkeypatch.undo()
    fetch(published(web), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_two_that_want_the_same_file_download_it_once(web: Web, tmp_path: Path) -> None:
    web.pause = 0.0005
    done: list[Path] = []
    threads = [
        threading.Thread(target=lambda: done.append(fetch(published(web), tmp_path / "file.bin")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert done == [tmp_path / "file.bin"] * 3
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(web.asked) == 1
    assert only_file(tmp_path) == "file.bin"


def test_something_else_in_the_place_of_the_part_is_refused(web: Web, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file.bin.part")
    with pytest.raises(InputError, match="named pipe"):
        fetch(published(web), tmp_path / "file.bin")
    (tmp_path / "file.bin.part").unlink()
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "file.bin.part").symlink_to("elsewhere")
    with pytest.raises(InputError, match="cannot be written"):
        fetch(published(web), tmp_path / "file.bin")
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


KILLED = """
    import sys
    from pathlib import Path
    from detector.core.catalogue import PublishedFile
    from detector.core.download import fetch
    url, target, checksum = sys.argv[1:]
    fetch(PublishedFile(name="file.bin", urls=(url,), page="", checksum=checksum), Path(target))
"""


def test_a_killed_download_is_continued_by_the_next_process(web: Web, tmp_path: Path) -> None:
    web.pause = 0.01
    target = tmp_path / "file.bin"
    part = tmp_path / "file.bin.part"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), web.url("file.bin"), str(target), MD5], cwd=PROJECT
    )
    for _ in range(1000):
        if part.exists() and part.stat().st_size > 20_000:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    web.pause = 0.0
    arrived = part.stat().st_size
    assert 20_000 < arrived < len(CONTENT)
    assert not target.exists()
    fetch(published(web), target)
    assert target.read_bytes() == CONTENT
    assert web.bytes_asked_from() == [None, f"bytes={arrived}-"]
    assert only_file(tmp_path) == "file.bin"
