"""One VOC annotation file, read safely and given back as it is written.

Source: the annotation format of the PASCAL VOC 2007 development kit. Coordinates here are the file's own,
1-based with inclusive ends; `detector.data.voc` converts them. Only what a detector needs is looked at,
so files of other tools with missing, additional or differently ordered elements read as well. So do element
names in other case or with a namespace's prefix, objects gathered in <objects>, and several boxes in one
object, each of which is an object of its own. An object or a box anywhere else is an error, never passed by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from detector.core.errors import InputError
from detector.core.files import require_regular
from detector.data.xml_text import decode_xml

MAX_BYTES = 10 * 2**20
MAX_DEPTH = 32  # elements within elements; VOC itself needs 5
MAX_COORDINATE = 2.0**24  # up to here float32 holds every whole pixel

MAX_COPIED = 2**20  # elements of objects with several boxes, counted once for each of their boxes

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"1": True, "true": True, "0": False, "false": False, "unspecified": False, "": False}
_READ = frozenset(
    (
        *("annotation", "filename", "size", "height", "width", "depth", "objects", "object", "part"),
        *("name", "difficult", "ignore", "bndbox", *CORNERS),
    )
)
_STRAY = frozenset(("object", "bndbox", "robndbox", *CORNERS))  # never without a meaning
_NO_BOX = {
    "robndbox": "a rotated box (<robndbox>)",
    "polygon": "a polygon",
    "segmentation": "a segmentation",
    "bbox": "a <bbox>",
    "box": "a <box>",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class VocObject:
    """One box of one <object>: ``box`` is (xmin, ymin, xmax, ymax), ends inclusive, in pixels.

    ``place`` names it inside the file. ``ignore`` stands for COCO's flag, which `detector.data.convert`
    brings along: neither an object to be trained on nor one that a detector misses.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    ignore: bool
    place: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VocAnnotation:
    """One file: ``size`` is (height, width) in pixels, None where <size> is missing or zero.

    ``filename`` is the image's name by the file itself, None where it gives none.
    """

    path: Path
    size: tuple[int, int] | None
    objects: list[VocObject]
    filename: str | None = None


def read_annotation(path: Path) -> VocAnnotation:
    """Read one annotation file.

    Raises:
        InputError: an unreadable, hostile or malformed file (see `parse_xml`), or an object without a name
            or without four finite coordinates; the message names the file and the object's number, from 1.
    """
    return to_annotation(parse_xml(path), path)


def to_annotation(
    root: Element, path: Path, on_fault: Callable[[InputError], None] | None = None
) -> VocAnnotation:
    """Return what the outer element of the file at ``path`` says. Raises InputError as `read_annotation`.

    With ``on_fault`` a faulty object or size is handed to it and left out, and the rest is read.
    """
    if root.tag != "annotation":
        raise InputError(f"{path}: not a VOC annotation: the outer element is <{root.tag}>, not <annotation>")
    objects, size, filename = [], None, None
    for place, element in object_elements(root, path, on_fault):
        with faults_to(on_fault):
            objects.append(_read_object(element, place, path))
    with faults_to(on_fault):
        size = _read_size(root, path)
    with faults_to(on_fault):
        filename = _text(root, "filename", str(path)) or None
    return VocAnnotation(path=path, size=size, objects=objects, filename=filename)


def object_elements(
    root: Element, path: Path, on_fault: Callable[[InputError], None] | None = None
) -> Iterator[tuple[str, Element]]:
    """Yield the place and the element of every object; one with several boxes once for each box.

    Raises InputError, or hands to ``on_fault``, an object or a box where none is looked for.
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
                f"{path}: <{child}> in <{inside}>, where it would not be read; objects stand directly in "
                "<annotation>, each with <name> and <bndbox>: correct the file"
            )


def _with_one_box(element: Element, box: Element) -> Element:
    """Return an object without its boxes but ``box``."""
    single = Element(element.tag, element.attrib)
    single.text, single.tail = element.text, element.tail
    single.extend(child for child in element if child.tag != "bndbox" or child is box)
    return single


def _strays(root: Element) -> Iterator[tuple[str, str]]:
    """Yield the names of the element around it and of each object, box or corner that is not read."""
    for child in root:
        if child.tag != "object":
            yield from _strays_below(child, root.tag)
            continue
        for field in child:  # a <part>, such as a person's head, has a box that is no object's
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


@contextmanager
def faults_to(on_fault: Callable[[InputError], None] | None) -> Iterator[None]:
    """Hand an InputError to ``on_fault`` and go on behind the block; None lets it through."""
    try:
        yield
    except InputError as error:
        if on_fault is None:
            raise
        on_fault(error)


def parse_xml(path: Path) -> Element:
    """Parse an XML file that may come from a stranger, and write what is read of it in VOC's own way.

    So the elements that have a meaning here are in lower case and without a prefix, and the objects that
    were inside <objects> are directly in the outer element.

    Document type declarations are refused, and with them entities, both the expanding and the external
    kind; so are files over 10 MiB and elements nested more than 32 deep.

    Raises:
        InputError: the file cannot be read, is refused, or is not well-formed.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise InputError(f"{path}: elements are nested more than {MAX_DEPTH} deep; refused")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse_doctype(*_: object) -> None:
        raise InputError(
            f"{path}: has a document type declaration (<!DOCTYPE ...>), which can hide entity bombs; "
            "refused: remove the declaration"
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        parser.Parse(decode_xml(_read_bytes(path), path), True)
    except (expat.ExpatError, UnicodeError) as error:  # the last: characters that no file should hold
        raise InputError(f"{path}: not well-formed XML: {error}; correct or remove the file") from None
    return _in_plain_names(builder.close())


def _in_plain_names(root: Element) -> Element:
    for element in root.iter():
        plain = element.tag.rpartition(":")[2].lower()
        if plain in _READ or plain in _NO_BOX:
            element.tag = plain
    for gathered in root.findall("objects"):
        if len(gathered) and all(child.tag == "object" for child in gathered):
            place = list(root).index(gathered)
            root[place : place + 1] = list(gathered)
    return root


def _read_bytes(path: Path) -> bytes:
    require_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot read the annotation: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES // 2**20} MiB, which no annotation needs; refused")
    return content


def _read_object(element: Element, place: str, path: Path) -> VocObject:
    name = _text(element, "name", f"{path}: {place}")
    if not name:
        raise InputError(f"{path}: {place} has no <name>; add one or remove the object")
    number, comma, box = place.partition(",")
    place = f"{number} ({name}){comma}{box}"
    where = f"{path}: {place}"
    corners = element.find("bndbox")
    if corners is None:
        instead = next((f" but {text}" for tag, text in _NO_BOX.items() if element.find(tag) is not None), "")
        raise InputError(f"{where} has no <bndbox>{instead}; add an upright box or remove the object")
    xmin, ymin, xmax, ymax = (_read_coordinate(corners, corner, where) for corner in CORNERS)
    return VocObject(
        name=name,
        box=(xmin, ymin, xmax, ymax),
        difficult=_read_flag(element, "difficult", where),
        ignore=_read_flag(element, "ignore", where),
        place=place,
    )


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
    """Return the text of the only ``tag`` in an element, empty without one. Raises InputError for two."""
    found = element.findall(tag)
    if len({(one.text or "").strip() for one in found}) > 1:
        raise InputError(f"{place} has {len(found)} <{tag}> that differ; keep the right one")
    return (found[0].text or "").strip() if found else ""


def _number(text: str) -> float:
    """Return the number that ``text`` writes, NaN where it writes none."""
    try:
        return math.nan if "_" in text else float(text)  # Python alone allows 1_000
    except ValueError:
        return math.nan
