"""Reading data sets in COCO's format: one JSON file of annotations per split, and folders of images.

Category ids, which may have gaps, stay here: label k is the k-th category by id, or ``classes[k - 1]``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from detector.core.catalogue import how_to_get
from detector.core.errors import FaultHandler, InputError
from detector.core.listing import existing
from detector.core.records import Records, Texts
from detector.core.structures import ImageName
from detector.data.annotation_cache import AnnotationCache
from detector.data.coco.columns import CocoColumns, read_columns
from detector.data.coco.file import (
    CocoData,
    Entry,
    annotated_objects,
    annotations_by_image,
    category_names,
    image_file,
    image_files,
    image_names,
    read_coco,
    record_id,
    with_single_categories,
)
from detector.data.paths import image_keys
from detector.data.problems import Problem, Reporter, nothing_to_score, whole_file
from detector.data.selection import Selection
from detector.data.source import Dataset, ImageToCheck, for_split, size_of
from detector.data.suspicions import same_image, similar_names
from detector.data.targets import ObjectRules, TargetBuilder


@dataclass(frozen=True)
class CocoSource:
    """A `detector.data.source.DataSource` in COCO's format.

    ``annotations`` is the JSON file and ``images`` the folder of the images, both below ``root``;
    ``{split}`` in them is replaced by the split's name. Keys are paths below ``root``. A record's id is
    COCO's id as text, see `detector.data.coco.file.record_id`. ``iscrowd`` becomes ``Targets.crowd``, and
    ``area`` the annotated area. ``attributes`` are those that count as labels. With a ``cache``, a file is
    decoded once per change of it.
    """

    root: Path
    _: KW_ONLY
    annotations: str = "annotations/instances_{split}.json"
    images: str = "{split}"
    rules: ObjectRules = field(default_factory=ObjectRules)
    attributes: tuple[str, ...] = ()
    cache: AnnotationCache | None = None

    declares_classes: ClassVar[bool] = True

    def image_list(self, split: str) -> Path:
        return self.root / for_split(self.annotations, split)

    def image_folder(self, split: str) -> Path:
        return self.root / for_split(self.images, split)

    def image_names(self, split: str) -> list[ImageName]:
        columns = self._columns(split, unannotated=True)
        return list(map(ImageName, columns.record_ids, self._files(split, columns)[1]))

    def class_names(self, *splits: str, choose: Selection | None = None) -> tuple[str, ...]:
        """Return the names of the first split's categories by rising id; ``choose`` has no effect on them."""
        return _class_names(self._columns(splits[0]), self.attributes)

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
        path, folder = self.image_list(split), self.image_folder(split)
        columns = self._columns(split, unannotated=unannotated)
        record_ids = _distinct_ids(list(columns.record_ids), path)
        files, keys = self._files(split, columns)
        rows = _chosen_rows(record_ids, keys, choose)
        if require_images and not folder.is_dir():
            raise InputError(f"{folder} does not exist; expected the folder of the images that {path} names")
        if not len(rows):
            raise InputError(f"{path}: all {len(columns)} images are left out; keep at least one")
        names = _class_names(columns, self.attributes)
        classes = names if classes is None else tuple(classes)
        build_targets = TargetBuilder(classes, self.rules.when(training=training))
        chosen_all = np.array_equal(rows, np.arange(len(columns)))
        if not chosen_all:
            files, keys, record_ids = ([texts[row] for row in rows] for texts in (files, keys, record_ids))
        ids = columns.ids[rows].tolist()
        sizes, fault = self._sizes(columns, rows, folder, files, path, training, require_images)
        sound = len(rows) if fault is None else fault[0]
        things = columns.objects(path, self.attributes)
        if sound < len(columns) or not chosen_all:
            things = things.take(rows[:sound])
        objects = build_targets.columns(things, sizes)
        if fault is not None:
            raise fault[1]
        return Dataset(
            records=Records(
                folder=folder,
                files=Texts.of(files),
                image_ids=Texts.of(record_ids),
                keys=Texts.of(keys),
                sizes=sizes,
                objects=objects,
            ),
            classes=classes,
            dropped=dict(build_targets.counts),
            coco_ids=dict(zip(record_ids, ids, strict=True)),
            annotated=len(things.numbers) > 0,
            suspicions=(
                *_same_image(ids, folder, files, path),
                *similar_names([*names, *sorted(classes)], str(path)),
            ),
        )

    def _columns(self, split: str, *, unannotated: bool = False) -> CocoColumns:
        path, wanted = self.image_list(split), bool(self.attributes)
        if not path.exists():
            raise InputError(
                f"{path}: no such file; data.annotations names the COCO annotation file{how_to_get(path)}"
            )
        return read_columns(path, self.cache, unannotated=unannotated, attributes=wanted)

    def _files(self, split: str, columns: CocoColumns) -> tuple[list[str], list[str]]:
        """Return the files of the images below the split's folder, and their keys."""
        if not len(columns):
            path = self.image_list(split)
            raise InputError(f"{path}: there is no image in 'images'; expected at least one")
        folder = self.image_folder(split)
        files = image_files(folder, columns.files)
        return files, image_keys(folder, files, self.root)

    def _sizes(
        self,
        columns: CocoColumns,
        rows: NDArray[np.int64],
        folder: Path,
        files: Sequence[str],
        path: Path,
        training: bool,
        require_images: bool,
    ) -> tuple[NDArray[np.int32], tuple[int, InputError] | None]:
        """Return the sizes (n, 2) of the images ``rows``; and the place and error of the first faulty image.

        An image is faulty if it is required and missing, or has no size. There are only the sizes of the
        images before it.
        """
        sizes, fault = columns.sizes[rows], None
        if require_images:
            missing = np.flatnonzero(~existing([f"{folder}{os.sep}{file}" for file in files]))
            if len(missing):
                row = int(missing[0])
                where = _where(columns.files[int(rows[row])], folder)
                fault = row, InputError(f"{path}: image {columns.ids[rows[row]]} is missing: {where}")
                sizes = sizes[:row]
        for row in np.flatnonzero((sizes == 0).any(1)).tolist():
            missing_size = f"{path}: image {columns.ids[rows[row]]} has no height and width"
            try:
                image = folder / files[row]
                sizes[row] = size_of(image, missing_size, required=require_images or training)
            except InputError as error:
                return sizes[:row], (row, error)
        return sizes, fault

    def coco_annotations(self, split: str, classes: Sequence[str], train_split: str) -> CocoData:
        """Return the split's own annotations; see `detector.data.source.DataSource.coco_annotations`.

        Raises InputError where neither file names a class, or the two use an id for different classes.
        """
        path, training = self.image_list(split), self.image_list(train_split)
        data = read_coco(path, unannotated=True)
        taken = category_names(data)
        missing = set(classes) - set(taken.values())
        if missing:
            added = [entry for entry in read_coco(training)["categories"] if entry["name"] in missing]
            missing -= {entry["name"] for entry in added}
            for entry in added:
                if entry["id"] in taken:
                    raise InputError(
                        f"{path}: category {entry['id']} is {taken[entry['id']]!r}, and {entry['name']!r} in "
                        f"{training}; give both files the same categories"
                    )
            data = {**data, "categories": [*data["categories"], *added]}
        data = {**data, "categories": [*data["categories"], *self._label_categories(missing, data, path)]}
        labels = {entry["name"]: entry["id"] for entry in data["categories"]}
        return with_single_categories(data, labels, self.attributes)

    def _label_categories(self, labels: Iterable[str], data: CocoData, path: Path) -> list[Entry]:
        """Return categories, with ids of their own, for the ``labels`` of attributes.

        Raises InputError for a name that is not the label of an attribute.
        """
        for name in sorted(labels):
            if name.partition("=")[0] not in self.attributes:
                raise InputError(f"{path}: no category is named {name!r}; add the class to the file")
        last = max((entry["id"] for entry in data["categories"]), default=0)
        return [{"id": number, "name": name} for number, name in enumerate(sorted(labels), start=last + 1)]

    def images_to_check(
        self, selections: Mapping[str, Selection], train_split: str, kept: Selection | None, report: Reporter
    ) -> Iterator[ImageToCheck]:
        for split, choose in selections.items():
            try:
                yield from self._split_to_check(split, choose, report, trained=split == train_split)
            except InputError as error:
                report(whole_file(self.image_list(split), error))

    def _split_to_check(
        self, split: str, choose: Selection, report: Reporter, *, trained: bool
    ) -> Iterator[ImageToCheck]:
        path, folder = self.image_list(split), self.image_folder(split)
        data, entries, chosen = self._read(
            split, choose, lambda error: report(whole_file(path, error)), unannotated=not trained
        )
        if not chosen:
            raise InputError(f"no image is left of {split!r}; keep at least one")
        if not trained and not data["annotations"]:
            report(nothing_to_score(path, split))
        names, annotations = category_names(data), annotations_by_image(data)
        files: list[tuple[object, Path]] = []
        for image_id, key in chosen:
            entry = entries[image_id]
            image = image_file(folder, entry["file_name"])
            files.append((entry["id"], image))
            yield ImageToCheck(
                image_id=image_id,
                key=key,
                splits=(split,),
                annotation=path,
                path=image,
                size=_size(entry),
                objects=tuple(annotated_objects(annotations[entry["id"]], names, path)),
            )
        for problem in same_image(files, path):
            report(problem)

    def _read(
        self, split: str, choose: Selection, on_fault: FaultHandler, *, unannotated: bool
    ) -> tuple[CocoData, dict[str, Entry], Sequence[ImageName]]:
        """Return the content of a split's file, its images by the records' ids, and the chosen images."""
        path = self.image_list(split)
        data = read_coco(path, on_fault, unannotated=unannotated)
        if not data["images"]:
            raise InputError(f"{path}: there is no image in 'images'; expected at least one")
        record_ids = _distinct_ids([record_id(entry) for entry in data["images"]], path)
        entries = dict(zip(record_ids, data["images"], strict=True))
        names = image_names(data, self.image_folder(split), self.root)
        return data, entries, choose(names)


def _class_names(columns: CocoColumns, attributes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the categories by rising id, then the labels of ``attributes``, sorted."""
    return tuple(dict.fromkeys((*columns.category_names, *columns.labels_of(attributes))))


def _distinct_ids(record_ids: list[str], path: Path) -> list[str]:
    if len(set(record_ids)) < len(record_ids):
        raise InputError(f"{path}: two images have the same 'voc_id'; make them differ")
    return record_ids


def _chosen_rows(
    record_ids: Sequence[str], keys: Sequence[str], choose: Selection | None
) -> NDArray[np.int64]:
    """Return the numbers of the images that ``choose`` picks, in its order."""
    names = list(map(ImageName, record_ids, keys))
    chosen = names if choose is None else choose(names)
    if chosen is names:
        return np.arange(len(names))
    row_of = {image_id: row for row, image_id in enumerate(record_ids)}
    return np.array([row_of[image_id] for image_id, _ in chosen], np.int64)


def _same_image(ids: Sequence[int], folder: Path, files: Sequence[str], path: Path) -> Iterator[Problem]:
    if len(set(files)) < len(files):
        yield from same_image([(one, folder / file) for one, file in zip(ids, files, strict=True)], path)


def _where(name: str, folder: Path) -> str:
    """Say where an image was expected, and where it is if that is near."""
    near = [place for place in (folder.parent, folder.parent.parent) if (place / name).is_file()]
    hint = f"; it is in {near[0]}: set data.images to that folder" if near else ""
    return f"expected {folder / name}{hint}"


def _size(entry: Entry) -> tuple[int, int] | None:
    """Return the (height, width) that the file gives, None where it does not give both."""
    height, width = int(entry.get("height", 0)), int(entry.get("width", 0))
    return (height, width) if height and width else None
