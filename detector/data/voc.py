"""Data sets in VOC layout: ``ROOT/Annotations/ID.xml``, ``ROOT/JPEGImages/ID.jpg`` and
``ROOT/ImageSets/Main/SPLIT.txt`` with one ID a line; all three folder names can be others.

VOC counts pixels from 1 and includes a box's last pixel; the project's boxes are half-open and start at 0.
So 1 is subtracted from xmin and ymin, and xmax and ymax stay as they are. Of files that count pixels from 0
(``first_pixel=0``) xmin and ymin stay, and 1 is added to xmax and ymax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.core.errors import InputError
from detector.core.files import is_hidden
from detector.core.structures import ImageName, ImageRecord, Targets
from detector.data.choice import Choice
from detector.data.keys import image_key
from detector.data.objects import AnnotatedObject, InvalidBoxes, OtherClasses, TargetBuilder
from detector.data.suffixes import Lookup
from detector.data.suspicions import (
    Suspicion,
    at_wrong_edge,
    names_with_others,
    other_image,
    several_boxes,
    similar_names,
    wrong_first_pixel,
)
from detector.data.voc_split import find_image, read_split, resolve_folder
from detector.data.voc_xml import VocAnnotation, read_annotation

# In the order of the VOC 2007 development kit (VOCinit.m).
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)


@dataclass(frozen=True)
class VocDataset:
    """A split: its records in the split's order, its K classes (label k is ``classes[k - 1]``), and how
    many boxes were left out ("swapped", "outside", "under 2 px", "of other classes") or moved ("clipped"), by
    reason. ``annotated`` is False where nothing is known of any object; ``suspicions`` are for the user."""

    records: list[ImageRecord]
    classes: tuple[str, ...]
    dropped: dict[str, int]
    annotated: bool = True
    suspicions: tuple[Suspicion, ...] = ()


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
    other_classes: OtherClasses = "error",
    first_pixel: int = 1,
    require_images: bool = True,
    unannotated: bool = False,
) -> VocDataset:
    """Read the images that ``ROOT/<splits>/<split>.txt`` names, all annotated ones if ``splits`` is None.

    ``choose`` picks some of these images, None takes all. Keys are paths below ``root``.
    ``classes`` None means the names in the split's annotations, sorted. ``invalid_boxes``, ``min_box_size``
    and ``other_classes`` are those of `detector.data.objects.TargetBuilder`; None, for evaluation, keeps
    every object exactly as annotated. ``first_pixel``, 0 or 1, is the number of the files' first pixel.

    With ``unannotated`` a split file none of whose images has an annotation, such as that of a test set for
    a server, gives records without objects; where only some have none, that is an error.

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
    lookup = Lookup()
    ids, split_file = split_ids(root, splits, split, annotation_folder, choose, images=images, lookup=lookup)
    if unannotated and not any(find_annotation(annotation_folder, image_id, lookup) for image_id in ids):
        paths = [find_image(image_folder, image_id, split_file, lookup) for image_id in ids]
        keys = [image_key(root / images / path.relative_to(image_folder), root) for path in paths]
        bare = map(_without_annotation, ids, keys, paths)
        return VocDataset(records=list(bare), classes=tuple(classes or ()), dropped={}, annotated=False)
    files = [annotation_path(annotation_folder, image_id, split_file, lookup) for image_id in ids]
    parsed = list(map(read_annotation, files))
    if classes is None:
        classes = sorted({thing.name for annotation in parsed for thing in annotation.objects})
    build_targets = TargetBuilder(classes, invalid_boxes, min_box_size, other_classes)
    records: list[ImageRecord] = []
    suspicions: list[Suspicion] = []
    at_edge = 0
    for image_id, annotation in zip(ids, parsed, strict=True):
        path = find_image(image_folder, image_id, split_file if require_images else None, lookup)
        size = annotation.size or image_size(
            path, annotation.path, require_images or invalid_boxes is not None
        )
        targets = build_targets(annotated_objects(annotation, first_pixel), size)
        key = image_key(root / images / path.relative_to(image_folder), root)
        records.append(
            ImageRecord(image_id=image_id, key=key, path=path, height=size[0], width=size[1], targets=targets)
        )
        suspicions += suspicions_of(annotation, path)
        at_edge += sum(at_wrong_edge(thing.box, size, first_pixel) for thing in annotation.objects)
    objects = sum(len(annotation.objects) for annotation in parsed)
    suspicions += wrong_first_pixel(at_edge, objects, first_pixel, str(split_file))
    suspicions += similar_names(names_with_others(classes, build_targets.others), str(annotation_folder))
    return VocDataset(
        records=records,
        classes=tuple(classes),
        dropped=dict(build_targets.counts),
        suspicions=tuple(suspicions),
    )


def suspicions_of(annotation: VocAnnotation, image: Path) -> Iterator[Suspicion]:
    """Yield what is suspicious about one annotation file and the ``image`` that is read for it."""
    yield from other_image(annotation.filename, image, annotation.path)
    yield from several_boxes((thing.place for thing in annotation.objects), annotation.path)


def _without_annotation(image_id: str, key: str, path: Path) -> ImageRecord:
    height, width = image_size(path, path, required=True)
    return ImageRecord(
        image_id=image_id, key=key, path=path, height=height, width=width, targets=Targets.empty()
    )


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
    lookup = Lookup()
    ids = chosen_ids(annotated_ids(folder), choose, Path(root), images, lookup)
    paths = [annotation_path(folder, image_id, folder, lookup) for image_id in ids]
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
    lookup: Lookup | None = None,
) -> tuple[list[str], Path]:
    """Return the ids of a split, and the file or folder that names them, as `load_voc` reads them.

    ``on_fault`` is that of `detector.data.voc_split.read_split`; ``images`` is the folder of the images,
    whose names decide how a line is read, and whose paths ``choose`` may look at.
    """
    lookup = lookup or Lookup()
    if splits is None:
        ids, source = annotated_ids(annotation_folder), annotation_folder
    else:
        ids, source = read_split(root, splits, split, (annotation_folder, root / images), on_fault, lookup)
    chosen = chosen_ids(ids, choose, root, images, lookup)
    if not chosen:
        raise InputError(f"{source}: all {len(ids)} images of {split!r} are left out; keep at least one")
    return chosen, source


def chosen_ids(
    ids: Sequence[str], choose: Choice | None, root: Path, images: str, lookup: Lookup | None = None
) -> list[str]:
    """Return the ids that ``choose`` picks of those of ``ROOT/<images>``, all if it is None."""
    if choose is None:
        return list(ids)
    return [name.image_id for name in choose(image_names(ids, root, images, lookup))]


def image_names(ids: Sequence[str], root: Path, images: str, lookup: Lookup | None = None) -> list[ImageName]:
    """Return the names of the images of ``ROOT/<images>`` with these ids."""
    folder, lookup = root / images, lookup or Lookup()
    paths = (find_image(folder, image_id, None, lookup) for image_id in ids)
    return [ImageName(image_id, image_key(path, root)) for image_id, path in zip(ids, paths, strict=True)]


def annotated_ids(folder: Path) -> list[str]:
    """Return the ids of all annotation files below ``folder``, sorted; hidden files are skipped.

    Raises InputError for none.
    """
    paths = (path for path in folder.rglob("*.[xX][mM][lL]") if not is_hidden(path, folder))
    ids = {path.relative_to(folder).with_suffix("").as_posix() for path in paths}
    if not ids:
        raise InputError(f"{folder}: no annotation file (*.xml) in this folder")
    return sorted(ids)


def find_annotation(folder: Path, image_id: str, lookup: Lookup | None = None) -> Path | None:
    """Return the annotation file of an id, None where there is none."""
    return (lookup or Lookup()).find(folder / image_id, (".xml",))


def annotation_path(folder: Path, image_id: str, split_file: Path, lookup: Lookup | None = None) -> Path:
    """Return the annotation file of an id. Raises InputError naming ``split_file`` if it is missing."""
    path = find_annotation(folder, image_id, lookup)
    if path is None:
        raise InputError(
            f"{split_file}: image id {image_id!r} has no annotation: {folder / f'{image_id}.xml'} is "
            "missing; put it there or take the id out of the split"
        )
    return path


def image_size(image: Path, source: Path, required: bool) -> tuple[int, int]:
    """Return the (height, width) of the image itself, (0, 0) if it is missing and not ``required``.

    ``source`` is the file that gives no size. Raises InputError for a missing image or an unreadable one.
    """
    if not image.is_file():
        if required:
            raise InputError(f"{source}: no <size>, and no image at {image} to take it from; add <size>")
        return 0, 0
    from detector.data.images import upright_size  # OpenCV only for the few files that need it

    return upright_size(image)


def annotated_objects(annotation: VocAnnotation, first_pixel: int = 1) -> Iterator[AnnotatedObject]:
    """Yield the objects of one file with their boxes half-open; ``first_pixel`` as `load_voc`."""
    to_end = 1 - first_pixel
    for thing in annotation.objects:
        xmin, ymin, xmax, ymax = thing.box
        yield AnnotatedObject(
            name=thing.name,
            box=(xmin - first_pixel, ymin - first_pixel, xmax + to_end, ymax + to_end),
            difficult=thing.difficult,
            ignore=thing.ignore,
            place=f"{annotation.path}: {thing.place}",
            written=thing.box,
        )
