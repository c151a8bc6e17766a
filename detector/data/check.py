"""What can be wrong with one image of a data set and with what is annotated on it, found one image a call.

`check_item` needs nothing but its arguments, so a pool of processes can share the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from detector.core.errors import InputError
from detector.core.files import IMAGE_SUFFIXES
from detector.data.images import TruncatedImage, WrongImageSize, read_image, stored_view
from detector.data.objects import OTHER_CLASS_ADVICE, AnnotatedObject, Box, InvalidBoxes, box_fault
from detector.data.suspicions import Suspicion, at_wrong_edge, unused_bits
from detector.data.voc import annotated_objects, suspicions_of
from detector.data.voc_xml import parse_xml, to_annotation

_USABLE = ("duplicate object", "several boxes")  # problems of objects that are used all the same


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One fault: its ``kind`` in a few words, the ``file`` and perhaps the object in it, and the message.

    ``stops`` says that training, or an evaluation in it, ends with an error because of it; ``unusable``
    that an object is left out of training.
    """

    kind: str
    file: str
    message: str
    object: str | None = None
    image_id: str | None = None
    key: str | None = None
    splits: tuple[str, ...] = ()
    stops: bool = False
    unusable: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One image to check: where its annotation and its picture are, and the splits that name it.

    ``objects`` and ``size`` (height, width) are those of a COCO file; None means an XML file, to be read.
    """

    image_id: str
    key: str
    splits: tuple[str, ...]
    file: Path
    image: Path
    size: tuple[int, int] | None = None
    objects: tuple[AnnotatedObject, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What training would accept: as in the config. ``classes`` None takes any name; ``images`` False looks
    at no picture; boxes are judged by ``policy`` where the split is one of ``trained``; ``other_classes``
    says that objects of other classes are left out."""

    classes: frozenset[str] | None
    policy: InvalidBoxes
    min_box_size: float
    trained: frozenset[str]
    images: bool = True
    other_classes: bool = False
    first_pixel: int = 1


@dataclass(kw_only=True, slots=True)
class Checked:
    """What was found on one image: problems, and (class, width, height) of each object that can be used.

    ``boxes`` and ``flags``, (difficult, crowd), are those of the same objects, ``others`` the objects of
    classes that are not asked for; ``at_edge`` of ``from_voc`` objects in XML are
    `detector.data.suspicions.at_wrong_edge`.
    """

    item: Item
    problems: list[Problem] = field(default_factory=list)
    objects: list[tuple[str, float, float]] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    flags: list[tuple[bool, bool]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    at_edge: int = 0
    from_voc: int = 0

    def add(
        self, kind: str, file: Path, message: str, thing: str | None = None, *, stops: bool = False
    ) -> None:
        self.problems.append(
            Problem(
                kind=kind,
                file=str(file),
                object=thing,
                message=message.removeprefix(f"{file}: "),
                image_id=self.item.image_id,
                key=self.item.key,
                splits=self.item.splits,
                stops=stops,
                unusable=thing is not None and kind not in _USABLE,
            )
        )

    def suspect(self, suspicions: Iterable[Suspicion]) -> None:
        for kind, file, message, thing in suspicions:
            self.add(kind, Path(file), message, thing)


def check_item(item: Item, rules: Rules) -> Checked:
    """Return everything that is wrong with one image."""
    found = Checked(item=item)
    size, objects = item.size, item.objects
    if objects is None:
        if not item.file.is_file():
            found.add("missing annotation", item.file, "there is no such file", stops=bool(item.splits))
            objects = ()
        else:
            size, objects = _read_xml(found, rules)
    if item.splits:
        if rules.images:
            size = _check_image(found, size) or size
        if size is not None and found.from_voc:
            found.at_edge = sum(at_wrong_edge(one.written, size, rules.first_pixel) for one in objects)
        _check_objects(found, objects, size, rules)
    return found


def _read_xml(found: Checked, rules: Rules) -> tuple[tuple[int, int] | None, tuple[AnnotatedObject, ...]]:
    path = found.item.file
    # An annotation of no split is read too where the class names are taken from all of them.
    stops = bool(found.item.splits) or rules.classes is None

    def on_fault(error: InputError) -> None:
        text = str(error.args[0]).removeprefix(f"{path}: ")
        thing = text.partition(":")[0].partition(" has ")[0] if text.startswith("object ") else None
        found.add("annotation", path, text, thing, stops=stops)

    try:
        annotation = to_annotation(parse_xml(path), path, on_fault)
    except InputError as error:
        on_fault(error)
        return None, ()
    if found.item.splits and found.item.image.is_file():
        found.suspect(suspicions_of(annotation, found.item.image))
    found.from_voc = len(annotation.objects)
    return annotation.size, tuple(annotated_objects(annotation, rules.first_pixel))


def _check_image(found: Checked, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Look at the picture and return the size that training would see, None where it would see none."""
    path = found.item.image
    if not path.is_file():
        # COCO names the whole file
        others = f" (nor {', '.join(IMAGE_SUFFIXES[1:])})" if found.item.objects is None else ""
        found.add("missing image", path, f"there is no such file{others}", stops=True)
        return None
    try:
        image = read_image(path, size)
        stored, orientation = stored_view(path)
        found.suspect(unused_bits(path))
    except InputError as error:
        match error:
            case TruncatedImage():
                kind = "truncated image"
            case WrongImageSize():
                kind = "image size"
            case _:
                kind = "unreadable image"
        found.add(kind, path, str(error), stops=True)
        return None
    if orientation != 1:
        seen = "as it is stored" if orientation >= 5 and image.shape[:2] == stored else "turned upright"
        found.add(
            "EXIF rotation", path, f"orientation {orientation}: the image is read {seen}; check its boxes"
        )
    return image.shape[0], image.shape[1]


def _check_objects(
    found: Checked, objects: tuple[AnnotatedObject, ...], size: tuple[int, int] | None, rules: Rules
) -> None:
    file = found.item.file
    stops = rules.policy == "error" and not rules.trained.isdisjoint(found.item.splits)
    for thing in objects:
        where = thing.place.removeprefix(f"{file}: ")
        written = ", ".join(f"{number:g}" for number in thing.written)
        if rules.classes is not None and thing.name not in rules.classes:
            if rules.other_classes:
                found.others[thing.name] += 1
                continue
            found.add(
                "unknown class",
                file,
                f"{thing.name!r} is not among the classes; {OTHER_CLASS_ADVICE}",
                where,
                stops=True,
            )
            continue
        limits = size or (2**24, 2**24)  # without a size nothing can be outside on the right or below
        fault = box_fault(thing.box, limits, rules.min_box_size, may_clip=rules.policy == "clip")
        if fault is None:
            x1, y1, x2, y2 = thing.box
            found.objects.append((thing.name, x2 - x1, y2 - y1))
            found.boxes.append(thing.box)
            found.flags.append((thing.difficult or thing.ignore, thing.crowd or thing.ignore))
        else:
            extent = f" of an image of {size[1]}x{size[0]}" if size and fault == "outside" else ""
            found.add(fault, file, f"box {written} is {fault}{extent}", where, stops=stops)
    for where, twin in _twins(objects):
        where = where.removeprefix(f"{file}: ")
        found.add(
            "duplicate object", file, f"the same class and box as {twin.removeprefix(f'{file}: ')}", where
        )


def _twins(objects: tuple[AnnotatedObject, ...]) -> Iterator[tuple[str, str]]:
    """Yield the places of each object that repeats an earlier one, and of that one."""
    first: dict[tuple[object, ...], str] = {}
    for thing in objects:
        place = first.setdefault((thing.name, thing.box), thing.place)
        if place != thing.place:
            yield thing.place, place


def count_kinds(problems: list[Problem]) -> dict[str, int]:
    """Return how many problems there are of each kind, the most frequent first."""
    return dict(Counter(problem.kind for problem in problems).most_common())
