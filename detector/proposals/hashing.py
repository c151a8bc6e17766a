"""The hash by which a store knows for which content of an image file its boxes were made."""

from __future__ import annotations

import hashlib
from pathlib import Path

from detector.core.errors import InputError
from detector.core.files import require_regular


def content_hash(data: bytes) -> str:
    """Return the BLAKE2b hash, 32 hexadecimal digits, that stores keep of an image file's bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_hash(path: Path) -> str:
    """Return the `content_hash` of the file at ``path``. Raises InputError if it cannot be read."""
    if path.exists():
        require_regular(path)
    try:
        return content_hash(path.read_bytes())
    except (OSError, ValueError) as error:  # the last: a null character, which no file system takes
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the image {path}: {reason}") from error
