"""YOLO's text files: one per image, one line per region, in fractions of the image.

A line is ``class x y width height`` with the centre of the box, perhaps followed by a confidence
(``yolo predict save_txt=True save_conf=True``), or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon, which a
confidence may follow, too: a polygon has an even number of coordinates. Source: the documentation of
Ultralytics, "Object detection datasets" and "Instance segmentation datasets".
"""

from __future__ import annotations

import math
from array import array
from pathlib import Path, PurePosixPath

import numpy as np

from detector.core.errors import InputError
from detector.proposals.readers.polygons import FractionalPolygons, Polygon
from detector.proposals.readers.raw_images import MAX_BOXES, RawImage, RawImages, clear_errors, files_or_one

_NO_LABELS = frozenset(("classes", "notes", "readme"))  # files that programs put beside the others
_LONGEST_LINE = 1 << 20
_MAX_BYTES = 256 << 20
_FEWEST_OF_A_POLYGON = 7  # numbers: a class and three points


def read_yolo(source: Path) -> RawImages:
    """Return the images of the folder ``source`` of text files, or of one file; one is in memory at a time.

    ``classes.txt`` is not read. The names are the paths in the folder; what comes before and with a folder
    ``labels`` is left out, since YOLO has the images in a folder ``images`` instead.
    """
    files = files_or_one(source, ".txt")
    if source.is_dir():
        files = [(key, path) for key, path in files if path.stem.lower() not in _NO_LABELS] or files
    named = [(_image_name(key), path) for key, path in files]
    return RawImages([key for key, _ in named], (_image(key, path) for key, path in named))


def parse_line(line: str, where: str) -> list[float]:
    """Return the numbers of a line, none for an empty one; InputError for other than a region of YOLO."""
    if len(line) > _LONGEST_LINE:
        raise InputError(f"{where}: a line of over {_LONGEST_LINE} characters is refused")
    try:
        found = [float(word) for word in line.split()]
    except ValueError as error:
        raise InputError(f"{where}: {str(error)[:80]}") from error
    if found and (len(found) < 5 or not found[0].is_integer() or found[0] < 0):
        raise InputError(
            f"{where}: a line must be a class number, then x, y, width and height, or the points of a polygon"
        )
    return found


def _image_name(key: str) -> str:
    parts = PurePosixPath(key).parts
    if "labels" in parts[:-1]:
        parts = parts[len(parts) - parts[::-1].index("labels") :]
    return "/".join(parts)


def _image(key: str, path: Path) -> RawImage:
    boxes, scores = array("d"), array("d")
    polygons: list[tuple[Polygon, ...]] = []
    with clear_errors(path, "text file", UnicodeDecodeError):
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} has over {_MAX_BYTES} bytes, too many for the regions of one image")
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), ""), 1):
                values = parse_line(line, f"{path}, line {number}")
                if not values:
                    continue
                outline = _outline(values)
                boxes.extend(values[1:5] if outline is None else _extent(outline))
                polygons.append(() if outline is None else (outline,))
                scored = len(values) % 2 == 0
                scores.append(values[-1] if scored else math.nan)
                if len(polygons) > MAX_BOXES:
                    raise InputError(f"{path}: over {MAX_BOXES} regions are refused")
    found = np.frombuffer(scores, np.float64)
    return RawImage(
        key,
        np.frombuffer(boxes, np.float64).reshape(-1, 4),
        None if not len(found) or np.isnan(found).all() else found,
        "cxcywh_normalized",
        masks=FractionalPolygons(tuple(polygons)) if any(polygons) else None,
    )


def _outline(values: list[float]) -> Polygon | None:
    """Return the polygon (n, 2) of a line in fractions of the image, None for a box."""
    if len(values) < _FEWEST_OF_A_POLYGON:
        return None
    points = values[1 : len(values) - (len(values) % 2 == 0)]
    return np.array(points, np.float64).reshape(-1, 2)


def _extent(outline: Polygon) -> list[float]:
    """Return centre, width and height of the box around ``outline``."""
    least, most = outline.min(axis=0), outline.max(axis=0)
    return [*((least + most) / 2).tolist(), *(most - least).tolist()]
