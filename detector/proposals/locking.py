"""One writer at a time, also across processes."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from detector.core.errors import InputError
from detector.core.files import require_regular


@contextmanager
def writer_lock(path: Path, wait: float, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` inside the block; InputError if it is not free for ``wait`` seconds.

    ``on_wait`` is called once, where it is not free at once. The system gives the lock back when the process
    ends, however it ends.
    """
    if path.exists():
        require_regular(path)
    try:
        file = path.open("ab")
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror}") from error
    with file:
        deadline = time.monotonic() + wait
        while not _try_lock(file.fileno()):
            if time.monotonic() >= deadline:
                raise InputError(f"another process is writing {path.parent}; wait for it to end")
            if on_wait is not None:
                on_wait()
                on_wait = None
            time.sleep(0.02)
        yield


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
