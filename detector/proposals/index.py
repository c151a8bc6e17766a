"""The index of a proposal store: one sorted, fixed-width table from image id to where its boxes lie.

A structured ``.npy`` array and not JSON: it is memory-mapped, so that opening costs the same for ten images
and for a hundred thousand, processes share its pages, and looking up an id makes no Python objects per image.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.errors import InputError
from detector.proposals.durable import replace_durably

MAX_ID_BYTES = 1024
_HASH_BYTES = 128


class Row(NamedTuple):
    """Where the boxes of one image lie: ``boxes`` of them from ``offset`` in segment number ``segment``.

    ``scored`` says whether the segment's scores belong to them, ``size`` is the image's (height, width) or
    (0, 0) where it is not known, ``checksum`` the CRC-32 of the boxes' and then the scores' bytes,
    ``content_hash`` identifies the image file the boxes were made for ("" where it is not known).
    """

    image_id: str
    segment: int
    offset: int
    boxes: int
    scored: bool
    size: tuple[int, int]
    checksum: int
    content_hash: str


class Index:
    """Rows sorted by image id, read-only, on disk or in memory."""

    def __init__(self, table: NDArray[np.void]) -> None:
        self._table = table
        self._keys = table["id"]

    @classmethod
    def empty(cls) -> Index:
        return cls(np.empty(0, _row_type(1, 1)))

    @classmethod
    def load(cls, path: Path) -> Index:
        """Map the index at ``path``; raises InputError if it is missing, torn or no index."""
        try:
            table = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise InputError(
                f"{path} is missing or damaged ({error}); make the proposal store anew"
            ) from error
        names = table.dtype.names
        if table.ndim != 1 or names is None or names != _row_type(1, 1).names:
            raise InputError(f"{path} is not the index of a proposal store; make the store anew")
        return cls(table.view(np.ndarray))  # plain array: subclass bookkeeping would double a look-up's time

    def save(self, path: Path) -> None:
        """Replace the index at ``path`` in one durable step."""
        with replace_durably(path) as file:
            np.save(file, self._table, allow_pickle=False)

    def merged(self, rows: Iterable[Row]) -> Index:
        """Return an index that holds ``rows`` too; a later row for the same id wins."""
        added = _table([_packed(row) for row in rows])
        both = _row_type(
            max(self._table.dtype["id"].itemsize, added.dtype["id"].itemsize),
            max(self._table.dtype["hash"].itemsize, added.dtype["hash"].itemsize),
        )
        table = np.concatenate((self._table.astype(both), added.astype(both)))
        table = table[np.argsort(table["id"], kind="stable")]
        last = np.append(table["id"][1:] != table["id"][:-1], True) if len(table) else slice(0)
        return Index(table[last])

    def without(self, image_ids: Iterable[str]) -> Index:
        """Return an index that lacks the rows of ``image_ids``."""
        keys = [image_id.encode("utf-8", "surrogatepass") for image_id in image_ids]
        return Index(self._table[~np.isin(self._keys, np.array(keys, dtype="S"))])

    def find(self, image_id: str) -> Row | None:
        """Return the row of ``image_id``, or None."""
        key = image_id.encode("utf-8", "surrogatepass")
        place = bisect_left(self._keys, key)
        if place == len(self._keys) or self._keys[place] != key:
            return None
        return _unpacked(self._table[place])

    def rows(self) -> Iterable[Row]:
        """Yield every row, in the order of the ids."""
        return (_unpacked(row) for row in self._table)

    def ids(self) -> list[str]:
        return [bytes(key).decode(errors="replace") for key in self._keys]

    def segments(self) -> set[int]:
        """Return the numbers of the segments that are in use."""
        return set(np.unique(self._table["segment"]).tolist())

    def __len__(self) -> int:
        return len(self._table)


def check_image_id(image_id: str, source: Path | str) -> None:
    """Raise an InputError that names ``source`` unless ``image_id`` can stand in an index."""
    path = PurePosixPath(image_id)
    usable = bool(image_id) and image_id.isprintable() and not path.is_absolute() and ".." not in path.parts
    if not usable or len(image_id.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        shown = image_id if len(image_id) <= 60 else image_id[:60] + "..."
        raise InputError(
            f"{source}: {shown!r} is no image id; use 1 to {MAX_ID_BYTES} printable bytes, a path only "
            "inside the data set"
        )


def _row_type(id_bytes: int, hash_bytes: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("id", f"S{id_bytes}"),
            ("segment", "<u4"),
            ("offset", "<u8"),
            ("boxes", "<u4"),
            ("scored", "?"),
            ("height", "<u4"),
            ("width", "<u4"),
            ("checksum", "<u4"),
            ("hash", f"S{hash_bytes}"),
        ]
    )


def _packed(row: Row) -> tuple[bytes, int, int, int, bool, int, int, int, bytes]:
    if len(row.content_hash) > _HASH_BYTES or not row.content_hash.isascii():
        raise ValueError(f"a content hash is ASCII of at most {_HASH_BYTES} bytes, not {row.content_hash!r}")
    return (row.image_id.encode(), *row[1:5], *row.size, row.checksum, row.content_hash.encode())


def _unpacked(entry: np.void) -> Row:
    values: Any = entry.item()  # numpy's annotations know nothing of a structured scalar's fields
    key, segment, offset, boxes, scored, height, width, checksum, content_hash = values
    image_id, hashed = key.decode(errors="replace"), content_hash.decode(errors="replace")
    return Row(image_id, segment, offset, boxes, scored, (height, width), checksum, hashed)


def _table(rows: list[tuple[bytes, int, int, int, bool, int, int, int, bytes]]) -> NDArray[np.void]:
    id_bytes = max((len(row[0]) for row in rows), default=1)
    hash_bytes = max((len(row[-1]) for row in rows), default=1)
    return np.array(rows, dtype=_row_type(id_bytes, max(hash_bytes, 1)))
