"""What a proposal file is: its fingerprint for a manifest, and a description for people."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from detector.errors import InputError


def source_parameters(source: Path, file_format: str) -> dict[str, Any]:
    """Return what the manifest says of a converted store's source: format, name, hash of the content."""
    try:
        if source.is_dir():
            whole = hashlib.blake2b(digest_size=16)
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                whole.update(f"{path.relative_to(source).as_posix()}\n{_digest(path)}\n".encode())
            digest = whole.hexdigest()
        else:
            digest = _digest(source)
    except OSError as error:
        raise InputError(f"cannot read the proposals {source}: {error.strerror}") from error
    return {"format": file_format, "source": source.name, "source_blake2b": digest}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
