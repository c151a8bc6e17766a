"""Download one file: continued after a break, verified, and either complete under its name or not there.

Python's urllib does the transfer. `torchvision.datasets.utils.download_url` and
`torch.hub.download_url_to_file` begin again from zero after each break, and have no time limit; the first
also writes under the final name. Checksums are computed as `torchvision.datasets.utils.calculate_md5` does,
which knows only MD5.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import json
import math
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from detector.core.catalogue import MB, MIB, PublishedFile
from detector.core.errors import InputError
from detector.core.files import make_folder, require_regular, sync_folder, write_text
from detector.core.progress import ReportProgress, note, progress_bar

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
SLOWEST, SLOW_FOR = 1024, 60.0
"""A connection is also broken when over this many seconds it brings fewer bytes per second than this."""
TRIES = 5
"""Attempts in a row that bring nothing new before an address is given up."""
FIRST_WAIT = 1.0
"""Seconds before the second attempt; each further wait is twice as long."""
RESERVE = 64 * MIB
"""Bytes that must stay free on the disk."""
LARGE = 1 << 30
"""Bytes of a file whose checksum takes several seconds, so that a note says why nothing moves."""

_CHUNK = 1 << 18
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses after which another attempt makes sense."""
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EPERM}
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Unavailable(InputError):
    """No address gave the file; the message says why, where it can be had by hand, and where it belongs."""


class _Broken(Exception):
    """The connection ended too early or not at all; another attempt may go further."""


class _Refused(Exception):
    """This address does not have the file, or has another one."""


def fetch(file: PublishedFile, target: Path) -> Path:
    """Return ``target``, which holds ``file``: downloaded unless it is there already, and verified.

    What has arrived lies in ``target``.part, and a later call continues with it. Of several processes that
    want the same file, one downloads it, and the others wait.

    Raises:
        Unavailable: no address has the file.
        InputError: a file at ``target`` is not the published one, or the disk has no space.
    """
    if _is_verified(file, target):
        return target
    make_folder(target.parent)
    with held(target.with_name(f"{target.name}.part"), f"downloads {target.name}") as handle:
        part = _Part(target, handle)
        if _is_verified(file, target):  # another process has downloaded it meanwhile
            part.discard()
            return target
        require_space(target.parent, file.expected_bytes - part.size(), f"the download of {file.name}")
        with progress_bar(f"downloading {file.name} (MB)") as report:
            _download(file, part, report)
        part.finish()
    return target


def fault_of(file: PublishedFile, path: Path) -> str | None:
    """Return how the bytes of ``path`` differ from the published ``file``, None if nothing shows that."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size} bytes instead of {file.size}"
    if file.checksum is None:
        return None
    kind, _, expected = file.checksum.partition(":")
    with path.open("rb") as opened:
        actual = hashlib.file_digest(opened, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    if actual.startswith(expected):
        return None
    name = {"md5": "MD5", "sha256": "SHA-256"}[kind]
    return f"its {name} begins with {actual[: len(expected)]} instead of {expected}"


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise InputError unless the disk of ``folder`` has ``needed`` bytes and a reserve free for ``what``."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > 0 and free < needed + RESERVE:
        raise InputError(
            f"{what} needs {_megabytes(needed + RESERVE)} on the disk of {folder}, which has "
            f"{free // MB} MB free; free some, or choose another --root"
        )


def _megabytes(count: int) -> str:
    return f"{-(-count // MB)} MB"


@contextmanager
def held(path: Path, does: str, *, folder: bool = False) -> Iterator[int]:
    """Open the file or folder ``path``, made if it is missing, and hold it against other processes.

    Gives the open handle. A process that finds ``path`` held waits until its holder ends, or renames or
    removes it. ``does`` describes what a holder is doing. On a file system without locks, nothing is held.

    Raises:
        InputError: ``path`` cannot be made or opened, or is something else.
    """
    announced = False
    while True:
        handle = _opened(path, folder)
        try:
            announced = _lock(handle, f"another process {does}; waiting for it", announced)
            if _is_still(handle, path):
                yield handle
                return
        finally:
            os.close(handle)


def _opened(path: Path, folder: bool) -> int:
    try:
        if folder:
            path.mkdir(exist_ok=True)
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if path.exists():
            require_regular(path)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; remove it, and try again") from None


def _lock(handle: int, message: str, announced: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not announced:
            note(message)
        fcntl.flock(handle, fcntl.LOCK_EX)
        return True
    except OSError:  # a file system without locks
        return announced
    return announced


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _is_verified(file: PublishedFile, target: Path) -> bool:
    if not target.exists() and not target.is_symlink():
        return False
    require_regular(target)
    fault = fault_of(file, target)
    if fault is not None:
        raise InputError(f"{target}: not the published file: {fault}; remove it, and it is downloaded again")
    return True


class _Part:
    """The bytes that have arrived, in TARGET.part, and what is known of their origin, in TARGET.part.json."""

    def __init__(self, target: Path, handle: int) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._origin = target.with_name(f"{target.name}.part.json")
        self._file: BinaryIO = os.fdopen(os.dup(handle), "r+b", buffering=0)

    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def validator(self, url: str) -> str | None:
        """Return the ETag or date under which ``url`` gave these bytes, None if there was none."""
        try:
            origin = json.loads(self._origin.read_text(encoding="utf-8"))
            return str(origin["validator"]) if origin["url"] == url and origin["validator"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def restart(self, url: str, validator: str | None) -> None:
        """Remove all bytes; those that follow come from ``url``."""
        self._file.truncate(0)
        write_text(self._origin, json.dumps({"url": url, "validator": validator}))

    def write_at(self, start: int, data: bytes) -> None:
        self._file.seek(start)
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) or 0 :]
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot write: {error.strerror}; free space on the disk, and call the command "
                "again: it continues"
            ) from None

    def finish(self) -> None:
        """Give the bytes their final name, forced to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()
        self.path.replace(self.target)
        sync_folder(self.target.parent)
        self._origin.unlink(missing_ok=True)

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)


def _download(file: PublishedFile, part: _Part, report: ReportProgress) -> None:
    """Fill ``part`` with the file from the first address that gives it, and verify it."""
    reasons = []
    for url in file.urls:
        try:
            resumed = part.size() > 0
            _receive_all(url, file, part, report)
            if part.size() > LARGE:
                note(f"{file.name}: {_megabytes(part.size())} have arrived; computing the checksum")
            fault = fault_of(file, part.path)
            if fault is not None and resumed:  # the bytes of before may be to blame
                part.restart(url, None)
                _receive_all(url, file, part, report)
                fault = fault_of(file, part.path)
            if fault is None:
                return
            part.restart(url, None)
            reasons.append(f"{url}: not the published file: {fault}")
        except _Refused as error:
            reasons.append(f"{url}: {error}")
    if not part.size():
        part.discard()
    raise Unavailable(
        f"{file.name} could not be downloaded: {'; '.join(reasons)}. Get it by hand from {file.page} and put "
        f"it at {part.target}; then call the command again"
    )


def _receive_all(url: str, file: PublishedFile, part: _Part, report: ReportProgress) -> None:
    """Fill ``part`` from ``url``, in as many attempts as bring something new, and some more.

    Raises:
        _Refused: the address does not have the file, or does not answer.
    """
    furthest, failures = part.size(), 0
    while True:
        try:
            _receive(url, file, part, report)
            return
        except _Broken as error:
            failures = 0 if part.size() > furthest else failures + 1
            furthest = max(furthest, part.size())
            if failures == TRIES:
                raise _Refused(f"{error}, {TRIES} times in a row") from None
            wait = FIRST_WAIT * 2 ** max(failures - 1, 0)
            note(f"{file.name}: {error}; trying again in {wait:g} s, with {_megabytes(part.size())} there")
            time.sleep(wait)


def _receive(url: str, file: PublishedFile, part: _Part, report: ReportProgress) -> None:
    """Add to ``part`` what one answer of ``url`` brings, until it is complete."""
    have = part.size()
    if have and have == file.size:
        return
    validator = part.validator(url)
    if validator is None and file.checksum is None:  # nothing could tell bytes of different versions
        have = 0
    with _answer(url, have, validator, part) as answer:
        start, total = _extent(answer, have)
        if file.size is not None and total not in (None, file.size):
            raise _Refused(f"offers {total} bytes instead of {file.size}")
        if start == 0:
            part.restart(url, _validator_of(answer))
        elif start != have:
            part.restart(url, None)
            raise _Broken("the server answered with another part of the file")
        _copy(answer, start, total, file, part, report)


def _copy(
    answer: Any, start: int, total: int | None, file: PublishedFile, part: _Part, report: ReportProgress
) -> None:
    place, pace = start, _Pace(start)
    most = file.size or (2 * file.about + 256 * MIB if file.about else math.inf)
    shown = (total or file.expected_bytes) // MB
    while True:
        try:
            data = answer.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(f"the connection broke: {_reason(error)}") from None
        if not data:
            break
        part.write_at(place, data)
        place += len(data)
        if place > most:
            part.restart(answer.url, None)
            raise _Refused(f"sends more than {most} bytes, which this file cannot have")
        report(place // MB, max(shown, place // MB))
        pace.check(place)
    if total is not None and place < total:
        raise _Broken(f"the connection ended after {place} of {total} bytes")


class _Pace:
    """Notices a connection that is open but brings almost nothing."""

    def __init__(self, place: int) -> None:
        self._place, self._since = place, time.monotonic()

    def check(self, place: int) -> None:
        seconds = time.monotonic() - self._since
        if seconds < SLOW_FOR:
            return
        if place - self._place < SLOWEST * seconds:
            raise _Broken(f"the connection brought only {place - self._place} bytes in {seconds:.0f} s")
        self._place, self._since = place, time.monotonic()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but not to another kind of address and not out of an encrypted connection."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https:",) if req.full_url.startswith("https:") else ("https:", "http:")
        if not newurl.startswith(allowed):
            raise _Refused(f"is redirected to {newurl[:200]}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _answer(url: str, have: int, validator: str | None, part: _Part) -> Any:
    """Ask ``url`` for the bytes from number ``have`` on, if they belong to the version of ``validator``."""
    headers = {"User-Agent": "region-detector", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    opener = urllib.request.build_opener(_Redirects)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            part.restart(url, None)
            raise _Broken("the server has no more bytes than are there; beginning again") from None
        if error.code in _TEMPORARY:
            raise _Broken(f"the server answered {error.code} {error.reason}") from None
        raise _Refused(f"the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _connection_fault(error.reason) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _connection_fault(error) from None


def _connection_fault(error: object) -> Exception:
    """Return the exception for a connection that did not come about: whether to try again."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _Refused(f"its certificate is not valid: {error.verify_message}")
    unreachable = isinstance(error, OSError) and error.errno in _UNREACHABLE
    if unreachable or isinstance(error, socket.gaierror | ValueError):
        return _Refused(f"cannot be reached: {_reason(error)}")
    return _Broken(f"no answer: {_reason(error)}")


def _reason(error: object) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__


def _extent(answer: Any, have: int) -> tuple[int, int | None]:
    """Return the first byte of an answer, and the size of the whole file, None if it is not said."""
    if answer.status == 206:
        match = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        if match is None:
            return -1, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    return 0, answer.length


def _validator_of(answer: Any) -> str | None:
    """Return what identifies this version of the file: a strong ETag, else the date of its last change."""
    tag = answer.headers.get("ETag", "").strip()
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified")
