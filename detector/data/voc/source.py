"""Reading data sets in VOC layout, whose folders `detector.data.voc.layout` describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import ClassVar

from detector.core.errors import InputError
from detector.core.structures import ImageName, ImageRecord
from detector.data.problems import Problem, Reporter, faults_to, nothing_to_score, whole_file
from detector.data.selection import Selection
from detector.data.source import Dataset, ImageToCheck, for_split, new_record, size_of
from detector.data.suspicions import at_wrong_edge, similar_names, wrong_first_pixel
from detector.data.targets import ObjectRules, TargetBuilder
from detector.data.voc.annotation import VocAnnotation, read_annotation
from detector.data.voc.layout import VocLayout

# In the order of the VOC 2007 development kit (VOCinit.m).
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)


@dataclass(frozen=True)
class VocSource:
    """A `detector.data.source.DataSource` in VOC layout.

    ``annotations``, ``images`` and ``splits`` are folders below ``root``; ``{split}`` in the first two is
    replaced by the split's name. ``splits`` None takes every annotated image for every split.
    ``first_pixel``, 0 or 1, is the number of the first pixel in the XML files. Sizes come from <size>,
    otherwise from the image. Keys are paths below ``root``.
    """

    root: Path
    _: KW_ONLY
    annotations: str = "Annotations"
    images: str = "JPEGImages"
    splits: str | None = "ImageSets/Main"
    first_pixel: int = 1
    rules: ObjectRules = field(default_factory=ObjectRules)

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
            names.update(thing.name for path in files for thing in read_annotation(path).objects)
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
        annotations = self._read(layout, ids, listed_in, annotated=annotated)
        if classes is None:
            classes = sorted({thing.name for annotation in annotations for thing in annotation.objects})
        build_targets = TargetBuilder(classes, self.rules.when(training=training))
        records: list[ImageRecord] = []
        suspicions: list[Problem] = []
        at_edge = 0
        for image_id, annotation in zip(ids, annotations, strict=True):
            image = layout.image(image_id, listed_in if require_images else None)
            missing = f"{annotation.path}: no <size>"
            size = annotation.size or size_of(image, missing, required=require_images or training)
            targets = build_targets(annotation.objects, size)
            records.append(new_record(image_id, layout.key(image), image, size, targets))
            suspicions += annotation.suspicions(image)
            corners = [thing.written for thing in annotation.objects]
            at_edge += sum(at_wrong_edge(box, size, self.first_pixel) for box in corners)
        objects = sum(len(annotation.objects) for annotation in annotations)
        suspicions += wrong_first_pixel(at_edge, objects, self.first_pixel, str(listed_in))
        suspicions += similar_names([*classes, *sorted(build_targets.others)], str(layout.annotations))
        return Dataset(
            records=records,
            classes=tuple(classes),
            dropped=dict(build_targets.counts),
            coco_ids={image_id: number for number, image_id in enumerate(ids, start=1)},
            annotated=annotated,
            suspicions=tuple(suspicions),
        )

    def _read(
        self, layout: VocLayout, ids: Sequence[str], listed_in: Path, *, annotated: bool
    ) -> list[VocAnnotation]:
        """Return the annotation of each image; where there are none, one without size and objects."""
        if not annotated:
            images = [layout.image(image_id, listed_in) for image_id in ids]
            return [VocAnnotation(path=image, size=None, objects=[]) for image in images]
        files = [layout.annotation(image_id, listed_in) for image_id in ids]  # before any of them is read
        return [read_annotation(file, self.first_pixel) for file in files]

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
