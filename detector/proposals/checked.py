"""What an earlier start has found unchanged, so that a later one need not read it again.

To compare every image with the hash that a store has of it, and every stored box with its checksum, takes
minutes for a data set of COCO's size. So ``checked.bin`` in the folder of the store keeps, of the last
comparison, a mark of each image that was as it should be, and a mark of the store's own files. A mark is a
hash of what a file system says about a file without opening it: its size and when it and its entry last
changed. Only an image or a store with another mark is read.

A file that changed less than two seconds before it was asked about gets no mark: a second change could have
the same time. The second of these times, of the entry, cannot be set by programs, so a file that is replaced
by an older one of the same size is noticed too.

The format: a line that names format and version; the mark of the store's files; the marks of the images in
rising order; the BLAKE2b hash of all this. The file may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from detector.core.errors import InputError
from detector.core.files import atomic_write, require_regular
from detector.core.listing import asked
from detector.core.progress import note

NAME = "checked.bin"
_MAGIC = b"region-detector checked files, format 1\n"
_MARK_BYTES = 16
_LARGEST = 2**30
_SETTLED_SECONDS = 2.0  # the coarsest clock of a file system in use, FAT's


@dataclass(frozen=True)
class Checked:
    """The marks of what was as it should be; ``store`` is that of the store's files, b"" for none."""

    store: bytes = b""
    images: frozenset[bytes] = frozenset()

    @classmethod
    def load(cls, folder: Path) -> Checked:
        """Return what ``folder`` keeps; nothing where there is no file, or, with a note, a damaged one."""
        path = folder / NAME
        if not os.path.lexists(path):
            return cls()
        try:
            require_regular(path)
            if path.stat().st_size > _LARGEST:
                raise InputError(f"{path}: over {_LARGEST} bytes")
            content = path.read_bytes()
        except (InputError, OSError) as error:
            note(f"{path} cannot be read ({error}): all images are compared again")
            return cls()
        body = content[:-_MARK_BYTES]
        marks = body[len(_MAGIC) :]
        sound = body.startswith(_MAGIC) and content[len(body) :] == _hash(body)
        if not sound or not marks or len(marks) % _MARK_BYTES:
            note(f"{path} is damaged or of another version: all images are compared again")
            return cls()
        every = [marks[at : at + _MARK_BYTES] for at in range(0, len(marks), _MARK_BYTES)]
        return cls(every[0], frozenset(every[1:]))

    def save(self, folder: Path) -> None:
        """Keep this in ``folder``, in place of what is there. Raises InputError if that is impossible."""
        body = b"".join((_MAGIC, self.store, *sorted(self.images)))
        with atomic_write(folder / NAME, durable=False) as file:
            file.write(body + _hash(body))


def forget(folder: Path) -> None:
    """Let the next start read everything again, because something has turned out not to be as it should."""
    with suppress(OSError):
        (folder / NAME).unlink(missing_ok=True)


def file_states(paths: Sequence[str]) -> list[bytes | None]:
    """Return what the file system says about each file; None where it is missing or has just changed."""
    return asked(paths, _state)


def image_mark(key: str, path: str, content_hash: str, state: bytes) -> bytes:
    """Return the mark of an image whose file, in this ``state``, has the content that the store knows."""
    facts = (text.encode(errors="surrogatepass") for text in (key, path, content_hash))
    return _hash(b"\0".join((*facts, state)))


def store_mark(folder: Path) -> bytes:
    """Return the mark of the index and the segments of the store ``folder``."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".npy"))  # noqa: PTH208
    states = asked([f"{folder}{os.sep}{name}" for name in names], _facts)
    return _hash(
        b"\0".join(part for pair in zip(map(os.fsencode, names), states, strict=True) for part in pair)
    )


def _state(path: str) -> bytes | None:
    now = time.time()
    try:
        found = os.stat(path)  # noqa: PTH116 - much faster than Path
    except (OSError, ValueError):  # ValueError: a null character in the path
        return None
    settled = max(found.st_mtime, found.st_ctime) < now - _SETTLED_SECONDS
    return _written(found) if settled and stat.S_ISREG(found.st_mode) else None


def _facts(path: str) -> bytes:
    try:
        return _written(os.stat(path))  # noqa: PTH116 - much faster than Path
    except OSError:
        return b""


def _written(found: os.stat_result) -> bytes:
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}".encode()


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_MARK_BYTES).digest()
