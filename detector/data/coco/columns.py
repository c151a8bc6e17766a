"""An annotation file in COCO's format as columns, decoded once per change of the file.

A file as it should be is decoded by msgspec and checked in bulk. If anything in it is not as expected,
`detector.data.coco.file.read_coco` reads it entry by entry: either it explains the fault, or the oddity is
one that it accepts. Both ways accept the same files and give the same columns.
"""

from __future__ import annotations

import codecs
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import MAX_JSON_BYTES, file_hash, read_json_bytes, require_regular
from detector.core.records import Texts
from detector.data.annotation_cache import (
    AnnotationCache,
    Columns,
    Entry,
    Layout,
    require_below,
    require_parts,
    require_pixels,
    texts,
)
from detector.data.attributes import AttributeColumns, attribute_columns, attribute_labels
from detector.data.coco.file import (
    MAX_ID,
    CocoData,
    annotation_place,
    category_ids,
    category_names,
    missing_section,
    read_coco,
    record_id,
)
from detector.data.file_columns import WITH_ATTRIBUTES
from detector.data.paths import require_inside
from detector.data.targets import MAX_COORDINATE, AnnotatedObject, Attribute, ObjectColumns

_AT_ONCE = 2**14
"""Annotations that are decoded at once: as objects they take some ten times the memory of their columns."""
_LONGEST_NUMBER = 4300
"""Python refuses whole numbers of more digits, msgspec does so only where it needs their value."""
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ -]{0,199}")
_UTF8_BLOCK = 2**22
_FLAGS = ("iscrowd", "difficult", "ignore")
_EXACT = 2.0**53
"""Up to here every way of reading a whole number gives the same."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class CocoColumns(AttributeColumns):
    """The N images, K categories and A annotations of a file; one with several categories counts for each.

    ``ids`` (N,) are the images' ids, ``record_ids`` those of their records, ``files`` their names as written.
    ``sizes`` (N, 2) are (height, width), 0 where the file does not give both. ``category_ids`` (K,) rise.
    ``missing`` names the sections that the file does not have.

    Annotations are image after image: those of image i are ``offsets[i]`` to ``offsets[i + 1]``, in the
    file's order. ``numbers`` (A,) are their places in the file, ``boxes`` (A, 4) are x, y, width, height,
    ``categories`` (A,) numbers of the categories, ``area`` (A,) is NaN where there is none, and ``iscrowd``,
    ``difficult`` and ``ignore`` (A,) are the flags as written.
    """

    ids: NDArray[np.int64]
    record_ids: Texts
    files: Texts
    sizes: NDArray[np.int32]
    category_ids: NDArray[np.int64]
    category_names: Texts
    missing: Texts
    offsets: NDArray[np.int64]
    numbers: NDArray[np.int64]
    categories: NDArray[np.int32]
    boxes: NDArray[np.float64]
    area: NDArray[np.float64]
    iscrowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    ignore: NDArray[np.bool_]

    LAYOUT: ClassVar[Layout] = {
        "ids": ("<i8", None),
        **texts("record_ids", "files", "category_names", "missing"),
        "sizes": ("<i4", 2),
        "category_ids": ("<i8", None),
        "offsets": ("<i8", None),
        "numbers": ("<i8", None),
        "categories": ("<i4", None),
        "boxes": ("<f8", 4),
        "area": ("<f8", None),
        **dict.fromkeys(_FLAGS, ("|b1", None)),
    }

    def __post_init__(self) -> None:
        """Raise ValueError for columns that do not fit, which only a file from elsewhere has."""
        require_parts(self.offsets, len(self), len(self.numbers))
        images = {len(self), len(self.record_ids), len(self.files), len(self.sizes)}
        columns = (self.numbers, self.categories, self.boxes, self.area, *map(self.__getattribute__, _FLAGS))
        if len(images) > 1 or len({len(one) for one in columns}) > 1:
            raise ValueError("the lengths of its columns do not fit")
        require_below(self.categories, len(self.category_names))
        require_pixels(self.boxes, self.sizes)
        self.require_attributes(len(self.numbers))

    @classmethod
    def of_arrays(cls, arrays: Columns) -> Self:
        """Undo `arrays`. Raises ValueError also where a name would lead out of the folder of the images."""
        columns = super(CocoColumns, cls).of_arrays(arrays)
        if not all(map(_stays_inside, (*columns.files, *columns.record_ids))):
            raise ValueError("a name in it leads out of its folder")
        return columns

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.ids)

    def objects(self, path: Path, wanted: Sequence[str] = ()) -> ObjectColumns:
        """Return the annotations as objects with half-open boxes; ``path`` is the file, for messages.

        There is a further row for each label of the attributes ``wanted``.
        """
        names = tuple(self.category_names)
        ends = self.boxes[:, :2] + self.boxes[:, 2:]

        def describe(row: int) -> AnnotatedObject:
            image = int(np.searchsorted(self.offsets, row, side="right")) - 1
            x, y, width, height = self.boxes[row].tolist()
            area = float(self.area[row])
            return AnnotatedObject(
                name=names[self.categories[row]],
                box=(x, y, x + width, y + height),
                difficult=bool(self.difficult[row]),
                crowd=bool(self.iscrowd[row] and not self.difficult[row]),
                ignore=bool(self.ignore[row]),
                area=None if math.isnan(area) else area,
                file=path,
                place=annotation_place(int(self.numbers[row]), int(self.ids[image])),
                written=(x, y, width, height),
            )

        things = ObjectColumns(
            names=names,
            offsets=self.offsets,
            classes=self.categories,
            boxes=np.concatenate((self.boxes[:, :2], ends), axis=1),
            difficult=self.difficult,
            # A difficult object of VOC is written as a crowd, so that COCO's tools ignore it too.
            crowd=self.iscrowd & ~self.difficult,
            ignore=self.ignore,
            area=self.area,
            numbers=np.arange(len(self.numbers)),
            describe=describe,
        )
        return self.labelled(things, wanted)


def read_columns(
    path: Path, cache: AnnotationCache | None, *, unannotated: bool = False, attributes: bool = False
) -> CocoColumns:
    """Return the content of the file ``path``, from ``cache`` if it has that of the file as it is now.

    Only with ``attributes`` are those of the annotations needed, which entries of earlier versions lack.
    ``unannotated`` and errors are those of `read_coco`.
    """
    columns = _from_cache(path, cache, attributes=attributes)
    if columns is None:
        content = read_json_bytes(path)
        columns, digest = decode(content), _hash_of(content)
        del content
        whole = columns is not None
        if columns is None:
            data = read_coco(path, unannotated=unannotated)
            columns = columns_of(data)
            # Where sections may be missing, an empty one may be a missing one.
            whole = all(data.values()) or not unannotated
        if cache is not None and whole and digest == file_hash(path):
            cache.write(path, Entry(digest + WITH_ATTRIBUTES, columns))
    if len(columns.missing) and not unannotated:
        raise missing_section(path, columns.missing[0])
    return columns


def decode(content: bytes) -> CocoColumns | None:
    """Return the columns of the bytes of a file; None if anything in it is not as expected."""
    if not _is_utf8(content) or _has_long_number(content):
        return None
    try:
        data = msgspec.json.decode(content, type=_File)
        missing = [name for name in ("categories", "annotations") if getattr(data, name) is msgspec.UNSET]
        images, categories = _checked_images(data.images), _checked_categories(data.categories or [])
        written = _concatenated(map(_decode_annotations, _joined(data.annotations or [])))
        del data
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, _UnexpectedError):
        return None
    try:
        return _columns(images, categories, written, missing)
    except _UnexpectedError:
        return None


def columns_of(data: CocoData) -> CocoColumns:
    """Return the columns of entries that `read_coco` has checked."""
    images = [
        (one["id"], record_id(one), one["file_name"], int(one.get("height", 0)), int(one.get("width", 0)))
        for one in data["images"]
    ]
    entries = data["annotations"]
    kinds = list(map(category_ids, entries))
    written = _Written(
        images=np.array([int(one["image_id"]) for one in entries], np.int64),
        categories=np.array([int(kind) for own in kinds for kind in own], np.int64),
        kinds=np.array(list(map(len, kinds)), np.int64),
        boxes=np.array([one["bbox"] for one in entries], np.float64).reshape(-1, 4),
        area=np.array([one.get("area", math.nan) for one in entries], np.float64),
        flags=np.array([[one.get(flag, 0) for flag in _FLAGS] for one in entries], np.float64),
        attributes=[attribute_labels(one.get("attributes")) for one in entries],
    )
    return _columns(images, list(category_names(data).items()), written, [])


class _UnexpectedError(Exception):
    """Something that `read_coco` has to judge."""


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    voc_id: str | msgspec.UnsetType = msgspec.UNSET
    height: float = 0.0
    width: float = 0.0


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    bbox: tuple[float, float, float, float]
    category_id: int | msgspec.UnsetType = msgspec.UNSET
    category_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    attributes: Any = None
    area: float = math.nan
    iscrowd: bool | int | float = 0
    difficult: bool | int | float = 0
    ignore: bool | int | float = 0


class _File(msgspec.Struct, gc=False):
    images: list[_Image]
    categories: list[_Category] | msgspec.UnsetType = msgspec.UNSET
    annotations: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET


_annotations = msgspec.json.Decoder(list[_Annotation])
_ImageRow = tuple[int, str, str, int, int]
"""Id, id of the record, file name, height and width of an image."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Written:
    """A annotations in the file's order: ids (A,), boxes (A, 4), areas (A,) and flags (A, 3).

    ``kinds`` (A,) is the number of categories of each annotation, which follow each other in ``categories``.
    ``attributes`` has the attributes of each annotation, or is empty if none has any.
    """

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    kinds: NDArray[np.int64]
    boxes: NDArray[np.float64]
    area: NDArray[np.float64]
    flags: NDArray[np.float64]
    attributes: list[tuple[Attribute, ...]]


def _is_utf8(content: bytes) -> bool:
    """Say whether ``content`` is UTF-8; msgspec checks only the texts that it returns."""
    if content.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(content), _UTF8_BLOCK):
            decoder.decode(content[start : start + _UTF8_BLOCK])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _has_long_number(content: bytes) -> bool:
    """Say whether ``content`` may have a whole number of over `_LONGEST_NUMBER` digits.

    Such a number has one of the places that are looked at, and on one side of it far more digits than usual.
    """
    places = range(0, len(content), _LONGEST_NUMBER - 128)
    return any(
        content[place : place + 64].isdigit() or content[max(place - 64, 0) : place].isdigit()
        for place in places
    )


def _joined(annotations: Sequence[msgspec.Raw]) -> Iterator[bytes]:
    """Yield JSON lists of at most `_AT_ONCE` of the undecoded ``annotations``."""
    for start in range(0, len(annotations), _AT_ONCE):
        yield b"[" + b",".join(annotations[start : start + _AT_ONCE]) + b"]"


def _decode_annotations(content: bytes) -> _Written:
    entries, count = _annotations.decode(content), -1
    flags = [(one.iscrowd, one.difficult, one.ignore) for one in entries]
    kinds = list(map(_categories_of, entries))
    written = _Written(
        images=np.fromiter((one.image_id for one in entries), np.int64, count),
        categories=np.array([kind for own in kinds for kind in own], np.int64),
        kinds=np.fromiter(map(len, kinds), np.int64, count),
        boxes=np.array([one.bbox for one in entries], np.float64),
        area=np.fromiter((one.area for one in entries), np.float64, count),
        flags=np.array(flags, np.float64),
        attributes=[_attributes_of(one) for one in entries],
    )
    areas = np.nan_to_num(written.area, nan=0.0)
    if (
        (np.abs(written.boxes) > MAX_COORDINATE).any()
        or ((areas < 0) | (areas > MAX_COORDINATE**2)).any()
        or ((written.flags != 0) & (written.flags != 1)).any()
    ):
        raise _UnexpectedError
    return written


def _categories_of(entry: _Annotation) -> Sequence[int]:
    """Return the ids of the categories, as `category_ids` does. Raises _UnexpectedError for none."""
    if entry.category_ids is msgspec.UNSET:
        if entry.category_id is msgspec.UNSET:
            raise _UnexpectedError
        return (entry.category_id,)
    several = list(dict.fromkeys(entry.category_ids))
    if not several or not (entry.category_id is msgspec.UNSET or entry.category_id in several):
        raise _UnexpectedError
    return several


def _attributes_of(entry: _Annotation) -> tuple[Attribute, ...]:
    """Return the attributes. Raises _UnexpectedError for numbers that the other way may write otherwise."""
    if not isinstance(entry.attributes, dict):
        return ()
    if not all(isinstance(value, str | bool | None) for value in entry.attributes.values()):
        for value in _numbers_in(entry.attributes):
            if not abs(value) < _EXACT:
                raise _UnexpectedError
    return attribute_labels(entry.attributes)


def _numbers_in(attributes: dict[str, Any]) -> Iterator[float]:
    for value in attributes.values():
        yield from (
            one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int | float)
        )


def _concatenated(parts: Iterable[_Written]) -> _Written:
    nothing = _Written(
        images=np.zeros(0, np.int64),
        categories=np.zeros(0, np.int64),
        kinds=np.zeros(0, np.int64),
        boxes=np.zeros((0, 4)),
        area=np.zeros(0),
        flags=np.zeros((0, len(_FLAGS))),
        attributes=[],
    )
    every = [nothing, *parts]
    arrays = [name for name in _Written.__slots__ if name != "attributes"]
    return _Written(
        attributes=[attributes for one in every for attributes in one.attributes],
        **{name: np.concatenate([getattr(one, name) for one in every]) for name in arrays},
    )


def _checked_images(images: list[_Image]) -> list[_ImageRow]:
    rows: list[_ImageRow] = []
    for one in images:
        record = str(one.id) if one.voc_id is msgspec.UNSET else one.voc_id
        for name in (one.file_name,) if one.voc_id is msgspec.UNSET else (one.file_name, one.voc_id):
            if not _stays_inside(name):
                raise _UnexpectedError
        height, width = one.height, one.width
        if not (0 <= height <= MAX_COORDINATE and 0 <= width <= MAX_COORDINATE):
            raise _UnexpectedError
        if height != int(height) or width != int(width) or abs(one.id) >= MAX_ID:
            raise _UnexpectedError
        rows.append((one.id, record, one.file_name, int(height), int(width)))
    if len({row[0] for row in rows}) < len(rows):
        raise _UnexpectedError
    return rows


def _stays_inside(name: str) -> bool:
    """Say whether `require_inside` accepts ``name``."""
    if ".." not in name and _PLAIN.fullmatch(name):
        return True
    try:
        require_inside(name, "", "")
    except InputError:
        return False
    return True


def _checked_categories(categories: list[_Category]) -> list[tuple[int, str]]:
    """Return the ids and names in the order of the ids."""
    rows = sorted((one.id, one.name) for one in categories)
    if len(rows) > len({key for key, _ in rows}) or len(rows) > len({name for _, name in rows}):
        raise _UnexpectedError
    if any(abs(key) >= MAX_ID or not name.strip() for key, name in rows):
        raise _UnexpectedError
    return rows


def _columns(
    images: list[_ImageRow], categories: list[tuple[int, str]], written: _Written, missing: list[str]
) -> CocoColumns:
    """Return the columns, with annotations ordered by image. Raises _UnexpectedError for an unknown id."""
    ids = np.array([row[0] for row in images], np.int64)
    category_ids = np.array([key for key, _ in categories], np.int64)
    # A row for each category of each annotation; `of` is the number of its annotation in the file.
    of = np.repeat(np.arange(len(written.kinds)), written.kinds)
    rows = _rows_of(written.images[of], ids)
    by_image = np.argsort(rows, kind="stable")
    order = of[by_image]
    counts = np.bincount(rows, minlength=len(ids))
    sizes = np.array([row[3:] for row in images], np.int32).reshape(-1, 2)
    sizes[(sizes == 0).any(1)] = 0
    iscrowd, difficult, ignore = (written.flags[order].reshape(-1, len(_FLAGS)) != 0).T.copy()
    return CocoColumns(
        ids=ids,
        record_ids=Texts.of(row[1] for row in images),
        files=Texts.of(row[2] for row in images),
        sizes=sizes,
        category_ids=category_ids,
        category_names=Texts.of(name for _, name in categories),
        missing=Texts.of(missing),
        offsets=np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64))),
        numbers=order.astype(np.int64),
        categories=_rows_of(written.categories, category_ids)[by_image].astype(np.int32),
        boxes=written.boxes[order],
        area=written.area[order],
        iscrowd=iscrowd,
        difficult=difficult,
        ignore=ignore,
        **_attributes(written.attributes, order),
    )


def _attributes(attributes: Sequence[Sequence[Attribute]], order: NDArray[np.int64]) -> dict[str, Any]:
    """Return the columns of the attributes, on the last row of each annotation; ``order`` (A,) as above."""
    if not any(attributes):
        return {}
    last = np.append(order[1:] != order[:-1], True)[: len(order)].tolist()
    numbers = zip(order.tolist(), last, strict=True)
    return attribute_columns([attributes[number] if is_last else () for number, is_last in numbers])


def _rows_of(wanted: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place in ``ids`` of each of ``wanted`` (n,). Raises _UnexpectedError for one not there."""
    if not len(wanted):
        return np.zeros(0, np.int64)
    order = np.argsort(ids)
    places = np.searchsorted(ids, wanted, sorter=order)
    if not len(ids) or (places == len(ids)).any() or (ids[order[places]] != wanted).any():
        raise _UnexpectedError
    return order[places].astype(np.int64)


def _hash_of(content: bytes) -> str:
    """Return the hash that `file_hash` gives for a file with this ``content``."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _from_cache(path: Path, cache: AnnotationCache | None, *, attributes: bool) -> CocoColumns | None:
    if cache is None:
        return None
    require_regular(path)
    if path.stat().st_size > MAX_JSON_BYTES:  # refused when it is read
        return None
    entry = cache.read(path, CocoColumns)
    if entry is None:
        return None
    digest = file_hash(path)
    accepted = (digest + WITH_ATTRIBUTES, *(() if attributes else (digest,)))
    return entry.columns if entry.content in accepted else None
