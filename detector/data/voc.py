"""Data sets in VOC layout: ``ROOT/Annotations/ID.xml``, ``ROOT/JPEGImages/ID.jpg`` and
``ROOT/ImageSets/Main/SPLIT.txt`` with one ID a line; all three folder names can be others.

VOC counts pixels from 1 and includes a box's last pixel; the project's boxes are half-open and start at 0.
So 1 is subtracted from xmin and ymin, and xmax and ymax stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from detector.data.voc_split import find_image, read_split, resolve_folder
from detector.data.voc_xml import VocAnnotation, VocObject, read_annotation
from detector.errors import InputError, nearest
from detector.structures import ImageRecord, Targets

# In the order of the VOC 2007 development kit (VOCinit.m).
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)

InvalidBoxes = Literal["drop", "clip", "error"]
Box = tuple[float, float, float, float]

# A box this far outside its image, in pixels, is a rounding slip or a 0-based file, not a wrong object.
_TOLERANCE = 1.0


@dataclass(frozen=True)
class VocDataset:
    """A split: its records in the split's order, its K classes (label k is ``classes[k - 1]``), and how
    many boxes were left out ("swapped", "outside", "under 2 px") or moved ("clipped"), by reason."""

    records: list[ImageRecord]
    classes: tuple[str, ...]
    dropped: dict[str, int]


def load_voc(
    root: Path | str,
    split: str,
    *,
    annotations: str = "Annotations",
    images: str = "JPEGImages",
    splits: str = "ImageSets/Main",
    classes: Sequence[str] | None = None,
    invalid_boxes: InvalidBoxes | None = "drop",
    min_box_size: float = 2.0,
    require_images: bool = True,
) -> VocDataset:
    """Read the images that ``ROOT/<splits>/<split>.txt`` names.

    ``classes`` None means the names in the split's annotations, sorted. A box is invalid if it is swapped
    (xmax < xmin or ymax < ymin), reaches more than one pixel out of its image, or has a side under
    ``min_box_size`` pixels. ``invalid_boxes`` says what then happens: "drop" leaves the object out,
    "clip" cuts what is outside off the box and drops it only if that leaves it too small, "error" raises.
    A box that reaches out by one pixel or less is always clipped: such are 0-based files and rounding.
    None, for evaluation, keeps every object exactly as annotated.

    Sizes come from <size>, else from the image. ``require_images=False`` looks for no image: the path is
    then the expected .jpg, and the size (0, 0) where neither file gives one, which needs
    ``invalid_boxes=None``.

    Raises:
        InputError: a missing folder, split, annotation or image, a malformed annotation, an object of a
            class that is not in ``classes``, or an invalid box under "error".
    """
    root = Path(root)
    annotation_folder = resolve_folder(root, annotations, f"one XML file an image ({images}/ has the images)")
    image_folder = resolve_folder(root, images, "the images") if require_images else root / images
    ids, split_file = read_split(root, splits, split, annotation_folder)
    repair = _Repair(invalid_boxes, min_box_size)
    parsed = [_read_by_id(image_id, annotation_folder, split_file) for image_id in ids]
    if classes is None:
        classes = sorted({thing.name for annotation in parsed for thing in annotation.objects})
    labels = _labels(classes)
    records = []
    for image_id, annotation in zip(ids, parsed, strict=True):
        path = find_image(image_folder, image_id, split_file if require_images else None)
        size = annotation.size or _size_from_image(
            path, annotation, require_images or invalid_boxes is not None
        )
        targets = _targets(annotation, size, labels, repair)
        records.append(
            ImageRecord(image_id=image_id, path=path, height=size[0], width=size[1], targets=targets)
        )
    return VocDataset(records=records, classes=tuple(classes), dropped=dict(repair.counts))


def find_classes(root: Path | str, annotations: str = "Annotations") -> tuple[str, ...]:
    """Return the sorted class names of all annotation files, whatever split they belong to.

    Raises InputError for a missing folder, a malformed annotation, or a folder without annotations.
    """
    folder = resolve_folder(Path(root), annotations, "one XML file an image")
    paths = [path for path in sorted(folder.rglob("*.xml")) if not path.name.startswith(".")]
    if not paths:
        raise InputError(f"{folder}: no annotation file (*.xml) in this folder")
    return tuple(sorted({thing.name for path in paths for thing in read_annotation(path).objects}))


def _read_by_id(image_id: str, folder: Path, split_file: Path) -> VocAnnotation:
    path = folder / f"{image_id}.xml"
    if not path.is_file():
        raise InputError(
            f"{split_file}: image id {image_id!r} has no annotation: {path} is missing; "
            "put it there or take the id out of the split"
        )
    return read_annotation(path)


def _labels(classes: Sequence[str]) -> dict[str, int]:
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise InputError(f"classes: {repeated[0]!r} is named twice; name each class once")
    return {name: label for label, name in enumerate(classes, start=1)}


def _size_from_image(path: Path, annotation: VocAnnotation, required: bool) -> tuple[int, int]:
    if not path.is_file():
        if required:
            raise InputError(
                f"{annotation.path}: no <size>, and no image at {path} to take it from; add <size>"
            )
        return 0, 0
    from detector.data.images import read_image  # OpenCV only for the few files that need it

    height, width = read_image(path).shape[:2]
    return height, width


def _targets(
    annotation: VocAnnotation, size: tuple[int, int], labels: dict[str, int], repair: _Repair
) -> Targets:
    boxes, found, difficult = [], [], []
    for number, thing in enumerate(annotation.objects, start=1):
        place = f"{annotation.path}: object {number} ({thing.name})"
        if thing.name not in labels:
            raise InputError(
                f"{place}: {thing.name!r} is not among the classes{nearest(thing.name, labels)}; "
                "correct the name or add the class"
            )
        box = repair(thing, size, place)
        if box is not None:
            boxes.append(box)
            found.append(labels[thing.name])
            difficult.append(thing.difficult)
    return Targets.make(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(found, dtype=torch.int64),
        torch.tensor(difficult, dtype=torch.bool),
    )


class _Repair:
    """Converts boxes to the project's convention and applies one policy for invalid ones, counting."""

    def __init__(self, policy: InvalidBoxes | None, min_side: float) -> None:
        if policy not in ("drop", "clip", "error", None):
            raise ValueError(f"invalid_boxes must be 'drop', 'clip', 'error' or None, not {policy!r}")
        self.policy = policy
        self.min_side = min_side
        self.counts: Counter[str] = Counter()

    def __call__(self, thing: VocObject, size: tuple[int, int], place: str) -> Box | None:
        """Return the half-open box, clipped if need be, or None if the object is to be left out."""
        xmin, ymin, xmax, ymax = thing.box
        box = (xmin - 1, ymin - 1, xmax, ymax)
        if self.policy is None:
            return box
        clipped = _clip(box, size)
        fault = self._fault(thing, box, clipped, size)
        if fault is None:
            self.counts.update(["clipped"] if clipped != box else [])
            return clipped
        if self.policy == "error":
            raise InputError(
                f"{place}: box {xmin:g}, {ymin:g}, {xmax:g}, {ymax:g} is {fault} (the image is {size[1]}x"
                f"{size[0]}); correct it, or choose to drop or clip such boxes"
            )
        self.counts[fault] += 1
        return None

    def _fault(self, thing: VocObject, box: Box, clipped: Box, size: tuple[int, int]) -> str | None:
        xmin, ymin, xmax, ymax = thing.box
        if xmax < xmin or ymax < ymin:
            return "swapped"
        gone = clipped[2] <= clipped[0] or clipped[3] <= clipped[1]
        far = max(abs(before - after) for before, after in zip(box, clipped, strict=True)) > _TOLERANCE
        if gone or (far and self.policy != "clip"):
            return "outside"
        if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < self.min_side:
            return f"under {self.min_side:g} px"
        return None


def _clip(box: Box, size: tuple[int, int]) -> Box:
    height, width = size
    x1, y1, x2, y2 = box
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)
