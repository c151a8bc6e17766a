"""Writing a file so that a reader, or a crash at any moment, sees the old content or the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from detector.core.errors import InputError


@contextmanager
def replace_durably(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path`` for writing and move it to ``path`` when the block ends.

    The bytes are on the disk before the name changes. If the block raises, ``path`` is as it was and the
    temporary file is gone. A disk that refuses is an InputError naming ``path``.
    """
    temporary = path.with_name(path.name + ".tmp")
    _discard(temporary)  # of a writer that was killed; opening a pipe of this name would wait without end
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        _discard(temporary)
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space on the disk or repair it"
        ) from error
    except BaseException:
        _discard(temporary)
        raise


def make_folder(folder: Path) -> None:
    """Make ``folder`` and those above it where they are missing; InputError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: a rename is only safe once its folder is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the folder itself refuses; the first error says so better
