"""Annotation files of which a folder has one per image, as columns, each file parsed once per change of it.

The cache has one entry per folder, and in it the hash of every file that was parsed: a file is parsed again
when its content has changed, and the others are not. So every split and every selection of images is served
by the same entry.

Whether a file has changed is decided by its content. To ask for its size and times would cost the disk as
much, and both may be the same although the content is not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.listing import asked, existing
from detector.core.records import Texts, ranges
from detector.data.annotation_cache import (
    AnnotationCache,
    Entry,
    Layout,
    require_below,
    require_parts,
    require_pixels,
    texts,
)
from detector.data.attributes import AttributeColumns, attribute_columns, joined_attributes
from detector.data.targets import AnnotatedObject, ObjectColumns

_HASH_BYTES = 16
UNKNOWN = bytes(_HASH_BYTES)
"""The hash of a file that cannot be read; what it holds is never kept."""
WITH_ATTRIBUTES = ", with attributes"
"""Ends the description of an entry that has the attributes of its objects, if they have any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileAnnotation:
    """One file: ``size`` is (height, width) in pixels, None where the file gives none.

    ``filename`` is the image's name according to the file, None where it gives none. ``path`` is the file.
    """

    path: Path
    size: tuple[int, int] | None
    objects: list[AnnotatedObject]
    filename: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class FileColumns(AttributeColumns):
    """N annotation files and their G objects.

    ``files`` are their paths below the folder of annotations, ``hashes`` (N, 16) those of their contents.
    ``sizes`` (N, 2) are (height, width), 0 where a file gives none, and ``filenames`` the images' names
    according to the files, "" where one gives none. The objects of file i are ``offsets[i]`` to
    ``offsets[i + 1]``. ``class_names`` are sorted, and ``classes`` (G,) are numbers of them. ``corners``
    (G, 4) are the left, upper, right and lower end of the boxes as written, ``places`` name the objects in
    messages. An object with several names has a row for each.
    """

    files: Texts
    hashes: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    filenames: Texts
    class_names: Texts
    offsets: NDArray[np.int64]
    classes: NDArray[np.int32]
    corners: NDArray[np.float64]
    difficult: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    places: Texts

    LAYOUT: ClassVar[Layout] = {
        **texts("files", "filenames", "class_names", "places"),
        "hashes": ("|u1", _HASH_BYTES),
        "sizes": ("<i4", 2),
        "offsets": ("<i8", None),
        "classes": ("<i4", None),
        "corners": ("<f8", 4),
        "difficult": ("|b1", None),
        "ignore": ("|b1", None),
    }

    def __post_init__(self) -> None:
        """Raise ValueError for columns that do not fit, which only a file from elsewhere has."""
        require_parts(self.offsets, len(self), len(self.classes))
        columns = (self.classes, self.corners, self.difficult, self.ignore, self.places)
        files = {len(self), len(self.hashes), len(self.sizes), len(self.filenames)}
        if len(files) > 1 or len({len(one) for one in columns}) > 1:
            raise ValueError("the lengths of its columns do not fit")
        require_below(self.classes, len(self.class_names))
        require_pixels(self.corners, self.sizes)
        self.require_attributes(len(self.classes))

    def __len__(self) -> int:
        """Return the number of files N."""
        return len(self.files)

    @classmethod
    def of(
        cls, files: Sequence[str], hashes: Sequence[bytes], annotations: Sequence[FileAnnotation], **more: Any
    ) -> Self:
        """Return the columns of ``annotations``, read from ``files`` with these hashes.

        ``more`` are the further fields of a class that inherits from this one.
        """
        things = [thing for annotation in annotations for thing in annotation.objects]
        names = sorted({thing.name for thing in things})
        number_of = {name: number for number, name in enumerate(names)}
        ends = np.cumsum([0, *(len(annotation.objects) for annotation in annotations)], dtype=np.int64)
        return cls(
            files=Texts.of(files),
            hashes=np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, _HASH_BYTES),
            sizes=np.array([one.size or (0, 0) for one in annotations], np.int32).reshape(-1, 2),
            filenames=Texts.of(one.filename or "" for one in annotations),
            class_names=Texts.of(names),
            offsets=ends,
            classes=np.array([number_of[thing.name] for thing in things], np.int32),
            corners=np.array([thing.written for thing in things], np.float64).reshape(-1, 4),
            difficult=np.array([thing.difficult for thing in things], np.bool_),
            ignore=np.array([thing.ignore for thing in things], np.bool_),
            places=Texts.of(thing.place for thing in things),
            **attribute_columns([thing.attributes for thing in things]),
            **more,
        )

    @classmethod
    def of_annotations(cls, annotations: Sequence[FileAnnotation]) -> Self:
        """Return the columns of ``annotations`` that are not kept in a cache, without names and hashes."""
        return cls.of([""] * len(annotations), [UNKNOWN] * len(annotations), annotations)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Self:
        """Return the files ``rows`` (n,), in that order, and only the class names of their objects."""
        chosen = np.asarray(rows, np.int64)
        counts = np.diff(self.offsets)[chosen]
        at = ranges(self.offsets[:-1][chosen], counts)
        used, classes = np.unique(self.classes[at], return_inverse=True)
        return replace(
            self,
            files=self.files.take(chosen),
            hashes=self.hashes[chosen],
            sizes=self.sizes[chosen],
            filenames=self.filenames.take(chosen),
            class_names=self.class_names.take(used.astype(np.int64)),
            offsets=np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64))),
            classes=classes.reshape(-1).astype(np.int32),
            corners=self.corners[at],
            difficult=self.difficult[at],
            ignore=self.ignore[at],
            places=self.places.take(at),
            **self.attributes_at(at, len(self.classes)),
            **self._more_at(chosen),
        )

    def _more_at(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Return the files ``rows`` (n,) of the further fields of a class that inherits from this one."""
        return {}

    @classmethod
    def joined(cls, parts: Sequence[FileColumns]) -> FileColumns:
        """Return the files of all ``parts``, one part after the other."""
        names = sorted({name for part in parts for name in part.class_names})
        number_of = {name: number for number, name in enumerate(names)}
        renamed = [np.array([number_of[name] for name in part.class_names], np.int32) for part in parts]
        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(
            files=Texts.of(file for part in parts for file in part.files),
            hashes=np.concatenate([part.hashes for part in parts]),
            sizes=np.concatenate([part.sizes for part in parts]),
            filenames=Texts.of(name for part in parts for name in part.filenames),
            corners=np.concatenate([part.corners for part in parts]),
            difficult=np.concatenate([part.difficult for part in parts]),
            ignore=np.concatenate([part.ignore for part in parts]),
            places=Texts.of(place for part in parts for place in part.places),
            class_names=Texts.of(names),
            **joined_attributes(parts, [len(part.classes) for part in parts]),
            offsets=np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64))),
            classes=np.concatenate(
                [new[part.classes] for new, part in zip(renamed, parts, strict=True)], dtype=np.int32
            ),
        )

    def objects(
        self, paths: Sequence[Path], boxes: NDArray[np.float64], wanted: Sequence[str] = ()
    ) -> ObjectColumns:
        """Return the objects, with a row for each label of the attributes ``wanted``.

        ``boxes`` (G, 4) are the half-open boxes in pixels, and ``paths`` (N,) those of the files, for
        messages.
        """
        names = tuple(self.class_names)

        def describe(row: int) -> AnnotatedObject:
            file = int(np.searchsorted(self.offsets, row, side="right")) - 1
            x1, y1, x2, y2 = boxes[row].tolist()
            return AnnotatedObject(
                name=names[self.classes[row]],
                box=(x1, y1, x2, y2),
                difficult=bool(self.difficult[row]),
                ignore=bool(self.ignore[row]),
                file=paths[file],
                place=self.places[row],
                written=self.corners[row].tolist(),
            )

        count = len(self.classes)
        things = ObjectColumns(
            names=names,
            offsets=self.offsets,
            classes=self.classes,
            boxes=boxes,
            difficult=self.difficult,
            crowd=np.zeros(count, np.bool_),
            ignore=self.ignore,
            area=np.full(count, np.nan),
            numbers=np.arange(count),
            describe=describe,
        )
        return self.labelled(things, wanted)

    def places_by_file(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the image's name according to each file, "" without one, and the places of its objects."""
        places, offsets = list(self.places), self.offsets.tolist()
        for row, filename in enumerate(self.filenames):
            yield filename, places[offsets[row] : offsets[row + 1]]


@dataclass(frozen=True)
class FileParser:
    """How the files of a format are read: ``parse`` reads one, and ``read_bytes`` returns its bytes.

    Both raise InputError. ``content`` describes an entry of the cache; what else than the file's content
    decides the result belongs into it.
    """

    content: str
    parse: Callable[[Path], FileAnnotation]
    read_bytes: Callable[[Path], bytes]

    def hash_of(self, path: str) -> bytes:
        """Return the hash of a file's content, `UNKNOWN` if it cannot be read."""
        try:
            return hashlib.blake2b(self.read_bytes(Path(path)), digest_size=_HASH_BYTES).digest()
        except InputError:
            return UNKNOWN


def read_files(
    paths: Sequence[Path],
    folder: Path,
    parser: FileParser,
    cache: AnnotationCache | None,
    *,
    attributes: bool = False,
    errors: dict[Path, InputError] | None = None,
) -> FileColumns:
    """Return the content of the annotation files ``paths``, all below ``folder``, in their order.

    Only with ``attributes`` are those of the objects needed, which entries of earlier versions lack. With
    ``errors`` a file that the parser refuses is entered there and has no objects.

    Raises InputError for the first file that the parser refuses.
    """
    if cache is None:
        return FileColumns.of_annotations([_parse(path, parser, errors) for path in paths])
    names = [path.relative_to(folder).as_posix() for path in paths]
    keys = list(zip(names, asked(list(map(str, paths)), parser.hash_of), strict=True))
    known, content = _known(cache, folder, parser.content, attributes=attributes)
    row_of = {key: row for row, key in enumerate(_keys(known)) if key[1] != UNKNOWN}
    missing = [number for number, key in enumerate(keys) if key not in row_of]
    if missing:
        read = _parsed(
            [paths[number] for number in missing], [keys[number] for number in missing], parser, errors
        )
        row_of |= {keys[number]: len(known) + row for row, number in enumerate(missing)}
        known = FileColumns.joined([known, read])
        cache.write(folder, Entry(content, _worth_keeping(known, folder)))
    return known.take([row_of[key] for key in keys])


def _known(
    cache: AnnotationCache, folder: Path, content: str, *, attributes: bool
) -> tuple[FileColumns, str]:
    """Return what the cache has of ``folder``, and the description of an entry that adds to it."""
    entry = cache.read(folder, FileColumns)
    accepted = (content + WITH_ATTRIBUTES, *(() if attributes else (content,)))
    if entry is None or entry.content not in accepted:
        return FileColumns.of([], [], []), content + WITH_ATTRIBUTES
    return entry.columns, entry.content


def _parsed(
    paths: Sequence[Path],
    keys: Sequence[tuple[str, bytes]],
    parser: FileParser,
    errors: dict[Path, InputError] | None,
) -> FileColumns:
    annotations = [_parse(path, parser, errors) for path in paths]
    after = asked(list(map(str, paths)), parser.hash_of)  # a file may have changed before it was parsed
    hashes = [
        before if before == now and path not in (errors or ()) else UNKNOWN
        for path, (_, before), now in zip(paths, keys, after, strict=True)
    ]
    return FileColumns.of([name for name, _ in keys], hashes, annotations)


def _parse(path: Path, parser: FileParser, errors: dict[Path, InputError] | None) -> FileAnnotation:
    try:
        return parser.parse(path)
    except InputError as error:
        if errors is None:
            raise
        errors[path] = error
        return FileAnnotation(path=path, size=None, objects=[])


def _worth_keeping(columns: FileColumns, folder: Path) -> FileColumns:
    """Return the files that still exist, each as it was read last."""
    last = {name: row for row, (name, digest) in enumerate(_keys(columns)) if digest != UNKNOWN}
    exists = existing([f"{folder}{os.sep}{name}" for name in last])
    return columns.take([row for row, there in zip(last.values(), exists, strict=True) if there])


def _keys(columns: FileColumns) -> list[tuple[str, bytes]]:
    """Return the name and the hash of each file."""
    return [(name, digest.tobytes()) for name, digest in zip(columns.files, columns.hashes, strict=True)]
