"""Annotations as columns in a file that is memory-mapped, so that a later start decodes nothing.

An entry belongs to one annotation file, or to one folder of them, and is replaced when another is written for
it: so the folder of the cache does not grow with the changes of a data set. An entry holds what the
annotations say and nothing that a setting decides (labels, rules for boxes, the images of a split), which is
applied at every start; so it depends on the content of the annotations alone, and one entry serves all
settings.

The format: a line that names format and version; the length of the header as eight bytes; the header, JSON
with the facts and the type, shape and place of each column; the columns, each at a multiple of 64 bytes; the
BLAKE2b hash of all this. Numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import atomic_write, file_name_of, remove_abandoned, require_regular
from detector.core.progress import note
from detector.core.records import Texts
from detector.data.targets import MAX_COORDINATE

Columns = Mapping[str, NDArray[Any]]
Layout = Mapping[str, tuple[str, int | None]]
"""The columns of an entry by name: NumPy's text for the type, and the length of a row, if it has one."""

CACHE_FOLDER = Path("data/cache")
"""The usual folder, below the working directory; safe to delete."""

_MAGIC = b"region-detector annotations, format 1\n"
_ALIGNMENT = 64
_HASH_BYTES = 16
_LONGEST_HEADER = 2**20
_LONGEST_NAME = 80


class CachedColumns:
    """Columns that an entry can hold: a dataclass of arrays and `Texts`, which ``LAYOUT`` names.

    An entry has all columns of ``OPTIONAL`` or none of them; the fields then have their defaults.
    """

    __slots__ = ()
    LAYOUT: ClassVar[Layout]
    OPTIONAL: ClassVar[Layout] = {}

    def arrays(self) -> Columns:
        """Return every array by its name in ``LAYOUT``."""
        arrays: dict[str, NDArray[Any]] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Texts):
                arrays |= {f"{field.name}.content": value.content, f"{field.name}.ends": value.ends}
            else:
                arrays[field.name] = value
        return arrays

    @classmethod
    def of_arrays(cls, arrays: Columns) -> Self:
        """Undo `arrays`. Raises ValueError for columns that do not fit, which no entry of ours has."""
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        whole = {name.removesuffix(".ends") for name in arrays}
        return cls(
            **{
                name: arrays[name] if name in arrays else _texts(arrays, name)
                for name in names
                if name in whole
            }
        )


def texts(*names: str) -> dict[str, tuple[str, int | None]]:
    """Return the part of a layout for columns of `Texts`."""
    return {
        f"{name}.{part}": (kind, None)
        for name in names
        for part, kind in (("content", "|u1"), ("ends", "<i8"))
    }


def _texts(arrays: Columns, name: str) -> Texts:
    content, ends = arrays[f"{name}.content"], arrays[f"{name}.ends"]
    if len(content) != (int(ends[-1]) if len(ends) else 0) or (np.diff(ends, prepend=0) < 0).any():
        raise ValueError(f"the lengths of its {name} do not fit")
    return Texts(content, ends)


def require_below(numbers: NDArray[np.int32], count: int) -> None:
    """Raise ValueError unless all of ``numbers`` are from 0 to ``count`` - 1."""
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < count:
        raise ValueError("it has a number of a class that it does not name")


def require_parts(offsets: NDArray[np.int64], groups: int, count: int) -> None:
    """Raise ValueError unless ``offsets`` divide ``count`` rows into that many ``groups``."""
    if len(offsets) != groups + 1 or offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
        raise ValueError("its offsets do not fit")


def require_pixels(*columns: NDArray[Any]) -> None:
    """Raise ValueError for a coordinate or a side that no annotation may have."""
    if not all((np.abs(column) <= MAX_COORDINATE).all() for column in columns):
        raise ValueError("it has a number that is no number of pixels")


Kept = TypeVar("Kept", bound=CachedColumns)


@dataclass(frozen=True)
class Entry(Generic[Kept]):
    """What an entry holds: ``content``, which says what annotations it was made of, and the columns."""

    content: str
    columns: Kept


@dataclass(frozen=True)
class AnnotationCache:
    """The entries in ``folder``, which need not exist. Any number of processes may use them at once."""

    folder: Path

    def place(self, source: Path) -> Path:
        """Return the file of the entry for ``source``, an annotation file or a folder of them."""
        real = str(source.resolve())
        digest = hashlib.blake2b(real.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        return self.folder / f"{file_name_of(source.name, _LONGEST_NAME)}_{digest}.columns"

    def read(self, source: Path, kind: type[Kept]) -> Entry[Kept] | None:
        """Return the entry for ``source``, memory-mapped and read-only; None if there is none.

        A damaged entry, or one with columns of another ``kind``, counts as none, and a note says so.
        """
        path = self.place(source)
        try:
            if not path.exists():
                return None
            return _checked(_mapped(path), kind)
        except (InputError, OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            reason = str(error).removeprefix(f"{path}: ")
            note(f"{path}: not a usable cache of {source} ({reason}); the annotations are read again")
            return None

    def write(self, source: Path, entry: Entry[Any]) -> None:
        """Write the entry for ``source`` in place of an earlier one; a note says if that is impossible."""
        place = self.place(source)
        remove_abandoned(self.folder, lambda name: name == place.name)
        try:
            with atomic_write(place, durable=False) as file:
                digest = hashlib.blake2b(digest_size=_HASH_BYTES)
                for block in _blocks(entry):
                    digest.update(block)
                    file.write(block)
                file.write(digest.digest())
        except InputError as error:
            _note_unwritable(self.folder, str(error))


@cache
def _note_unwritable(folder: Path, reason: str) -> None:
    note(f"the cache of annotations in {folder} cannot be written, so each start reads them again: {reason}")


def _blocks(entry: Entry[Any]) -> list[bytes | memoryview]:
    """Return everything of an entry but its hash, in order."""
    arrays = {name: np.ascontiguousarray(array) for name, array in entry.columns.arrays().items()}
    facts: list[list[Any]] = []
    start = 0
    for name, array in arrays.items():
        facts.append([name, array.dtype.str, list(array.shape), start])
        start += _padded(array.nbytes)
    header = json.dumps({"content": entry.content, "columns": facts, "bytes": start}).encode()
    before = _padded(len(_MAGIC) + 8 + len(header))
    blocks: list[bytes | memoryview] = [
        (_MAGIC + len(header).to_bytes(8, "little") + header).ljust(before, b"\0")
    ]
    for array in arrays.values():
        blocks += [array.reshape(-1).view(np.uint8).data, b"\0" * (_padded(array.nbytes) - array.nbytes)]
    return blocks


def _padded(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _mapped(path: Path) -> memoryview:
    require_regular(path)
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _checked(content: memoryview, kind: type[Kept]) -> Entry[Kept]:
    """Return the entry in ``content``, the whole file. Raises ValueError if anything in it is wrong."""
    if bytes(content[: len(_MAGIC)]) != _MAGIC:
        raise ValueError("another format or version")
    begin = len(_MAGIC) + 8
    length = int.from_bytes(content[len(_MAGIC) : begin], "little")
    if length > min(_LONGEST_HEADER, len(content) - begin):
        raise ValueError("it is cut short")
    body = content[:-_HASH_BYTES]
    if hashlib.blake2b(body, digest_size=_HASH_BYTES).digest() != content[-_HASH_BYTES:]:
        raise ValueError("its content does not have its hash")
    header = json.loads(bytes(content[begin : begin + length]))
    data = body[_padded(begin + length) :]
    layout = {**kind.LAYOUT, **kind.OPTIONAL}
    found: dict[str, NDArray[Any]] = {}
    for name, dtype, shape, start in header["columns"]:
        expected, row = layout.get(name, (None, None))
        if expected != dtype or shape[1:] != ([] if row is None else [row]):
            break
        count = int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(data, dtype, count, start) if count else np.zeros(0, dtype)
        found[name] = flat.reshape(shape)
    if found.keys() not in (kind.LAYOUT.keys(), layout.keys()):
        raise ValueError("it has other columns than expected")
    return Entry(header["content"], kind.of_arrays(found))
