"""Data sets in VOC layout: ``ROOT/Annotations/ID.xml``, ``ROOT/JPEGImages/ID.jpg`` and
``ROOT/ImageSets/Main/SPLIT.txt`` with one ID a line; all three folder names can be others.

VOC counts pixels from 1 and includes a box's last pixel; the project's boxes are half-open and start at 0.
So 1 is subtracted from xmin and ymin, and xmax and ymax stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.data.choice import Choice
from detector.data.keys import image_key
from detector.data.objects import AnnotatedObject, InvalidBoxes, TargetBuilder
from detector.data.voc_split import find_image, read_split, resolve_folder
from detector.data.voc_xml import VocAnnotation, read_annotation
from detector.errors import InputError
from detector.structures import ImageName, ImageRecord

# In the order of the VOC 2007 development kit (VOCinit.m).
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)


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
    splits: str | None = "ImageSets/Main",
    choose: Choice | None = None,
    classes: Sequence[str] | None = None,
    invalid_boxes: InvalidBoxes | None = "drop",
    min_box_size: float = 2.0,
    require_images: bool = True,
) -> VocDataset:
    """Read the images that ``ROOT/<splits>/<split>.txt`` names, all annotated ones if ``splits`` is None.

    ``choose`` picks some of these images, None takes all. Keys are paths below ``root``.
    ``classes`` None means the names in the split's annotations, sorted. ``invalid_boxes`` and
    ``min_box_size`` are those of `detector.data.objects.TargetBuilder`; None, for evaluation, keeps every
    object exactly as annotated.

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
    ids, split_file = split_ids(root, splits, split, annotation_folder, choose, images=images)
    parsed = [read_annotation(annotation_path(annotation_folder, image_id, split_file)) for image_id in ids]
    if classes is None:
        classes = sorted({thing.name for annotation in parsed for thing in annotation.objects})
    build_targets = TargetBuilder(classes, invalid_boxes, min_box_size)
    records = []
    for image_id, annotation in zip(ids, parsed, strict=True):
        path = find_image(image_folder, image_id, split_file if require_images else None)
        size = annotation.size or image_size(path, annotation, require_images or invalid_boxes is not None)
        targets = build_targets(annotated_objects(annotation), size)
        key = image_key(root / images / path.relative_to(image_folder), root)
        records.append(
            ImageRecord(image_id=image_id, key=key, path=path, height=size[0], width=size[1], targets=targets)
        )
    return VocDataset(records=records, classes=tuple(classes), dropped=dict(build_targets.counts))


def find_classes(
    root: Path | str,
    annotations: str = "Annotations",
    choose: Choice | None = None,
    *,
    images: str = "JPEGImages",
) -> tuple[str, ...]:
    """Return the sorted class names of all annotation files, whatever split they belong to.

    ``choose`` picks some of the files by the images in ``ROOT/<images>``, None takes all.

    Raises InputError for a missing folder, a malformed annotation, or a folder without annotations.
    """
    folder = resolve_folder(Path(root), annotations, "one XML file an image")
    ids = chosen_ids(annotated_ids(folder), choose, Path(root), images)
    paths = [folder / f"{image_id}.xml" for image_id in ids]
    return tuple(sorted({thing.name for path in paths for thing in read_annotation(path).objects}))


def split_ids(
    root: Path,
    splits: str | None,
    split: str,
    annotation_folder: Path,
    choose: Choice | None = None,
    on_fault: Callable[[InputError], None] | None = None,
    *,
    images: str = "JPEGImages",
) -> tuple[list[str], Path]:
    """Return the ids of a split, and the file or folder that names them, as `load_voc` reads them.

    ``on_fault`` is that of `detector.data.voc_split.read_split`; ``images`` is the folder of the images,
    whose paths ``choose`` may look at.
    """
    if splits is None:
        ids, source = annotated_ids(annotation_folder), annotation_folder
    else:
        ids, source = read_split(root, splits, split, annotation_folder, on_fault)
    chosen = chosen_ids(ids, choose, root, images)
    if not chosen:
        raise InputError(f"{source}: all {len(ids)} images of {split!r} are left out; keep at least one")
    return chosen, source


def chosen_ids(ids: Sequence[str], choose: Choice | None, root: Path, images: str) -> list[str]:
    """Return the ids that ``choose`` picks of those of ``ROOT/<images>``, all if it is None."""
    if choose is None:
        return list(ids)
    return [name.image_id for name in choose(image_names(ids, root, images))]


def image_names(ids: Sequence[str], root: Path, images: str) -> list[ImageName]:
    """Return the names of the images of ``ROOT/<images>`` with these ids."""
    folder = root / images
    return [ImageName(image_id, image_key(find_image(folder, image_id, None), root)) for image_id in ids]


def annotated_ids(folder: Path) -> list[str]:
    """Return the ids of all annotation files below ``folder``, sorted. Raises InputError for none."""
    paths = [path for path in folder.rglob("*.xml") if not path.name.startswith(".")]
    if not paths:
        raise InputError(f"{folder}: no annotation file (*.xml) in this folder")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in paths)


def annotation_path(folder: Path, image_id: str, split_file: Path) -> Path:
    """Return the annotation file of an id. Raises InputError naming ``split_file`` if it is missing."""
    path = folder / f"{image_id}.xml"
    if not path.is_file():
        raise InputError(
            f"{split_file}: image id {image_id!r} has no annotation: {path} is missing; "
            "put it there or take the id out of the split"
        )
    return path


def image_size(image: Path, annotation: VocAnnotation, required: bool) -> tuple[int, int]:
    """Return the (height, width) of the image itself, (0, 0) if it is missing and not ``required``."""
    if not image.is_file():
        if required:
            raise InputError(
                f"{annotation.path}: no <size>, and no image at {image} to take it from; add <size>"
            )
        return 0, 0
    from detector.data.images import read_image  # OpenCV only for the few files that need it

    height, width = read_image(image).shape[:2]
    return height, width


def annotated_objects(annotation: VocAnnotation) -> Iterator[AnnotatedObject]:
    """Yield the objects of one file with their boxes half-open."""
    for number, thing in enumerate(annotation.objects, start=1):
        xmin, ymin, xmax, ymax = thing.box
        yield AnnotatedObject(
            name=thing.name,
            box=(xmin - 1, ymin - 1, xmax, ymax),
            difficult=thing.difficult,
            place=f"{annotation.path}: object {number} ({thing.name})",
            written=thing.box,
        )
