"""Annotation files of PASCAL VOC as regions: the boxes of all objects, whatever their names and flags.

Source: the annotation format of the PASCAL VOC 2007 development kit. Pixels count from 1 and the second
corner is the last pixel inside, unless another convention is given. Masks of VOC's segmentation task are
label images (`detector.proposals.readers.label_images`).
"""

from __future__ import annotations

import math
from array import array
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from detector.core.errors import InputError
from detector.core.xml_files import parse_xml
from detector.proposals.readers.raw_images import RawImage, RawImages, files_or_one, number_of_pixels

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(source: Path) -> RawImages:
    """Return the images of the folder ``source`` of XML files, or of one file; one is in memory at a time.

    The name of a file without its suffix is the image's. An object may have several boxes; tags may be in any
    case and have a namespace.
    """
    files = files_or_one(source, ".xml")
    return RawImages([key for key, _ in files], (_image(key, path) for key, path in files))


def _image(key: str, path: Path) -> RawImage:
    root = parse_xml(path)
    if _tag(root) != "annotation":
        raise InputError(f"{path}: not a VOC annotation: the outer element is <{root.tag}>, not <annotation>")
    size, corners = None, array("d")
    for element in root.iter():
        tag = _tag(element)
        if tag == "size":
            size = _size(element, str(path))
        elif tag == "object":
            boxes = [child for child in element if _tag(child) == "bndbox"]
            if not boxes:
                raise InputError(f"{path}: an <object> has no <bndbox>; only boxes are read")
            for box in boxes:
                corners.extend(_corners(box, f"{path}, box {len(corners) // 4 + 1}"))
    rows = np.frombuffer(corners, np.float64).reshape(-1, 4)
    return RawImage(key, rows, None, "xyxy_inclusive_1", size)


def _size(element: Element, where: str) -> tuple[int, int] | None:
    height, width = (_number(element, side) for side in ("height", "width"))
    if height == width == 0:  # some programs do not know it
        return None
    return number_of_pixels(height, width, f"{where}: <size>")


def _corners(box: Element, where: str) -> list[float]:
    found = [_number(box, name) for name in _CORNERS]
    if not all(map(math.isfinite, found)):
        raise InputError(f"{where}: <bndbox> must have the numbers {', '.join(_CORNERS)}")
    return found


def _number(element: Element, name: str) -> float:
    """Return the number in the element ``name`` of ``element``, NaN where there is none."""
    texts = [child.text or "" for child in element if _tag(child) == name]
    try:
        return float(texts[0]) if len(texts) == 1 and "_" not in texts[0] else math.nan
    except ValueError:
        return math.nan


def _tag(element: Element) -> str:
    """Return the tag in lower case, without a prefix."""
    return element.tag.rpartition(":")[2].lower()
