"""Reading data sets in COCO's format: one JSON file of annotations per split, and folders of images.

Category ids, which may have gaps, stay here: label k is the k-th category by id, or ``classes[k - 1]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import ClassVar

from detector.core.errors import InputError
from detector.core.structures import ImageName
from detector.data.coco.file import (
    CocoData,
    Entry,
    annotated_objects,
    annotations_by_image,
    category_names,
    image_file,
    image_names,
    read_coco,
    record_id,
)
from detector.data.problems import FaultHandler, Reporter, nothing_to_score, whole_file
from detector.data.selection import Selection
from detector.data.source import Dataset, ImageToCheck, for_split, new_record, size_of
from detector.data.suspicions import same_image, similar_names
from detector.data.targets import ObjectRules, TargetBuilder


@dataclass(frozen=True)
class CocoSource:
    """A `detector.data.source.DataSource` in COCO's format.

    ``annotations`` is the JSON file and ``images`` the folder of the images, both below ``root``;
    ``{split}`` in them is replaced by the split's name. Keys are paths below ``root``. A record's id is
    COCO's id as text, see `detector.data.coco.file.record_id`. ``iscrowd`` becomes ``Targets.crowd``, and
    ``area`` the annotated area.
    """

    root: Path
    _: KW_ONLY
    annotations: str = "annotations/instances_{split}.json"
    images: str = "{split}"
    rules: ObjectRules = field(default_factory=ObjectRules)

    declares_classes: ClassVar[bool] = True

    def image_list(self, split: str) -> Path:
        return self.root / for_split(self.annotations, split)

    def image_folder(self, split: str) -> Path:
        return self.root / for_split(self.images, split)

    def image_names(self, split: str) -> list[ImageName]:
        data = read_coco(self.image_list(split), unannotated=True)
        return image_names(data, self.image_folder(split), self.root)

    def class_names(self, *splits: str, choose: Selection | None = None) -> tuple[str, ...]:
        """Return the names of the first split's categories by rising id; ``choose`` has no effect on them."""
        return tuple(category_names(read_coco(self.image_list(splits[0]))).values())

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
        data, entries, chosen = self._read(split, choose, unannotated=unannotated)
        if require_images and not folder.is_dir():
            raise InputError(f"{folder} does not exist; expected the folder of the images that {path} names")
        if not chosen:
            raise InputError(f"{path}: all {len(entries)} images are left out; keep at least one")
        names = category_names(data)
        classes = tuple(names.values()) if classes is None else tuple(classes)
        build_targets = TargetBuilder(classes, self.rules.when(training=training))
        annotations = annotations_by_image(data)
        records = []
        for image_id, key in chosen:
            entry = entries[image_id]
            image = image_file(folder, entry["file_name"])
            if require_images and not image.is_file():
                raise InputError(
                    f"{path}: image {entry['id']} is missing: {_where(entry['file_name'], folder)}"
                )
            missing = f"{path}: image {entry['id']} has no height and width"
            size = _size(entry) or size_of(image, missing, required=require_images or training)
            targets = build_targets(annotated_objects(annotations[entry["id"]], names, path), size)
            records.append(new_record(image_id, key, image, size, targets))
        coco_ids = {image_id: entries[image_id]["id"] for image_id, _ in chosen}
        files = [(coco_ids[record.image_id], record.path) for record in records]
        all_names = [*names.values(), *sorted(classes)]
        return Dataset(
            records=records,
            classes=classes,
            dropped=dict(build_targets.counts),
            coco_ids=coco_ids,
            annotated=any(annotations[coco_id] for coco_id in coco_ids.values()),
            suspicions=(*same_image(files, path), *similar_names(all_names, str(path))),
        )

    def coco_annotations(self, split: str, classes: Sequence[str], train_split: str) -> CocoData:
        """Return the split's own annotations; see `detector.data.source.DataSource.coco_annotations`.

        Raises InputError where neither file names a class, or the two use an id for different classes.
        """
        path, training = self.image_list(split), self.image_list(train_split)
        data = read_coco(path, unannotated=True)
        taken = category_names(data)
        missing = set(classes) - set(taken.values())
        if not missing:
            return data
        added = [entry for entry in read_coco(training)["categories"] if entry["name"] in missing]
        missing -= {entry["name"] for entry in added}
        if missing:
            raise InputError(f"{path}: no category is named {min(missing)!r}; add the class to the file")
        for entry in added:
            if entry["id"] in taken:
                raise InputError(
                    f"{path}: category {entry['id']} is {taken[entry['id']]!r}, and {entry['name']!r} in "
                    f"{training}; give both files the same categories"
                )
        return {**data, "categories": [*data["categories"], *added]}

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
        self, split: str, choose: Selection | None, on_fault: FaultHandler | None = None, *, unannotated: bool
    ) -> tuple[CocoData, dict[str, Entry], Sequence[ImageName]]:
        """Return the content of a split's file, its images by the records' ids, and the chosen images."""
        path = self.image_list(split)
        data = read_coco(path, on_fault, unannotated=unannotated)
        if not data["images"]:
            raise InputError(f"{path}: there is no image in 'images'; expected at least one")
        entries = {record_id(entry): entry for entry in data["images"]}
        if len(entries) < len(data["images"]):
            raise InputError(f"{path}: two images have the same 'voc_id'; make them differ")
        names = image_names(data, self.image_folder(split), self.root)
        return data, entries, choose(names) if choose else names


def _where(name: str, folder: Path) -> str:
    """Say where an image was expected, and where it is if that is near."""
    near = [place for place in (folder.parent, folder.parent.parent) if (place / name).is_file()]
    hint = f"; it is in {near[0]}: set data.images to that folder" if near else ""
    return f"expected {folder / name}{hint}"


def _size(entry: Entry) -> tuple[int, int] | None:
    """Return the (height, width) that the file gives, None where it does not give both."""
    height, width = int(entry.get("height", 0)), int(entry.get("width", 0))
    return (height, width) if height and width else None
