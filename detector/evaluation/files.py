"""Writing result files whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from detector.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` through a temporary neighbour, making the folder if need be.

    Raises InputError if the folder or the disk refuses; ``path`` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        if temporary.is_file():
            temporary.unlink()
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
