"""The fingerprint of a proposal file, for the manifest and the name of the store it becomes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detector.core.errors import InputError
from detector.core.files import is_hidden, require_regular
from detector.core.structures import ImageRecord


def source_parameters(source: Path, file_format: str) -> dict[str, Any]:
    """Return format, name and BLAKE2b hash of the content of a file, or of a folder's files but hidden ones.

    Raises InputError for what cannot be read.
    """
    try:
        if source.is_dir():
            whole = hashlib.blake2b(digest_size=16)
            shown = (path for path in source.rglob("*") if not is_hidden(path, source))
            for path in sorted(path for path in shown if path.is_file()):
                line = f"{path.relative_to(source).as_posix()}\n{_digest(path)}\n"
                whole.update(line.encode("utf-8", "surrogatepass"))
            digest = whole.hexdigest()
        else:
            digest = _digest(source)
    except OSError as error:
        raise InputError(f"cannot read the proposals {source}: {error.strerror}") from error
    return {"format": file_format, "source": source.name, "source_blake2b": digest}


def record_digest(records: Iterable[ImageRecord]) -> str:
    """Return a hash of the names and sizes of ``records``, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        text = f"{record.key}\n{record.image_id}\n{record.height} {record.width}\n"
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def conversion_name(parameters: dict[str, Any]) -> str:
    """Return a folder name for what `detector.proposals.convert.convert` makes with these parameters.

    ``parameters`` are those of `source_parameters` and the arguments given to ``convert``. The name is the
    source's and a hash, which differs for another content and for other arguments.
    """
    text = json.dumps(parameters, sort_keys=True)
    stem = "".join(letter if letter.isalnum() else "_" for letter in Path(parameters["source"]).stem)
    return f"{stem}_{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def _digest(path: Path) -> str:
    if path.exists():
        require_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
