"""Data sets that a function of the user reads, named ``module:Name`` in ``data.format``."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from detector.core.errors import FaultHandler, InputError
from detector.core.shapes import label_of
from detector.core.user_code import load_object
from detector.data.file_columns import FileAnnotation, FileColumns
from detector.data.image_set import ImageSet, ImageSetSource, distinct_ids
from detector.data.paths import require_inside
from detector.data.targets import MAX_COORDINATE, AnnotatedObject, Box


@dataclass(frozen=True, kw_only=True)
class OwnSource(ImageSetSource):
    """A `detector.data.source.DataSource` whose images and objects the function ``function`` yields.

    It is called as ``load(root, split)`` and yields, per image of the split, (path below the root, objects)
    with objects a list of (class name, (x1, y1, x2, y2)), half-open in pixels of the upright image. It yields
    nothing for a split that does not exist. With ``whole`` the split is None, for all images, which are
    divided by ratio. ``annotations`` and ``images`` are not used. An image's id is its path without suffix.
    Sizes come from the image files.
    """

    function: str
    annotations: str = "."
    whole: bool = False

    def image_list(self, split: str) -> Path:
        return self.root

    def open(self, split: str, on_fault: FaultHandler | None = None) -> OwnSet:
        if not self.root.is_dir():
            raise InputError(f"data root {self.root} does not exist; expected the folder of the images")
        return OwnSet(self.root, self._where, self._items(split), on_fault or _refuse)

    def every_image(self, *splits: str) -> list[ImageSet]:
        return [self.open(split) for split in (splits[:1] if self.whole else dict.fromkeys(splits))]

    @property
    def _where(self) -> str:
        return f"{self.root}: data.format {self.function!r}"

    def _items(self, split: str) -> Iterator[Any]:
        load = load_object(self.function, "data.format")
        try:
            yield from load(self.root, None if self.whole else split)
        except Exception as error:  # the code is the user's, and may fail in any way
            raise InputError(f"{self._where} failed: {type(error).__name__}: {error}") from error


class OwnSet(ImageSet):
    """The images of a split that a function of the user has yielded as ``items``."""

    def __init__(self, root: Path, where: str, items: Iterable[Any], on_fault: FaultHandler) -> None:
        self.root = self.listed_in = root
        found: dict[str, Sequence[Any]] = {}
        for number, item in enumerate(items):
            try:
                image, objects = _image(item, f"{where}, image {number}")
                if image in found:
                    raise InputError(f"{where}, image {number}: yields {image!r} twice; join its objects")
                found[image] = objects
            except InputError as error:
                on_fault(error)
        self.images = list(found)
        self.image_ids = [str(PurePosixPath(image).with_suffix("")) for image in self.images]
        distinct_ids(self.image_ids, self.images, "two images differ only in their suffix: remove one")
        self.annotations = [root / image for image in self.images]
        self._objects = list(found.values())

    def is_annotated(self, row: int) -> bool:
        return True

    def columns(self, rows: Sequence[int]) -> FileColumns:
        return FileColumns.of_annotations([self.annotation(row, _refuse) for row in rows])

    def annotation(self, row: int, on_fault: FaultHandler) -> FileAnnotation:
        path, objects = self.annotations[row], []
        for number, thing in enumerate(self._objects[row]):
            try:
                objects.append(_object(thing, path, f"objects[{number}]"))
            except InputError as error:
                on_fault(error)
        return FileAnnotation(path=path, size=None, objects=objects)


def _refuse(error: InputError) -> None:
    raise error


def _image(item: Any, where: str) -> tuple[str, Sequence[Any]]:
    """Return the path below the root, with ``/`` between its parts, and the objects that ``item`` has."""
    sound = isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str | os.PathLike)
    if not sound or not isinstance(item[1], tuple | list):
        raise InputError(f"{where}: {item!r:.80}; expected (path below the root, list of objects)")
    name = os.fspath(item[0])
    if not isinstance(name, str):
        raise InputError(f"{where}: the path {name!r:.80} is not text")
    require_inside(name, f"{where}:", "the path of the image below the data root")
    return PurePosixPath(name).as_posix(), item[1]


def _object(thing: Any, path: Path, place: str) -> AnnotatedObject:
    """Return the object that ``thing``, (class name, (x1, y1, x2, y2)), is in the image ``path``."""
    where = f"{path}: {place}"
    if not isinstance(thing, tuple | list) or len(thing) != 2:
        raise InputError(f"{where}: {thing!r:.80}; expected (class name, (x1, y1, x2, y2))")
    box = _box(thing[1], where)
    return AnnotatedObject(name=label_of(thing[0], where), box=box, file=path, place=place, written=box)


def _box(box: Any, where: str) -> Box:
    try:
        x1, y1, x2, y2 = map(float, box)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: the box {box!r:.80}; expected four numbers x1, y1, x2, y2") from None
    if not all(math.isfinite(side) and abs(side) <= MAX_COORDINATE for side in (x1, y1, x2, y2)):
        raise InputError(f"{where}: the box {box!r:.80} is not in pixels; correct it")
    return x1, y1, x2, y2
