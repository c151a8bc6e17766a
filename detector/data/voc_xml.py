"""One VOC annotation file, read safely and given back as it is written.

Source: the annotation format of the PASCAL VOC 2007 development kit. Coordinates here are the file's own,
1-based with inclusive ends; `detector.data.voc` converts them. Only what a detector needs is looked at,
so files of other tools with missing, additional or differently ordered elements read as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from detector.errors import InputError
from detector.files import require_regular

MAX_BYTES = 10 * 2**20
MAX_DEPTH = 32  # elements within elements; VOC itself needs 5
MAX_COORDINATE = 2.0**24  # up to here float32 holds every whole pixel

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_DIFFICULT = {"1": True, "true": True, "0": False, "false": False, "unspecified": False, "": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class VocObject:
    """One <object>: ``box`` is (xmin, ymin, xmax, ymax), 1-based, ends inclusive, in pixels."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class VocAnnotation:
    """One file: ``size`` is (height, width) in pixels, None where <size> is missing or zero."""

    path: Path
    size: tuple[int, int] | None
    objects: list[VocObject]


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
    objects, size = [], None
    for number, element in enumerate(root.findall("object"), start=1):
        with faults_to(on_fault):
            objects.append(_read_object(element, f"{path}: object {number}"))
    with faults_to(on_fault):
        size = _read_size(root, path)
    return VocAnnotation(path=path, size=size, objects=objects)


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
    """Parse an XML file that may come from a stranger.

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
        parser.Parse(_read_bytes(path), True)
    except (expat.ExpatError, LookupError, UnicodeError) as error:  # the last two: unknown encodings
        raise InputError(f"{path}: not well-formed XML: {error}; mend or remove the file") from None
    return builder.close()


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


def _read_object(element: Element, place: str) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise InputError(f"{place} has no <name>; add one or remove the object")
    place = f"{place} ({name})"
    xmin, ymin, xmax, ymax = (_read_coordinate(element, corner, place) for corner in _CORNERS)
    difficult = (element.findtext("difficult") or "").strip()
    if difficult.lower() not in _DIFFICULT:
        raise InputError(f"{place}: <difficult> is {difficult!r}; expected 0 or 1")
    return VocObject(name=name, box=(xmin, ymin, xmax, ymax), difficult=_DIFFICULT[difficult.lower()])


def _read_coordinate(element: Element, corner: str, place: str) -> float:
    text = (element.findtext(f"bndbox/{corner}") or "").strip()
    if not text:
        raise InputError(f"{place} has no <{corner}> in its <bndbox>; add it or remove the object")
    value = _number(text)
    if not abs(value) <= MAX_COORDINATE:
        raise InputError(f"{place}: <{corner}> is {text[:40]!r}; expected a number of pixels")
    return value


def _read_size(root: Element, path: Path) -> tuple[int, int] | None:
    sides = []
    for side in ("height", "width"):
        text = (root.findtext(f"size/{side}") or "").strip()
        value = _number(text) if text else 0.0
        if not 0 <= value <= MAX_COORDINATE or value != int(value):
            raise InputError(
                f"{path}: <{side}> of <size> is {text[:40]!r}; expected a whole number of pixels"
            )
        sides.append(int(value))
    return (sides[0], sides[1]) if all(sides) else None


def _number(text: str) -> float:
    """Return the number that ``text`` writes, NaN where it writes none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
