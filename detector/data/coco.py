"""Data sets in COCO's format: one JSON file for the annotations, one folder of images.

COCO's boxes are x, y, width, height, continuous and counted from 0, so x2 = x + width. Category ids, which
may have gaps, stay here: label k is the k-th category by id, or ``classes[k - 1]``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.core.errors import InputError
from detector.core.structures import ImageName, ImageRecord
from detector.data.choice import Choice
from detector.data.coco_json import CocoData, Entry, image_file, read_coco
from detector.data.keys import image_key
from detector.data.objects import AnnotatedObject, InvalidBoxes, OtherClasses, TargetBuilder
from detector.data.suspicions import Suspicion, names_with_others, same_image, similar_names


@dataclass(frozen=True)
class CocoDataset:
    """As `detector.data.voc.VocDataset`; ``image_ids`` is COCO's id of each image by the record's."""

    records: list[ImageRecord]
    classes: tuple[str, ...]
    dropped: dict[str, int]
    image_ids: dict[str, int]
    annotated: bool = True
    suspicions: tuple[Suspicion, ...] = ()


def load_coco(
    annotation_file: Path | str,
    image_folder: Path | str,
    *,
    root: Path | str | None = None,
    choose: Choice | None = None,
    classes: Sequence[str] | None = None,
    invalid_boxes: InvalidBoxes | None = "drop",
    min_box_size: float = 2.0,
    other_classes: OtherClasses = "error",
    require_images: bool = True,
    unannotated: bool = False,
) -> CocoDataset:
    """Read all images of an annotation file, in its order, those without objects included.

    ``choose`` picks some of them, None takes all. Keys are paths below ``root``, or below the image folder
    where it is None. A record's id is COCO's id as text, or the id that the image had in VOC layout where
    `detector.data.convert` made the file. ``iscrowd`` becomes ``Targets.crowd``, ``area`` the annotated
    area; ``ignore`` and ``difficult`` are those of `detector.data.objects.AnnotatedObject`. ``classes`` None
    means all categories by id. ``invalid_boxes``, ``min_box_size`` and ``other_classes`` are those of
    `detector.data.objects.TargetBuilder`. ``require_images=False`` does not look for the images; a size
    that the file does not give is then (0, 0), which needs ``invalid_boxes=None``.

    With ``unannotated`` the file may be without annotations; ``annotated`` says that the images have some.

    Raises:
        InputError: a malformed file (see `read_coco`), a missing folder or image, an annotation of a class
            that is not in ``classes``, or an invalid box under "error".
    """
    path, folder = Path(annotation_file), Path(image_folder)
    data = read_coco(path, unannotated=unannotated)
    if require_images and not folder.is_dir():
        raise InputError(f"{folder} does not exist; expected the folder of the images that {path} names")
    if not data["images"]:
        raise InputError(f"{path}: 'images' is empty; expected at least one image")
    names = category_names(data)
    classes = tuple(names.values()) if classes is None else tuple(classes)
    build_targets = TargetBuilder(classes, invalid_boxes, min_box_size, other_classes)
    annotations = annotations_by_image(data)
    entries = {record_id(entry): entry for entry in data["images"]}
    if len(entries) < len(data["images"]):
        raise InputError(f"{path}: two images have the same 'voc_id'; make them differ")
    root = folder if root is None else Path(root)
    names_of_images = image_names(data, folder, root)
    chosen = list(choose(names_of_images)) if choose else names_of_images
    if not chosen:
        raise InputError(f"{path}: all {len(entries)} images are left out; keep at least one")
    records = []
    for image_id, key in chosen:
        entry = entries[image_id]
        image = image_file(folder, entry["file_name"])
        if require_images and not image.is_file():
            raise InputError(f"{path}: image {entry['id']} is missing: {_where(entry['file_name'], folder)}")
        size = _size(entry, image, path, required=require_images or invalid_boxes is not None)
        objects = annotated_objects(annotations[entry["id"]], names, path)
        targets = build_targets(objects, size)
        records.append(
            ImageRecord(
                image_id=image_id, key=key, path=image, height=size[0], width=size[1], targets=targets
            )
        )
    image_ids = {image_id: entries[image_id]["id"] for image_id, _ in chosen}
    files = [(image_ids[record.image_id], record.path) for record in records]
    names_found = names_with_others(tuple(names.values()), dict.fromkeys(classes, 0))
    return CocoDataset(
        records=records,
        classes=classes,
        dropped=dict(build_targets.counts),
        image_ids=image_ids,
        annotated=any(annotations[entries[image_id]["id"]] for image_id, _ in chosen),
        suspicions=(*same_image(files, path), *similar_names(names_found, str(path))),
    )


def _where(name: str, folder: Path) -> str:
    """Say where an image was expected, and where it is if that is near."""
    near = [place for place in (folder.parent, folder.parent.parent) if (place / name).is_file()]
    hint = f"; it is in {near[0]}: set data.images to that folder" if near else ""
    return f"expected {folder / name}{hint}"


def category_names(data: CocoData) -> dict[int, str]:
    """Return the categories' names by id, ids rising."""
    return {entry["id"]: entry["name"] for entry in sorted(data["categories"], key=lambda one: one["id"])}


def record_id(entry: Entry) -> str:
    """Return the id that an image's record has."""
    return str(entry.get("voc_id", entry["id"]))


def image_names(data: CocoData, image_folder: Path, root: Path) -> list[ImageName]:
    """Return the names of the images of a file, in its order; keys are paths below ``root``."""
    return [
        ImageName(record_id(entry), image_key(image_file(image_folder, entry["file_name"]), root))
        for entry in data["images"]
    ]


def annotations_by_image(data: CocoData) -> defaultdict[int, list[tuple[int, Entry]]]:
    """Return the annotations of each image with their places in the file."""
    annotations: defaultdict[int, list[tuple[int, Entry]]] = defaultdict(list)
    for number, entry in enumerate(data["annotations"]):
        annotations[entry["image_id"]].append((number, entry))
    return annotations


def _size(entry: Entry, image: Path, path: Path, required: bool) -> tuple[int, int]:
    height, width = int(entry.get("height", 0)), int(entry.get("width", 0))
    if (height and width) or not (required or image.is_file()):
        return height, width
    if not image.is_file():
        raise InputError(f"{path}: image {entry['id']} has no height and width, and there is no {image}")
    from detector.data.images import upright_size  # OpenCV only for the few files that need it

    return upright_size(image)


def annotated_objects(
    annotations: list[tuple[int, Entry]], names: Mapping[int, str], path: Path
) -> Iterator[AnnotatedObject]:
    """Yield one image's ``annotations``, as `annotations_by_image` gives them, with their boxes half-open."""
    for number, entry in annotations:
        x, y, width, height = entry["bbox"]
        difficult = bool(entry.get("difficult", 0))
        yield AnnotatedObject(
            name=names[entry["category_id"]],
            box=(x, y, x + width, y + height),
            difficult=difficult,
            # A difficult object of VOC is written as a crowd, so that COCO's tools ignore it too.
            crowd=bool(entry.get("iscrowd", 0)) and not difficult,
            ignore=bool(entry.get("ignore", 0)),
            area=entry.get("area"),
            place=f"{path}: annotations[{number}], image {entry['image_id']}",
            written=entry["bbox"],
        )
