"""What the readers of YOLO, LabelMe and Label Studio share: a split as an `ImageSet`, and a source of them.

A format says which images a split has, which file annotates each of them, and what these files contain.
Everything else is the same for all: choosing images, sizes, attributes, class names, rules, and the check.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import FaultHandler, InputError
from detector.core.listing import asked, existing
from detector.core.records import Records, Texts, image_numbers
from detector.core.shapes import Shape
from detector.core.structures import ImageName
from detector.data.annotation_cache import AnnotationCache
from detector.data.attributes import attribute_labels
from detector.data.file_columns import FileAnnotation, FileColumns
from detector.data.problems import Problem, Reporter, message_without, nothing_to_score, whole_file
from detector.data.selection import Selection
from detector.data.source import Dataset, ImageToCheck, size_of
from detector.data.suspicions import similar_names
from detector.data.targets import AnnotatedObject, ObjectRules, TargetBuilder


class ImageSet(ABC):
    """The N images of a split.

    ``listed_in`` is the file or folder that names them. ``images`` are their files below ``root``, with the
    expected place of one that is missing; they are the keys as well. ``image_ids`` differ. ``annotations``
    are the files with their annotations, which need not exist. With ``in_fractions``, boxes in these files
    are fractions of the image's width and height.
    """

    in_fractions: ClassVar[bool] = False

    root: Path
    listed_in: Path
    images: Sequence[str]
    image_ids: Sequence[str]
    annotations: Sequence[Path]

    @abstractmethod
    def is_annotated(self, row: int) -> bool:
        """Return whether image ``row`` has an annotation, perhaps one without objects."""

    @abstractmethod
    def columns(self, rows: Sequence[int]) -> FileColumns:
        """Return the annotations of the images ``rows``, in that order.

        Raises InputError for the first faulty one.
        """

    @abstractmethod
    def annotation(self, row: int, on_fault: FaultHandler) -> FileAnnotation:
        """Return the annotation of image ``row``; faults are passed to ``on_fault`` and left out.

        Raises InputError where nothing can be read.
        """

    def suspicions(self) -> Iterator[Problem]:
        """Yield what is suspicious about the split as a whole."""
        yield from ()

    def names(self) -> list[ImageName]:
        return list(map(ImageName, self.image_ids, self.images))

    def rows(self, choose: Selection | None) -> list[int]:
        """Return the numbers of the images that ``choose`` picks, in its order."""
        if choose is None:
            return list(range(len(self.images)))
        row_of = {key: row for row, key in enumerate(self.images)}
        return [row_of[name.key] for name in choose(self.names())]

    def path(self, row: int) -> Path:
        return self.root / self.images[row]


@dataclass(frozen=True)
class ImageSetSource(ABC):
    """A `detector.data.source.DataSource` that consists of an `ImageSet` per split.

    ``annotations`` and ``images`` are places below ``root`` as each format explains them. ``attributes`` are
    those that count as labels. Keys are paths below ``root``. With a ``cache``, an annotation file is parsed
    once per change of it.
    """

    root: Path
    _: KW_ONLY
    annotations: str
    images: str = "."
    rules: ObjectRules = field(default_factory=ObjectRules)
    attributes: tuple[str, ...] = ()
    cache: AnnotationCache | None = None

    declares_classes: ClassVar[bool] = False

    @abstractmethod
    def image_list(self, split: str) -> Path:
        """Return the file or folder that names the images of ``split``; it need not exist."""

    @abstractmethod
    def open(self, split: str, on_fault: FaultHandler | None = None) -> ImageSet:
        """Return the images of ``split``, all that are listed.

        With ``on_fault`` faults of the list are passed to it and left out.
        """

    @abstractmethod
    def every_image(self, *splits: str) -> list[ImageSet]:
        """Return the images in whose annotations the class names of ``splits`` are looked for."""

    def image_names(self, split: str) -> list[ImageName]:
        return self.open(split).names()

    def class_names(self, *splits: str, choose: Selection | None = None) -> tuple[str, ...]:
        names: set[str] = set()
        for images in self.every_image(*splits):
            rows = [row for row in images.rows(choose) if images.is_annotated(row)]
            columns = images.columns(rows)
            names.update(columns.class_names, columns.labels_of(self.attributes))
        return tuple(sorted(names))

    def load(
        self,
        split: str,
        classes: Sequence[str] | None = None,
        *,
        training: bool = True,
        choose: Selection | None = None,
        unannotated: bool = False,
        require_images: bool = True,
    ) -> Dataset:
        images = self.open(split)
        if not images.images:
            raise InputError(f"{images.listed_in}: {split!r} has no images; name another split")
        rows = images.rows(choose)
        if not rows:
            raise InputError(
                f"{images.listed_in}: all {len(images.images)} images of {split!r} are left out; keep at "
                "least one"
            )
        annotated = any(map(images.is_annotated, rows))
        if not annotated and not unannotated:
            raise nothing_annotated(images, split)
        required = require_images or (images.in_fractions and annotated)
        if required:
            _require_images(images, rows)
        columns = images.columns(rows) if annotated else _without_objects(images, rows)
        sizes = _sizes(images, rows, columns, required=required or training)
        files = [images.annotations[row] for row in rows]
        boxes = _pixels(columns, sizes) if images.in_fractions else columns.corners
        names = self._names(columns)
        classes = names if classes is None else tuple(classes)
        build_targets = TargetBuilder(classes, self.rules.when(training=training))
        objects = build_targets.columns(columns.objects(files, boxes, self.attributes), sizes)
        keys = [images.images[row] for row in rows]
        ids = [images.image_ids[row] for row in rows]
        return Dataset(
            records=Records(
                folder=self.root,
                files=Texts.of(keys),
                image_ids=Texts.of(ids),
                keys=Texts.of(keys),
                sizes=sizes,
                objects=objects,
            ),
            classes=classes,
            dropped=dict(build_targets.counts),
            coco_ids={image_id: number for number, image_id in enumerate(ids, start=1)},
            annotated=annotated,
            suspicions=(
                *images.suspicions(),
                *similar_names([*classes, *sorted(build_targets.others)], str(images.listed_in)),
            ),
        )

    def _names(self, columns: FileColumns) -> tuple[str, ...]:
        return tuple(sorted({*columns.class_names, *columns.labels_of(self.attributes)}))

    def coco_annotations(self, split: str, classes: Sequence[str], train_split: str) -> None:
        return None

    def images_to_check(
        self, selections: Mapping[str, Selection], train_split: str, kept: Selection | None, report: Reporter
    ) -> Iterator[ImageToCheck]:
        seen: set[str] = set()
        sound = True
        for split, choose in selections.items():
            try:
                for one in self._split_to_check(split, choose, report, trained=split == train_split):
                    seen.add(one.key)
                    yield one
            except InputError as error:
                report(whole_file(self.image_list(split), error))
                sound = False
        if kept is not None and sound:
            self._check_others(kept, tuple(selections), seen, report)

    def whole_images(self, split: str) -> Iterator[ImageToCheck]:
        """Yield every annotated image of a split with its objects as annotated, in pixels.

        Raises InputError for any fault.
        """

        def refuse(error: InputError) -> None:
            raise error

        images = self.open(split, refuse)
        if not any(map(images.is_annotated, range(len(images.images)))):
            raise nothing_annotated(images, split)
        for row in range(len(images.images)):
            found = images.annotation(row, refuse)
            yield _to_check(images, row, split, found.size, found.objects)

    def _split_to_check(
        self, split: str, choose: Selection, report: Reporter, *, trained: bool
    ) -> Iterator[ImageToCheck]:
        place = self.image_list(split)
        images = self.open(split, lambda error: report(_fault(error, place, splits=(split,))))
        rows = images.rows(choose)
        if not rows:
            raise InputError(f"{images.listed_in}: no image is left of {split!r}; keep at least one")
        annotated = any(map(images.is_annotated, rows))
        if not annotated and trained:
            raise nothing_annotated(images, split)
        if not annotated:
            report(nothing_to_score(place, split))
        for problem in images.suspicions():
            report(problem)
        for row in rows:
            size, objects = _read_to_check(images, row, (split,), report) if annotated else (None, [])
            yield _to_check(images, row, split, size, objects)

    def _check_others(self, kept: Selection, splits: Sequence[str], seen: set[str], report: Reporter) -> None:
        """Report faults in the annotations of images that no split names, as class names are read there."""
        try:
            for images in self.every_image(*splits):
                for row in images.rows(kept):
                    if images.images[row] not in seen and images.is_annotated(row):
                        _read_to_check(images, row, (), report)
        except InputError as error:
            report(whole_file(self.root, error))


def _without_objects(images: ImageSet, rows: Sequence[int]) -> FileColumns:
    empty = [FileAnnotation(path=images.path(row), size=None, objects=[]) for row in rows]
    return FileColumns.of_annotations(empty)


def nothing_annotated(images: ImageSet, split: str) -> InputError:
    return InputError(
        f"{images.listed_in}: no image of {split!r} is annotated; the annotation of the first, "
        f"{images.images[0]}, was expected in {images.annotations[0]}"
    )


def missing_image(images: ImageSet, row: int) -> InputError:
    return InputError(
        f"{images.listed_in}: image {images.images[row]!r} is missing: expected {images.path(row)}; put it "
        "there or leave it out (data.leave_out)"
    )


def _require_images(images: ImageSet, rows: Sequence[int]) -> None:
    there = existing([str(images.path(row)) for row in rows])
    if not there.all():
        raise missing_image(images, rows[int(np.flatnonzero(~there)[0])])


def _sizes(
    images: ImageSet, rows: Sequence[int], columns: FileColumns, *, required: bool
) -> NDArray[np.int32]:
    """Return the sizes (n, 2) of the images ``rows``, from the image files where annotations have none."""
    sizes = np.array(columns.sizes)
    unknown = np.flatnonzero((sizes == 0).any(1)).tolist()

    def size(path: str, missing: str) -> tuple[int, int] | InputError:
        try:
            return size_of(Path(path), missing, required=required)
        except InputError as error:
            return error

    missing = f"{images.listed_in}: the size of an image is unknown"
    found = asked([str(images.path(rows[row])) for row in unknown], partial(size, missing=missing))
    for row, one in zip(unknown, found, strict=True):
        if isinstance(one, InputError):
            raise one
        sizes[row] = one
    return sizes


def _pixels(columns: FileColumns, sizes: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the boxes (G, 4) in pixels of images of these ``sizes`` (N, 2)."""
    sides = sizes[image_numbers(columns.offsets)][:, [1, 0, 1, 0]]
    scaled: NDArray[np.float64] = columns.corners * sides
    return scaled


def _to_check(
    images: ImageSet, row: int, split: str, size: tuple[int, int] | None, objects: Sequence[AnnotatedObject]
) -> ImageToCheck:
    if images.in_fractions:
        try:
            height, width = size = size_of(images.path(row), "", required=True)
        except InputError:
            size, objects = None, ()  # the check of the image reports it
        else:
            objects = [_scaled(thing, (height, width)) for thing in objects]
    return ImageToCheck(
        image_id=images.image_ids[row],
        key=images.images[row],
        splits=(split,),
        annotation=images.annotations[row],
        path=images.path(row),
        size=size,
        objects=tuple(objects),
    )


def _scaled(thing: AnnotatedObject, size: tuple[int, int]) -> AnnotatedObject:
    height, width = size
    x1, y1, x2, y2 = thing.box
    return replace(thing, box=(x1 * width, y1 * height, x2 * width, y2 * height))


def _fault(error: InputError, file: Path, **more: Any) -> Problem:
    """Return the problem of a faulty line, shape or region in ``file``; ``more`` are further fields."""
    text = message_without(error, file)
    place, colon, rest = text.partition(": ")
    if not colon:  # "PLACE has no ..."
        place = text.partition(" has ")[0]
    inside = place != text and place.startswith(("line ", "shapes[", "tasks[", "objects["))
    message = rest if inside and colon else text
    thing = place if inside else None
    return Problem(kind="annotation", file=str(file), object=thing, message=message, stops=True, **more)


def _read_to_check(
    images: ImageSet, row: int, splits: tuple[str, ...], report: Reporter
) -> tuple[tuple[int, int] | None, list[AnnotatedObject]]:
    file = images.annotations[row]
    names = {"image_id": images.image_ids[row], "key": images.images[row], "splits": splits}

    def on_fault(error: InputError) -> None:
        report(_fault(error, file, **names))

    try:
        found = images.annotation(row, on_fault)
    except InputError as error:
        on_fault(error)
        return None, []
    return found.size, found.objects


def objects_of(shapes: Sequence[Shape], path: Path) -> list[AnnotatedObject]:
    """Return the objects of ``shapes``, drawn in the file ``path``, each once for each of its labels."""
    return [
        AnnotatedObject(
            name=label,
            box=shape.box,
            difficult=shape.difficult,
            file=path,
            place=shape.place,
            written=shape.box,
            attributes=attribute_labels(shape.attributes) if label == shape.labels[-1] else (),
        )
        for shape in shapes
        for label in shape.labels
    ]


def distinct_ids(ids: Sequence[str], places: Sequence[Any], why: str) -> None:
    """Raise InputError for two images with one id; ``places`` (N,) say where each is, ``why`` what to do."""
    first: dict[str, Any] = {}
    for image_id, place in zip(ids, places, strict=True):
        before = first.setdefault(image_id, place)
        if before is not place:
            raise InputError(f"{place}: {image_id!r} is also the id of the image of {before}; {why}")
