"""Writing annotations in VOC layout that a program found: one XML file per image, and split files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from detector.core.errors import InputError
from detector.core.files import make_folder, write_text
from detector.core.structures import Detections
from detector.data.voc.annotation import CORNERS


@dataclass(frozen=True, kw_only=True)
class FoundObjects:
    """The objects that were found in one image.

    ``image_id`` is its id in VOC layout, ``filename`` the name of its file, ``size`` (height, width) is in
    pixels, and the boxes of ``detections`` are in pixels of the original image.
    """

    image_id: str
    filename: str
    size: tuple[int, int]
    detections: Detections


def write_found(
    folder: Path,
    split: str,
    images: Sequence[FoundObjects],
    classes: Sequence[str],
    *,
    first_pixel: int = 1,
    others: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Write ``folder/Annotations/SPLIT/ID.xml`` and ``folder/ImageSets/Main/SPLIT.txt``.

    `VocSource` reads them, with ``annotations`` "Annotations/{split}", and gives the same boxes, bit for bit,
    unless a corner is below 2^-29 pixels. An image without objects has a file as well. ``others`` are the ids
    of further splits, which get a split file and an empty folder, so that they can be read as splits without
    annotations.

    Raises:
        InputError: two images have the same id, a name cannot be written as XML, or the folder cannot be
            written.
    """
    texts: dict[str, str] = {}
    for image in images:
        if image.image_id in texts:
            raise InputError(
                f"{image.filename}: another image of {split} has the id {image.image_id!r} too, by which its "
                "annotation is found; rename one of the files"
            )
        texts[image.image_id] = annotation_text(image, classes, first_pixel)
    for image_id, text in texts.items():
        write_text(folder / "Annotations" / split / f"{image_id}.xml", text)
    for name, ids in {split: list(texts), **(others or {})}.items():
        make_folder(folder / "Annotations" / name)
        write_text(folder / "ImageSets" / "Main" / f"{name}.txt", "".join(f"{one}\n" for one in ids))


def annotation_text(image: FoundObjects, classes: Sequence[str], first_pixel: int) -> str:
    """Return VOC's XML; its corners count from ``first_pixel`` and include the last pixel.

    Raises:
        InputError: a name has characters that XML does not allow.
    """
    root, (height, width) = Element("annotation"), image.size
    _add(root, {"filename": image.filename})
    _add(SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    found = image.detections
    for (x1, y1, x2, y2), label in zip(found.boxes.tolist(), found.labels.tolist(), strict=True):
        node = SubElement(root, "object")
        _add(node, {"name": classes[label - 1], "difficult": 0})
        corners = (x1 + first_pixel, y1 + first_pixel, x2 + first_pixel - 1, y2 + first_pixel - 1)
        _add(SubElement(node, "bndbox"), dict(zip(CORNERS, map(_plain, corners), strict=True)))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode") + "\n"
    try:
        ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(
            f"{image.filename}: its name or that of a class cannot be written as XML ({error}); rename it"
        ) from None
    return text


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Provide a folder beside ``folder`` that becomes ``folder`` if the block succeeds, else is removed.

    Raises:
        InputError: ``folder`` exists already, or cannot be made.
    """
    refuse_existing(folder)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    make_folder(unfinished)
    try:
        yield unfinished
        refuse_existing(folder)
        unfinished.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def refuse_existing(folder: Path) -> None:
    """Raise InputError if anything has the name of ``folder`` already."""
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} exists already, and nothing is overwritten; name a new folder")


def _plain(corner: float) -> int | float:
    return int(corner) if corner == int(corner) else corner


def _add(parent: Element, values: Mapping[str, object]) -> None:
    for tag, value in values.items():
        SubElement(parent, tag).text = str(value)
