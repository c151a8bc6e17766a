"""One process at a time works in a run's folder."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detector.core.errors import InputError

LOCK = ".run.lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's ``folder``, which exists, inside the block.

    The lock is one of the process and not of its children, so that the system gives it back when the process
    ends, however it ends, although a DataLoader worker may live a few seconds longer.

    Raises:
        InputError: another process holds the lock, or the folder cannot be written; names the process.
    """
    path = folder / LOCK
    handle = _open_locked(path)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever waits at the old file sees that it is gone
        os.close(handle)


def _open_locked(path: Path) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise InputError(f"{path.parent}: cannot write the run's folder: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise InputError(f"{path}: not a regular file; remove it, it is the place of the run's lock")
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 200).decode(errors="replace").split()
            os.close(handle)
            raise InputError(_refusal(path.parent, error, holder)) from None
        if _is_file_of(handle, path):
            return handle
        os.close(handle)  # its holder has ended and removed it between opening and locking


def _refusal(folder: Path, error: OSError, holder: list[str]) -> str:
    if not isinstance(error, BlockingIOError | PermissionError):
        return (
            f"{folder}: cannot lock the run's folder: {error.strerror}; give --output on another file system"
        )
    number, host = [*holder, "unknown", "unknown"][:2] if holder else ("unknown", "unknown")
    where = "" if host in (os.uname().nodename, "unknown") else f" on {host}"
    return (
        f"{folder}: process {number}{where} is training in this folder; wait until it ends, or stop it "
        "(it saves and can be resumed), or give another --output"
    )


def _is_file_of(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
