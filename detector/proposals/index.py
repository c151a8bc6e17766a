"""The index of a proposal store: a sorted table of fixed row width, from image id to the place of its boxes.

It is a structured ``.npy`` array, not JSON, so that it can be memory-mapped: all processes share its pages,
and a look-up makes Python objects for only one image. Eight bytes follow the array: "CRC1" and the CRC-32 of
everything before them (little-endian). The checksum is compared when the index is loaded; an index of an
earlier version has none.
"""

from __future__ import annotations

import re
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import atomic_write, require_regular
from detector.core.records import Texts
from detector.proposals.npy import read_header

MAX_ID_BYTES = 4096  # no path is longer; a row is as wide as the longest id in the table
_HASH_BYTES = 128
_SEARCH_BYTES = 1 << 24  # of ids that are looked up at once
_CHECKSUM = struct.Struct("<4sI")
_CHECKSUM_NAME = b"CRC1"
# Control characters, line and paragraph separators, surrogates: they end lines or cannot be written.
_NOT_IN_AN_ID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Row(NamedTuple):
    """Where the boxes of one image lie: ``boxes`` of them from ``offset`` in segment number ``segment``.

    ``scored`` says whether the segment's scores belong to them, ``height`` and ``width`` are the image's or 0
    where they are unknown, ``checksum`` is the CRC-32 of the bytes of the boxes and then of the scores,
    ``content_hash`` identifies the image file that the boxes were made for ("" where it is unknown).
    ``masked`` says whether some of them have masks, and ``mask_checksum`` is the CRC-32 of their lengths and
    bytes. The fields are those of the table; a table in which nothing has masks does without the last two.
    """

    image_id: str
    segment: int
    offset: int
    boxes: int
    scored: bool
    height: int
    width: int
    checksum: int
    content_hash: str
    masked: bool = False
    mask_checksum: int = 0


class Index:
    """Rows sorted by image id, read-only, on disk or in memory; ``index[place]`` is a `Row`.

    ``checked`` and ``masks_checked`` have a byte for each place, in which a reader notes that it has compared
    the checksum of boxes and scores, and that of the masks.
    """

    def __init__(self, table: NDArray[np.void]) -> None:
        self._table = table
        self._keys: NDArray[np.bytes_] = table["id"]
        self.checked = bytearray(len(table))
        self.masks_checked = bytearray(len(table))

    @classmethod
    def empty(cls) -> Index:
        return cls(np.empty(0, _row_type(1, 1)))

    @classmethod
    def load(cls, path: Path) -> Index:
        """Map the index at ``path``; raises InputError if it is missing, damaged or not an index."""
        try:
            if path.exists():
                require_regular(path)
            with path.open("rb") as file:
                header = read_header(file)
                start = file.tell()
                content = np.memmap(file, np.uint8, "r").view(np.ndarray)  # plain arrays are faster
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} is missing or damaged ({error}); make the proposal store again"
            ) from error
        if len(header.shape) != 1 or not _is_row_type(header.dtype):
            raise InputError(f"{path} is not the index of a proposal store; make the store again")
        end = start + header.data_bytes
        if len(content) - end not in (0, _CHECKSUM.size):
            raise InputError(f"{path} is damaged (its end is missing); make the proposal store again")
        table = content[start:end].view(header.dtype)
        if len(content) > end:
            sound = content[end:].tobytes() == _checksum(content[:end].data)
        else:  # without a checksum at least the order of the ids, on which every look-up depends
            sound = bool((table["id"][1:] > table["id"][:-1]).all())
        if not sound:
            raise InputError(f"{path} is damaged (its checksum does not fit); make the proposal store again")
        return cls(table)

    def save(self, path: Path) -> None:
        """Replace the index at ``path`` in one durable step."""
        content = BytesIO()
        np.save(content, self._table, allow_pickle=False)
        with atomic_write(path) as file:
            file.write(content.getbuffer())
            file.write(_checksum(content.getbuffer()))

    def merged(self, rows: Iterable[Row]) -> Index:
        """Return an index that holds ``rows`` too; a later row for the same id replaces an earlier one."""
        added = _table(rows)
        both = _row_type(
            max(self._table.dtype["id"].itemsize, added.dtype["id"].itemsize),
            max(self._table.dtype["hash"].itemsize, added.dtype["hash"].itemsize),
            masked=True,
        )
        table = np.concatenate((_as_type(self._table, both), _as_type(added, both)))
        table = table[np.argsort(table["id"], kind="stable")]
        last = np.append(table["id"][1:] != table["id"][:-1], True) if len(table) else slice(0)
        return Index(_narrowed(table[last]))

    def without(self, image_ids: Iterable[str]) -> Index:
        """Return an index without the rows of ``image_ids``."""
        keys = [image_id.encode("utf-8", "surrogatepass") for image_id in image_ids]
        return Index(_narrowed(self._table[~np.isin(self._keys, np.array(keys, dtype="S"))]))

    def find(self, image_id: str) -> int | None:
        """Return the place of ``image_id``, or None."""
        key = image_id.encode("utf-8", "surrogatepass")
        place = bisect_left(self._keys, key)
        return place if place < len(self._keys) and self._keys[place] == key else None

    def find_all(self, image_ids: Texts) -> NDArray[np.int64]:
        """Return (N,) the place of each of N ids, -1 for one that the index does not have."""
        places = np.full(len(image_ids), -1, np.int64)
        if not len(self) or not len(image_ids):
            return places
        if not image_ids.content.all():  # numpy takes zero bytes at the end of a text for padding
            found = (self.find(image_id) for image_id in image_ids)
            return np.fromiter((-1 if place is None else place for place in found), np.int64, len(places))
        keys = np.ascontiguousarray(self._keys)
        step = max(_SEARCH_BYTES // keys.itemsize, 1)
        for start in range(0, len(places), step):
            wanted, fits = _padded(image_ids, start, min(start + step, len(places)), keys.itemsize)
            at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            places[start : start + step] = np.where(fits & (keys[at] == wanted), at, -1)
        return places

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.void]:
        """Return the rows (n,) of the table at ``places`` (n,), with the fields of `Row`; any row for -1."""
        return self._table[places] if len(self) else np.zeros(len(places), self._table.dtype)

    def __getitem__(self, place: int) -> Row:
        # Any: numpy's annotations do not know the fields of a structured scalar.
        values: Any = self._table[place].item()
        row = Row(*values)
        texts: list[Any] = [row.image_id, row.content_hash]  # bytes, as numpy has them
        image_id, content_hash = (bytes(text).decode(errors="replace") for text in texts)
        return row._replace(image_id=image_id, content_hash=content_hash)

    def __len__(self) -> int:
        return len(self._table)

    def ids(self) -> list[str]:
        return [bytes(key).decode(errors="replace") for key in self._keys]

    def places_on_disk(self) -> Iterator[int]:
        """Yield the places of all rows in the order in which their boxes lie in the segments."""
        yield from np.lexsort((self._table["offset"], self._table["segment"])).tolist()

    def segments(self) -> set[int]:
        """Return the numbers of the segments that are in use."""
        return set(np.unique(self._table["segment"]).tolist())


def check_image_id(image_id: str, source: Path | str) -> None:
    """Raise an InputError that names ``source`` unless ``image_id`` can be stored in an index.

    Every name that can be shown in one line is accepted, also one with blanks of any kind, joined emoji or
    combining characters.
    """
    path = PurePosixPath(image_id)
    size = len(image_id.encode("utf-8", "surrogatepass"))
    if _NOT_IN_AN_ID.search(image_id):
        reason = "it has a line break, a control character or bytes that are not UTF-8"
    elif path.is_absolute() or ".." in path.parts:
        reason = "it is a path that leads out of the data set"
    elif not 1 <= size <= MAX_ID_BYTES:
        reason = f"it has {size} bytes, and 1 to {MAX_ID_BYTES} are possible"
    else:
        return
    shown = image_id if len(image_id) <= 60 else image_id[:60] + "..."
    raise InputError(f"{source}: {shown!r} is not a valid image id: {reason}; rename the image")


def is_content_hash(value: object) -> bool:
    """Whether ``value`` is a text that an index can hold as an image's hash."""
    return isinstance(value, str) and len(value) <= _HASH_BYTES and value.isascii()


def _padded(
    image_ids: Texts, start: int, stop: int, width: int
) -> tuple[NDArray[np.bytes_], NDArray[np.bool_]]:
    """Return ids ``start`` to ``stop`` as texts of ``width`` bytes, and which of them fit into that."""
    begin = int(image_ids.ends[start - 1]) if start else 0
    ends = np.asarray(image_ids.ends[start:stop]) - begin
    lengths = np.diff(ends, prepend=0)
    fits = lengths <= width
    inside = np.repeat(fits, lengths)
    padded = np.zeros((stop - start, width), np.uint8)
    padded[np.arange(width) < np.where(fits, lengths, 0)[:, None]] = np.asarray(
        image_ids.content[begin : begin + int(ends[-1])]
    )[inside]
    return padded.view(f"S{width}")[:, 0], fits


def _checksum(content: memoryview) -> bytes:
    return _CHECKSUM.pack(_CHECKSUM_NAME, zlib.crc32(content))


def _row_type(id_bytes: int, hash_bytes: int, *, masked: bool = False) -> np.dtype[np.void]:
    """Return the type of a row; without ``masked`` it is that of the versions that had no masks."""
    masks = [("masked", "?"), ("mask_checksum", "<u4")] if masked else []
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
            *masks,
        ]
    )


def _as_type(table: NDArray[np.void], dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """Return ``table`` with the fields of ``dtype``; those that it does not have are zero."""
    widened = np.zeros(len(table), dtype)
    for name in table.dtype.names or ():
        widened[name] = table[name]
    return widened


def _narrowed(table: NDArray[np.void]) -> NDArray[np.void]:
    """Return ``table`` without the fields about masks if no row has any."""
    if "masked" not in (table.dtype.names or ()) or table["masked"].any():
        return table
    plain = np.empty(len(table), _row_type(table.dtype["id"].itemsize, table.dtype["hash"].itemsize))
    for name in plain.dtype.names or ():
        plain[name] = table[name]
    return plain


def _is_row_type(dtype: np.dtype[Any]) -> bool:
    if dtype.names is None or dtype.fields is None:
        return False
    masked = "masked" in dtype.names
    if dtype.names != _row_type(1, 1, masked=masked).names:
        return False
    return dtype == _row_type(dtype.fields["id"][0].itemsize, dtype.fields["hash"][0].itemsize, masked=masked)


def _table(rows: Iterable[Row]) -> NDArray[np.void]:
    packed = [
        (row.image_id.encode(), *row[1:-3], row.content_hash.encode(), row.masked, row.mask_checksum)
        for row in rows
    ]
    id_bytes = max((len(row[0]) for row in packed), default=1)
    hash_bytes = max((len(row[-3]) for row in packed), default=1)
    return np.array(packed, dtype=_row_type(id_bytes, max(hash_bytes, 1), masked=True))
