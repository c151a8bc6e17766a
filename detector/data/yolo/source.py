"""Reading data sets in YOLO's layout, which `detector.data.yolo.layout` describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from detector.core.errors import FaultHandler, InputError
from detector.core.files import MAX_TEXT_BYTES, read_limited_bytes
from detector.core.listing import existing
from detector.core.records import Texts
from detector.core.yolo_file import read_yolo
from detector.data.annotation_cache import AnnotationCache
from detector.data.file_columns import FileAnnotation, FileColumns, FileParser, read_files
from detector.data.image_set import ImageSet, ImageSetSource, distinct_ids, objects_of
from detector.data.selection import Selection
from detector.data.yolo.layout import YoloLayout, YoloYaml, read_yolo_yaml


@dataclass(frozen=True, kw_only=True)
class YoloSource(ImageSetSource):
    """A `detector.data.source.DataSource` in YOLO's layout.

    ``annotations`` is the data.yaml below ``root``. ``images`` is not used: data.yaml names them. With
    ``whole`` every split has all images of data.yaml, for a division by ratio. An image without labels has no
    objects. An image's id is its path below ``root`` without suffix. Sizes come from the image files.
    """

    annotations: str = "data.yaml"
    whole: bool = False

    declares_classes: ClassVar[bool] = True

    def image_list(self, split: str) -> Path:
        try:
            layout = self._layout()
            return layout.description.path if self.whole else layout.places(split)[0]
        except InputError:
            # Nothing is below a file: so the place of a split that data.yaml does not name never exists.
            return self.root / self.annotations / (split or "train")

    def _layout(self) -> YoloLayout:
        if not self.root.is_dir():
            raise InputError(
                f"data root {self.root} does not exist; expected a folder in YOLO's layout: data.yaml, "
                "images/ and labels/"
            )
        return YoloLayout(self.root, read_yolo_yaml(self.root / self.annotations, self.root))

    def open(self, split: str, on_fault: FaultHandler | None = None) -> YoloSet:
        layout = self._layout()
        splits = layout.description.splits if self.whole else (split,)
        images = dict.fromkeys(image for one in splits for image in layout.images(one, on_fault))
        listed_in = layout.description.path if self.whole else layout.places(split)[0]
        return YoloSet(layout, listed_in, list(images), self.cache)

    def every_image(self, *splits: str) -> list[ImageSet]:
        return []

    def class_names(self, *splits: str, choose: Selection | None = None) -> tuple[str, ...]:
        """Return the names in data.yaml; the splits and ``choose`` have no effect on them."""
        return self._layout().description.names

    def _names(self, columns: FileColumns) -> tuple[str, ...]:
        return self.class_names()


class YoloSet(ImageSet):
    """The images of a split in YOLO's layout."""

    in_fractions: ClassVar[bool] = True

    def __init__(
        self, layout: YoloLayout, listed_in: Path, images: Sequence[str], cache: AnnotationCache | None
    ) -> None:
        self.root, self.listed_in, self.images = layout.root, listed_in, images
        self.image_ids = [str(PurePosixPath(image).with_suffix("")) for image in images]
        distinct_ids(self.image_ids, images, "two images differ only in their suffix: remove one")
        self.annotations = [layout.labels(image) for image in images]
        self._exists = existing(list(map(str, self.annotations)))
        self._description = layout.description
        self._cache = cache

    def is_annotated(self, row: int) -> bool:
        return bool(self._exists[row])

    def columns(self, rows: Sequence[int]) -> FileColumns:
        """Return the labels, with the names of the classes and boxes as fractions; none without a file."""
        there = [row for row in rows if self._exists[row]]
        found = read_files(
            [self.annotations[row] for row in there],
            self.root,
            _parser(keypoints=self._description.keypoints),
            self._cache,
        )
        empty = FileColumns.of_annotations([FileAnnotation(path=self.listed_in, size=None, objects=[])])
        place = {row: number for number, row in enumerate(there)}
        joined = FileColumns.joined([found, empty]).take([place.get(row, len(there)) for row in rows])
        return self._named(joined, rows)

    def _named(self, columns: FileColumns, rows: Sequence[int]) -> FileColumns:
        """Return ``columns`` with names in place of the numbers of classes, sorted as columns are."""
        numbers = [int(text) for text in columns.class_names]
        known = self._description.names
        unknown = [place for place, number in enumerate(numbers) if number >= len(known)]
        if unknown:
            row = int(np.flatnonzero(np.isin(columns.classes, unknown))[0])
            file = rows[int(np.searchsorted(columns.offsets, row, side="right")) - 1]
            number = numbers[columns.classes[row]]
            raise _unknown_class(number, self._description, self.annotations[file], columns.places[row])
        names = [known[number] for number in numbers]
        order = np.argsort(np.array(names, object), kind="stable").astype(np.int64)
        return replace(
            columns,
            class_names=Texts.of(names[place] for place in order.tolist()),
            classes=np.argsort(order)[columns.classes].astype(np.int32) if names else columns.classes,
        )

    def annotation(self, row: int, on_fault: FaultHandler) -> FileAnnotation:
        path, known = self.annotations[row], self._description.names
        if not self._exists[row]:
            return FileAnnotation(path=path, size=None, objects=[])
        objects = []
        for thing in _read(path, keypoints=self._description.keypoints, on_fault=on_fault).objects:
            if int(thing.name) < len(known):
                objects.append(replace(thing, name=known[int(thing.name)]))
            else:
                on_fault(_unknown_class(int(thing.name), self._description, path, thing.place))
        return FileAnnotation(path=path, size=None, objects=objects)


def _unknown_class(number: int, description: YoloYaml, path: Path, place: str) -> InputError:
    last = len(description.names) - 1
    return InputError(
        f"{path}: {place}: class {number} is not among the classes 0 to {last} that {description.path} "
        "names; correct the number, or add the class there"
    )


def _parser(*, keypoints: int) -> FileParser:
    kind = f"YOLO labels with {keypoints} numbers of keypoints" if keypoints else "YOLO labels"
    return FileParser(f"{kind} by file and hash", partial(_read, keypoints=keypoints), _read_bytes)


def _read(path: Path, *, keypoints: int, on_fault: FaultHandler | None = None) -> FileAnnotation:
    shapes = read_yolo(path, keypoints=keypoints, on_fault=on_fault)
    return FileAnnotation(path=path, size=None, objects=objects_of(shapes, path))


def _read_bytes(path: Path) -> bytes:
    return read_limited_bytes(path, "the labels", MAX_TEXT_BYTES)
