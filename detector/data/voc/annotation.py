"""One VOC annotation file, and its objects in the project's convention.

Source: the annotation format of the PASCAL VOC 2007 development kit. The file's own coordinates are 1-based
with inclusive ends; they are converted here. Only what a detector needs is read, so files of
other tools with missing, additional or differently ordered elements are accepted, as are element names in
another case or with a namespace prefix, and objects inside <objects>. An object with several boxes is read as
one object per box, and one with several names, or with the attributes that CVAT writes, as one per label. An
object or a box anywhere else is an error: it is never silently ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from detector.core.errors import FaultHandler, InputError, faults_to
from detector.core.xml_files import parse_xml
from detector.data.attributes import attribute_labels
from detector.data.file_columns import FileAnnotation
from detector.data.problems import Problem
from detector.data.suspicions import other_image, several_boxes
from detector.data.targets import MAX_COORDINATE, AnnotatedObject

MAX_COPIED = 2**20  # elements of objects with several boxes, counted once for each of their boxes

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"1": True, "true": True, "0": False, "false": False, "unspecified": False, "": False}
_READ = frozenset(
    (
        *("annotation", "filename", "size", "height", "width", "depth", "objects", "object", "part"),
        *("name", "difficult", "ignore", "bndbox", *CORNERS),
    )
)
_STRAY = frozenset(("object", "bndbox", "robndbox", *CORNERS))  # elements that always have a meaning
_NO_BOX = {
    "robndbox": "a rotated box (<robndbox>)",
    "polygon": "a polygon",
    "segmentation": "a segmentation",
    "bbox": "a <bbox>",
    "box": "a <box>",
}


def suspicions(filename: str | None, places: Iterable[str], image: Path, path: Path) -> Iterator[Problem]:
    """Yield what is suspicious about the file ``path``, where ``image`` is the image that is read for it.

    ``filename`` is the image's name in the file, and ``places`` are those of its objects.
    """
    yield from other_image(filename or None, image, path)
    yield from several_boxes(places, path)


def read_annotation(path: Path, first_pixel: int = 1) -> FileAnnotation:
    """Read one annotation file, in which the first pixel has the number ``first_pixel``, 0 or 1.

    Raises:
        InputError: an unreadable, hostile or malformed file (see `detector.core.xml_files.parse_xml`), or an
            object without a name or without four finite coordinates; the message names the file and the
            object's number, from 1.
    """
    return to_annotation(read_element(path), path, first_pixel)


def read_element(path: Path) -> Element:
    """Return the outer element of an annotation file in VOC's own spelling. Errors as `parse_xml`.

    Elements that have a meaning in VOC are in lower case and without a prefix, and objects that were inside
    <objects> are directly in the outer element.
    """
    root = parse_xml(path)
    for element in root.iter():
        plain = element.tag.rpartition(":")[2].lower()
        if plain in _READ or plain in _NO_BOX:
            element.tag = plain
    for gathered in root.findall("objects"):
        if len(gathered) and all(child.tag == "object" for child in gathered):
            place = list(root).index(gathered)
            root[place : place + 1] = list(gathered)
    return root


def to_annotation(
    root: Element, path: Path, first_pixel: int = 1, on_fault: FaultHandler | None = None
) -> FileAnnotation:
    """Return the content of ``root``, the result of `read_element` for ``path``. Errors as `read_annotation`.

    With ``on_fault`` a faulty object or size is passed to it and left out, and the rest is read.
    """
    if root.tag != "annotation":
        raise InputError(f"{path}: not a VOC annotation: the outer element is <{root.tag}>, not <annotation>")
    objects, size, filename = [], None, None
    for place, element in object_elements(root, path, on_fault):
        with faults_to(on_fault):
            objects += _read_object(element, place, path, first_pixel)
    with faults_to(on_fault):
        size = _read_size(root, path)
    with faults_to(on_fault):
        filename = _text(root, "filename", str(path)) or None
    return FileAnnotation(path=path, size=size, objects=objects, filename=filename)


def object_elements(
    root: Element, path: Path, on_fault: FaultHandler | None = None
) -> Iterator[tuple[str, Element]]:
    """Yield the place and the element of every object; an object with several boxes once for each box.

    Raises InputError, or passes it to ``on_fault``, for an object or a box where none is expected.
    """
    copied = 0
    for number, element in enumerate(root.findall("object"), start=1):
        boxes, others = element.findall("bndbox"), len(element)
        copied += len(boxes) * others if len(boxes) > 1 else 0
        if copied > MAX_COPIED:
            raise InputError(f"{path}: object {number} has {len(boxes)} <bndbox>; write one object for each")
        for index, box in enumerate(boxes, start=1):
            if len(boxes) > 1:
                yield f"object {number}, box {index}", _with_one_box(element, box)
        if len(boxes) < 2:
            yield f"object {number}", element
    for inside, child in _strays(root):
        with faults_to(on_fault):
            raise InputError(
                f"{path}: <{child}> in <{inside}>, where it would not be read; objects belong directly in "
                "<annotation>, each with <name> and <bndbox>: correct the file"
            )


def _with_one_box(element: Element, box: Element) -> Element:
    single = Element(element.tag, element.attrib)
    single.text, single.tail = element.text, element.tail
    single.extend(child for child in element if child.tag != "bndbox" or child is box)
    return single


def _strays(root: Element) -> Iterator[tuple[str, str]]:
    """Yield, for each object, box or corner that is not read, the names of its parent element and its own."""
    for child in root:
        if child.tag != "object":
            yield from _strays_below(child, root.tag)
            continue
        for field in child:  # a <part>, such as a person's head, has a box that is not an object
            if field.tag not in ("part", "robndbox", *CORNERS):
                yield from _strays_below(field, child.tag, own="bndbox")
            elif field.tag in CORNERS and child.find("bndbox") is not None:
                yield child.tag, field.tag


def _strays_below(element: Element, inside: str, own: str | None = None) -> Iterator[tuple[str, str]]:
    if element.tag in _STRAY and element.tag != own:
        yield inside, element.tag
    elif element.tag != "bndbox":
        for child in element:
            yield from _strays_below(child, element.tag)


def _read_object(element: Element, place: str, path: Path, first_pixel: int) -> list[AnnotatedObject]:
    """Return an object with its half-open box, which counts from 0, once for each of its names.

    Where pixels count from 1, as in VOC, xmin and ymin are reduced by 1, and xmax and ymax stay; where they
    count from 0, xmin and ymin stay, and xmax and ymax are increased by 1.
    """
    names = object_names(element)
    if not names:
        raise InputError(f"{path}: {place} has no <name>; add one or remove the object")
    number, comma, box = place.partition(",")
    where = f"{path}: {number} ({', '.join(names)}){comma}{box}"
    corners = element.find("bndbox")
    if corners is None:
        instead = next((f" but {text}" for tag, text in _NO_BOX.items() if element.find(tag) is not None), "")
        raise InputError(f"{where} has no <bndbox>{instead}; add an upright box or remove the object")
    xmin, ymin, xmax, ymax = (_read_coordinate(corners, corner, where) for corner in CORNERS)
    to_end = 1 - first_pixel
    difficult, ignore = (_read_flag(element, flag, where) for flag in ("difficult", "ignore"))
    attributes = attribute_labels(read_attributes(element))
    return [
        AnnotatedObject(
            name=name,
            box=(xmin - first_pixel, ymin - first_pixel, xmax + to_end, ymax + to_end),
            difficult=difficult,
            ignore=ignore,
            file=path,
            place=f"{number} ({name}){comma}{box}",
            written=(xmin, ymin, xmax, ymax),
            attributes=attributes if name == names[-1] else (),
        )
        for name in names
    ]


def object_names(element: Element) -> list[str]:
    """Return the names of an object, each once; an empty <name> is none."""
    texts = ((one.text or "").strip() for one in element.findall("name"))
    return list(dict.fromkeys(text for text in texts if text))


def read_attributes(element: Element) -> dict[str, list[str]]:
    """Return the texts of each attribute of an object: <attributes> with a <name> and <value> for each."""
    found: dict[str, list[str]] = {}
    for attribute in element.iterfind("attributes/attribute"):
        name, value = ((attribute.findtext(tag) or "").strip() for tag in ("name", "value"))
        if name:
            found.setdefault(name, []).append(value)
    return found


def _read_flag(element: Element, flag: str, place: str) -> bool:
    text = _text(element, flag, place)
    if text.lower() not in _FLAGS:
        raise InputError(f"{place}: <{flag}> is {text[:40]!r}; expected 0 or 1")
    return _FLAGS[text.lower()]


def _read_coordinate(box: Element, corner: str, place: str) -> float:
    text = _text(box, corner, place)
    if not text:
        raise InputError(f"{place} has no <{corner}> in its <bndbox>; add it or remove the object")
    value = _number(text)
    if not abs(value) <= MAX_COORDINATE:
        raise InputError(f"{place}: <{corner}> is {text[:40]!r}; expected a number of pixels")
    return value


def _read_size(root: Element, path: Path) -> tuple[int, int] | None:
    sizes = root.findall("size")
    if not sizes:
        return None
    if len(sizes) > 1:
        raise InputError(f"{path}: has {len(sizes)} <size>; keep the right one")
    sides = []
    for side in ("height", "width"):
        text = _text(sizes[0], side, f"{path}: <size>")
        value = _number(text) if text else 0.0
        if not 0 <= value <= MAX_COORDINATE or value != int(value):
            raise InputError(
                f"{path}: <{side}> of <size> is {text[:40]!r}; expected a whole number of pixels"
            )
        sides.append(int(value))
    return (sides[0], sides[1]) if all(sides) else None


def _text(element: Element, tag: str, place: str) -> str:
    """Return the text of an element's ``tag``, empty without one. Raises InputError for two that differ."""
    elements = element.findall(tag)
    if len({(one.text or "").strip() for one in elements}) > 1:
        raise InputError(f"{place} has {len(elements)} <{tag}> that differ; keep the right one")
    return (elements[0].text or "").strip() if elements else ""


def _number(text: str) -> float:
    """Return ``text`` as a number, NaN where it is none."""
    try:
        return math.nan if "_" in text else float(text)  # only Python allows 1_000
    except ValueError:
        return math.nan
