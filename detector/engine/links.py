"""A second name for a finished file."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from detector.core.errors import InputError


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to the file ``source``, or a copy where the file system has no links.

    ``target`` changes at once or not at all, and stays when ``source`` is removed or replaced.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and source.samefile(target):
            return  # renaming a link over another one of the same file would do nothing
        temporary.unlink(missing_ok=True)
        try:
            temporary.hardlink_to(source)
        except OSError:
            _copy(source, temporary)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"{target}: cannot write the checkpoint: {error.strerror}") from None


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written, 2**20)
        written.flush()
        os.fsync(written.fileno())
