"""Checks of one image of a data set and of its annotation.

`inspect_image` depends only on its arguments, so that `inspect_images` can share the work among processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from detector.core.errors import InputError
from detector.core.files import IMAGE_SUFFIXES
from detector.core.machine import available_cores
from detector.core.progress import track
from detector.data.attributes import with_attribute_objects
from detector.data.images import TruncatedImage, WrongImageSize, read_image, stored_view
from detector.data.problems import Problem, message_without
from detector.data.source import ImageToCheck
from detector.data.suspicions import at_wrong_edge, unused_bits
from detector.data.targets import OTHER_CLASS_ADVICE, AnnotatedObject, ObjectRules
from detector.data.voc.annotation import read_element, suspicions, to_annotation

_CHUNK = 16  # images that a process takes at a time
_USABLE = ("duplicate object", "several boxes")  # problems of objects that are used nevertheless


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What training would accept, as in the config.

    ``classes`` None accepts any name. ``objects`` applies to boxes of the split ``train_split``; its
    ``other_classes`` to all. With ``images`` False no image file is opened. ``attributes`` are those that
    count as labels.
    """

    classes: frozenset[str] | None
    objects: ObjectRules
    train_split: str
    images: bool = True
    first_pixel: int = 1
    attributes: tuple[str, ...] = ()


@dataclass(kw_only=True, slots=True)
class CheckedImage:
    """The result for one image: its problems, and the objects that training can use.

    ``others`` counts the objects of classes that are not asked for. Of ``from_voc`` objects in XML, the
    number ``at_edge`` are `detector.data.suspicions.at_wrong_edge`.
    """

    listed: ImageToCheck
    problems: list[Problem] = field(default_factory=list)
    objects: list[AnnotatedObject] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    at_edge: int = 0
    from_voc: int = 0

    def add(
        self, kind: str, file: Path, message: str, thing: str | None = None, *, stops: bool = False
    ) -> None:
        """Add a problem of this image; ``thing`` names the object in ``file``."""
        self.problems.append(
            Problem(
                kind=kind,
                file=str(file),
                object=thing,
                message=message.removeprefix(f"{file}: "),
                image_id=self.listed.image_id,
                key=self.listed.key,
                splits=self.listed.splits,
                stops=stops,
                unusable=thing is not None and kind not in _USABLE,
            )
        )

    def suspect(self, suspicions: Iterable[Problem]) -> None:
        for one in suspicions:
            self.add(one.kind, Path(one.file), one.message, one.object)


def inspect_images(images: Sequence[ImageToCheck], rules: Rules) -> list[CheckedImage]:
    """Return the result of `inspect_image` for every image, computed on all cores.

    Raises InputError if a process dies.
    """
    try:
        with ProcessPoolExecutor(available_cores(), initializer=partial(cv2.setNumThreads, 0)) as pool:
            results = pool.map(partial(inspect_image, rules=rules), images, chunksize=_CHUNK)
            return list(track(results, len(images), "checking"))
    except BrokenProcessPool:
        raise InputError(
            "a process that checks images died; most often memory ran out: close other programs, or let it "
            "use fewer cores (taskset -c 0 python tools/check_data.py ...)"
        ) from None


def inspect_image(listed: ImageToCheck, rules: Rules) -> CheckedImage:
    """Return everything that is wrong with one image."""
    checked = CheckedImage(listed=listed)
    size, objects = listed.size, listed.objects
    if objects is None:
        size, objects = _read_xml(checked, rules)
    if listed.splits:
        if rules.images:
            size = _check_pixels(checked, size) or size
        if size is not None and checked.from_voc:
            written = np.array([one.written for one in objects]).reshape(-1, 4)
            checked.at_edge = int(at_wrong_edge(written, np.array(size), rules.first_pixel).sum())
        _check_objects(checked, _with_attributes(checked, objects, rules), size, rules)
    return checked


def _with_attributes(
    checked: CheckedImage, objects: Sequence[AnnotatedObject], rules: Rules
) -> list[AnnotatedObject]:
    """Return ``objects`` with one more for each label of an attribute; faulty attributes are problems."""
    labelled: list[AnnotatedObject] = []
    for thing in objects:
        try:
            labelled += with_attribute_objects([thing], rules.attributes)
        except InputError as error:
            labelled.append(thing)
            checked.add("attribute", thing.file, str(error), thing.place, stops=True)
    return labelled


def _read_xml(
    checked: CheckedImage, rules: Rules
) -> tuple[tuple[int, int] | None, tuple[AnnotatedObject, ...]]:
    """Return the size and the objects that the annotation file gives."""
    path = checked.listed.annotation
    if not path.is_file():
        checked.add("missing annotation", path, "there is no such file", stops=bool(checked.listed.splits))
        return None, ()
    # Where the class names are taken from all annotations, those that belong to no split are read as well.
    stops = bool(checked.listed.splits) or rules.classes is None

    def on_fault(error: InputError) -> None:
        text = message_without(error, path)
        thing = text.partition(":")[0].partition(" has ")[0] if text.startswith("object ") else None
        checked.add("annotation", path, text, thing, stops=stops)

    try:
        annotation = to_annotation(read_element(path), path, rules.first_pixel, on_fault)
    except InputError as error:
        on_fault(error)
        return None, ()
    if checked.listed.splits and checked.listed.path.is_file():
        places = [thing.place for thing in annotation.objects]
        checked.suspect(suspicions(annotation.filename, places, checked.listed.path, path))
    checked.from_voc = len(annotation.objects)
    return annotation.size, tuple(annotation.objects)


def _check_pixels(checked: CheckedImage, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Read the image file; return the size that training would see, None where it would see none."""
    path = checked.listed.path
    if not path.is_file():
        # A COCO file gives the whole name; an id in VOC layout may have any of the suffixes.
        others = f" (nor {', '.join(IMAGE_SUFFIXES[1:])})" if checked.listed.objects is None else ""
        checked.add("missing image", path, f"there is no such file{others}", stops=True)
        return None
    try:
        image = read_image(path, size)
        stored, orientation = stored_view(path)
        checked.suspect(unused_bits(path))
    except InputError as error:
        kinds = {TruncatedImage: "truncated image", WrongImageSize: "image size"}
        checked.add(kinds.get(type(error), "unreadable image"), path, str(error), stops=True)
        return None
    if orientation != 1:
        seen = "as it is stored" if orientation >= 5 and image.shape[:2] == stored else "turned upright"
        checked.add(
            "EXIF rotation", path, f"orientation {orientation}: the image is read {seen}; check its boxes"
        )
    return image.shape[0], image.shape[1]


def _check_objects(
    checked: CheckedImage, objects: Sequence[AnnotatedObject], size: tuple[int, int] | None, rules: Rules
) -> None:
    file = checked.listed.annotation
    stops = rules.objects.invalid_boxes == "error" and rules.train_split in checked.listed.splits
    limits = size or (2**24, 2**24)  # without a size nothing can be outside on the right or below
    for thing in objects:
        fault = rules.objects.box_fault(thing.box, limits)
        if rules.classes is not None and thing.name not in rules.classes:
            if rules.objects.other_classes == "ignore":
                checked.others[thing.name] += 1
            else:
                message = f"{thing.name!r} is not among the classes; {OTHER_CLASS_ADVICE}"
                checked.add("unknown class", file, message, thing.place, stops=True)
        elif fault is None:
            checked.objects.append(thing)
        else:
            written = ", ".join(f"{number:g}" for number in thing.written)
            extent = f" of an image of {size[1]}x{size[0]}" if size and fault == "outside" else ""
            checked.add(fault, file, f"box {written} is {fault}{extent}", thing.place, stops=stops)
    first: dict[tuple[object, ...], str] = {}
    for thing in objects:
        twin = first.setdefault((thing.name, thing.box), thing.place)
        if twin != thing.place:
            checked.add("duplicate object", file, f"the same class and box as {twin}", thing.place)
