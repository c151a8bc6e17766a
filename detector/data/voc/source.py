"""Reading data sets in VOC layout, whose folders `detector.data.voc.layout` describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError, faults_to
from detector.core.records import Records, Texts, image_numbers
from detector.core.structures import ImageName
from detector.core.xml_files import read_xml_bytes
from detector.data.annotation_cache import AnnotationCache
from detector.data.file_columns import FileAnnotation, FileColumns, FileParser, read_files
from detector.data.problems import Problem, Reporter, nothing_to_score, whole_file
from detector.data.selection import Selection
from detector.data.source import Dataset, ImageToCheck, for_split, size_of
from detector.data.suspicions import at_wrong_edge, similar_names, wrong_first_pixel
from detector.data.targets import ObjectRules, TargetBuilder
from detector.data.voc.annotation import read_annotation, suspicions
from detector.data.voc.layout import VocLayout

# In the order of the VOC 2007 development kit (VOCinit.m).
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
VOC_FILES = FileParser("VOC annotations by file and hash", read_annotation, read_xml_bytes)


@dataclass(frozen=True)
class VocSource:
    """A `detector.data.source.DataSource` in VOC layout.

    ``annotations``, ``images`` and ``splits`` are folders below ``root``; ``{split}`` in the first two is
    replaced by the split's name. ``splits`` None takes every annotated image for every split.
    ``first_pixel``, 0 or 1, is the number of the first pixel in the XML files. Sizes come from <size>,
    otherwise from the image. Keys are paths below ``root``. ``attributes`` are those that count as labels.
    With a ``cache``, an annotation file is parsed once per change of it.
    """

    root: Path
    _: KW_ONLY
    annotations: str = "Annotations"
    images: str = "JPEGImages"
    splits: str | None = "ImageSets/Main"
    first_pixel: int = 1
    rules: ObjectRules = field(default_factory=ObjectRules)
    attributes: tuple[str, ...] = ()
    cache: AnnotationCache | None = None

    declares_classes: ClassVar[bool] = False

    def image_list(self, split: str) -> Path:
        if self.splits is None:
            return self.root / for_split(self.annotations, split)
        return self.root / self.splits / f"{split}.txt"

    def image_names(self, split: str) -> list[ImageName]:
        layout = self.layout(split)
        return layout.image_names(layout.split_ids(self.splits, split)[0])

    def layout(self, split: str, *, require_images: bool = False) -> VocLayout:
        """Return the folders of a split. Raises InputError if one is missing."""
        return VocLayout(self.root, *self._folders(split), require_images=require_images)

    def _folders(self, split: str) -> tuple[str, str]:
        return for_split(self.annotations, split), for_split(self.images, split)

    def class_names(self, *splits: str, choose: Selection | None = None) -> tuple[str, ...]:
        names: set[str] = set()
        for folders in dict.fromkeys(map(self._folders, splits)):
            layout = VocLayout(self.root, *folders)
            ids = layout.chosen_ids(layout.annotated_ids(), choose)
            files = [layout.annotation(image_id, layout.annotations) for image_id in ids]
            columns = self._columns(files, layout)
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
        layout = self.layout(split, require_images=require_images)
        ids, listed_in = layout.split_ids(self.splits, split, choose)
        annotated = not unannotated or any(map(layout.find_annotation, ids))
        files, columns = self._read(layout, ids, listed_in, annotated=annotated)
        names = tuple(sorted({*columns.class_names, *columns.labels_of(self.attributes)}))
        classes = names if classes is None else tuple(classes)
        build_targets = TargetBuilder(classes, self.rules.when(training=training))
        images, sizes, fault = _images(
            layout,
            ids,
            listed_in if require_images else None,
            files,
            columns,
            required=require_images or training,
        )
        starts, ends = columns.corners[:, :2] - self.first_pixel, columns.corners[:, 2:]
        boxes = np.concatenate((starts, ends + (1 - self.first_pixel)), axis=1)
        things = columns.objects(files, boxes, self.attributes).take(np.arange(len(images)))
        objects = build_targets.columns(things, sizes)
        if fault is not None:
            raise fault
        at_edge = at_wrong_edge(columns.corners, sizes[image_numbers(columns.offsets)], self.first_pixel)
        return Dataset(
            records=Records(
                folder=layout.images,
                files=Texts.of(str(image.relative_to(layout.images)) for image in images),
                image_ids=Texts.of(ids),
                keys=Texts.of(map(layout.key, images)),
                sizes=sizes,
                objects=objects,
            ),
            classes=classes,
            dropped=dict(build_targets.counts),
            coco_ids={image_id: number for number, image_id in enumerate(ids, start=1)},
            annotated=annotated,
            suspicions=(
                *_suspicions(columns, files, images),
                *wrong_first_pixel(int(at_edge.sum()), len(at_edge), self.first_pixel, str(listed_in)),
                *similar_names([*classes, *sorted(build_targets.others)], str(layout.annotations)),
            ),
        )

    def _read(
        self, layout: VocLayout, ids: Sequence[str], listed_in: Path, *, annotated: bool
    ) -> tuple[list[Path], FileColumns]:
        """Return each image's annotation file and its content; without any, the images and no objects."""
        if not annotated:
            images = [layout.image(image_id, listed_in) for image_id in ids]
            empty = [FileAnnotation(path=image, size=None, objects=[]) for image in images]
            return images, FileColumns.of_annotations(empty)
        files = [layout.annotation(image_id, listed_in) for image_id in ids]  # before any of them is read
        return files, self._columns(files, layout)

    def _columns(self, files: Sequence[Path], layout: VocLayout) -> FileColumns:
        wanted = bool(self.attributes)
        return read_files(files, layout.annotations, VOC_FILES, self.cache, attributes=wanted)

    def coco_annotations(self, split: str, classes: Sequence[str], train_split: str) -> None:
        return None

    def images_to_check(
        self, selections: Mapping[str, Selection], train_split: str, kept: Selection | None, report: Reporter
    ) -> Iterator[ImageToCheck]:
        by_folders: dict[tuple[str, str], list[str]] = {}
        for split in selections:  # splits that share their folders are read together
            by_folders.setdefault(self._folders(split), []).append(split)
        for folders, splits in by_folders.items():
            try:
                layout = VocLayout(self.root, *folders)
            except InputError as error:
                report(whole_file(self.root / folders[0], error))
                continue
            splits_of = self._splits_by_id(layout, {split: selections[split] for split in splits}, report)
            for image_id in layout.chosen_ids(layout.annotated_ids(), kept) if kept else ():
                splits_of.setdefault(image_id, [])
            yield from _to_check(layout, splits_of, train_split, report)

    def _splits_by_id(
        self, layout: VocLayout, selections: Mapping[str, Selection], report: Reporter
    ) -> dict[str, list[str]]:
        splits_of: dict[str, list[str]] = {}
        for split, choose in selections.items():
            listed_in = layout.annotations
            if self.splits is not None:
                listed_in = (self.root / self.splits).resolve() / f"{split}.txt"

            def on_fault(error: InputError, listed_in: Path = listed_in) -> None:
                report(whole_file(listed_in, error))

            with faults_to(on_fault):
                for image_id in layout.split_ids(self.splits, split, choose, on_fault)[0]:
                    splits_of.setdefault(image_id, []).append(split)
        return splits_of


def _suspicions(columns: FileColumns, files: Sequence[Path], images: Sequence[Path]) -> Iterator[Problem]:
    for row, (filename, places) in enumerate(columns.places_by_file()):
        yield from suspicions(filename, places, images[row], files[row])


def _images(
    layout: VocLayout,
    ids: Sequence[str],
    listed_in: Path | None,
    files: Sequence[Path],
    columns: FileColumns,
    *,
    required: bool,
) -> tuple[list[Path], NDArray[np.int32], InputError | None]:
    """Return the images and their sizes (N, 2), up to the first faulty one, and its error.

    An image is faulty if it is missing although ``listed_in`` is given, or has no size and is ``required``.
    """
    images: list[Path] = []
    sizes = np.array(columns.sizes)
    unknown = (sizes == 0).any(1).tolist()
    for row, (image_id, file) in enumerate(zip(ids, files, strict=True)):
        try:
            image = layout.image(image_id, listed_in)
            if unknown[row]:
                sizes[row] = size_of(image, f"{file}: no <size>", required=required)
        except InputError as error:
            return images, sizes[:row], error
        images.append(image)
    return images, sizes, None


def _to_check(
    layout: VocLayout, splits_of: Mapping[str, list[str]], train_split: str, report: Reporter
) -> Iterator[ImageToCheck]:
    files = {image_id: layout.find_annotation(image_id) for image_id in splits_of}
    annotated = {split for image_id, splits in splits_of.items() if files[image_id] for split in splits}
    unannotated = {split for splits in splits_of.values() for split in splits} - annotated - {train_split}
    for split in sorted(unannotated):
        report(nothing_to_score(layout.images, split))
    for image_id, splits in splits_of.items():
        image = layout.image(image_id)
        yield ImageToCheck(
            image_id=image_id,
            key=layout.key(image),
            splits=tuple(splits),
            annotation=files[image_id] or layout.annotations / f"{image_id}.xml",
            path=image,
            objects=() if splits and unannotated.issuperset(splits) else None,
        )
