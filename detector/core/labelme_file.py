"""LabelMe's JSON files, and X-AnyLabeling's, which are the same with more keys: one per image.

Source: ``labelme/label_file.py``, ``labelme/utils/shape.py`` and ``labelme2coco.py`` of wkentaro/labelme, and
the files that X-AnyLabeling writes.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from detector.core.errors import FaultHandler, InputError, faults_to
from detector.core.files import read_json
from detector.core.masks import Masks
from detector.core.polygons import draw, ellipse
from detector.core.shapes import (
    Box,
    Painter,
    Point,
    Shape,
    extent,
    labels_of,
    mapping_of,
    points_of,
    short,
    size_of,
)

_TURNED = ("rotation", "oriented_rectangle")
_LINES = ("line", "linestrip")
WITHOUT_AREA = ("point", "points", *_LINES)
"""The types of shapes that are no regions."""
_FEWEST = {
    "polygon": 3,
    **dict.fromkeys(("rectangle", "circle", "mask", *_LINES), 2),
    **dict.fromkeys(_TURNED, 3),
}
_EXACTLY_TWO = ("circle", "mask")
_MAX_MASK_PIXELS = 2**27


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelMeFile:
    """One file of LabelMe. ``image`` is imagePath, and ``size`` (height, width); None where not given."""

    image: str | None
    size: tuple[int, int] | None
    shapes: list[Shape]


def read_labelme(
    path: Path, on_fault: FaultHandler | None = None, *, labelled: bool = True, skip: Collection[str] = ()
) -> LabelMeFile:
    """Read one file of LabelMe, or of X-AnyLabeling.

    Rectangles, also turned ones, polygons, circles, lines and masks are read, each as the box around it and
    with its outline. Shapes with the same label and the same ``group_id`` are parts of one object, as in
    LabelMe's own converters. The image inside the file (``imageData``) is not read.

    Args:
        labelled: whether each shape must have a label.
        skip: types of shapes that are left out.

    Raises:
        InputError: a file that cannot be read or is not LabelMe's, or a faulty shape; the message names the
            file and the shape's place from 0. With ``on_fault`` a faulty shape is passed to it and left out.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise InputError(f"{path}: not a file of LabelMe: expected an object with 'shapes', a list")
    image = content.get("imagePath")
    if image is not None and not isinstance(image, str):
        raise InputError(f"{path}: imagePath is {short(image)}; expected the path of the image")
    size = None
    with faults_to(on_fault):
        size = size_of(content, "imageHeight", "imageWidth", str(path))
    groups: dict[object, list[Shape]] = {}
    for number, entry in enumerate(content["shapes"]):
        with faults_to(on_fault):
            if not isinstance(entry, dict):
                raise InputError(
                    f"{path}: shapes[{number}] is {short(entry)}; expected an object with 'points'"
                )
            if _kind(entry) in skip:
                continue
            shape = _shape(entry, size, labelled, path, f"shapes[{number}]")
            group = entry.get("group_id")  # null names none
            groups.setdefault(number if group is None else (shape.labels, repr(group)), []).append(shape)
    return LabelMeFile(image=image or None, size=size, shapes=[_joined(parts) for parts in groups.values()])


def _kind(entry: dict[str, Any]) -> str:
    kind = entry.get("shape_type") or "polygon"
    return kind if isinstance(kind, str) else short(kind)


def _shape(
    entry: dict[str, Any], size: tuple[int, int] | None, labelled: bool, path: Path, place: str
) -> Shape:
    labels = labels_of((entry.get("label"),), labelled, f"{path}: {place}")
    place = f"{place} ({labels[0]})" if labels else place
    where = f"{path}: {place}"
    points = points_of(entry.get("points"), where)
    kind = _kind(entry)
    _check_points(kind, points, where)
    box, painter = _drawn(kind, points, entry.get("mask"), size, where)
    difficult = entry.get("difficult", False)
    if difficult not in (None, False, True, 0, 1):
        raise InputError(f"{where}: difficult is {short(difficult)}; expected true or false")
    return Shape(
        labels=labels,
        box=box,
        polygons=(tuple(points),) if kind == "polygon" or kind in _TURNED else (),
        painter=painter,
        difficult=bool(difficult),
        attributes={**mapping_of(entry.get("flags")), **mapping_of(entry.get("attributes"))},
        place=place,
    )


def _check_points(kind: str, points: Sequence[Point], where: str) -> None:
    if kind in WITHOUT_AREA and kind not in _LINES:
        raise InputError(
            f"{where}: a {kind!r} has no box; draw one of {', '.join(_FEWEST)}, or remove the shape"
        )
    if kind not in _FEWEST:
        raise InputError(
            f"{where}: the shape_type {kind!r:.60} is unknown; expected one of {', '.join(_FEWEST)}"
        )
    if len(points) < _FEWEST[kind]:
        raise InputError(f"{where}: a {kind} of {len(points)} points; expected at least {_FEWEST[kind]}")
    if kind in _EXACTLY_TWO and len(points) != 2:
        raise InputError(f"{where}: a {kind} of {len(points)} points; expected 2")


def _drawn(
    kind: str, points: Sequence[Point], content: Any, size: tuple[int, int] | None, where: str
) -> tuple[Box, Painter | None]:
    """Return the box of a shape, and what draws it where it is neither a box nor a polygon."""
    x1, y1, x2, y2 = box = extent(points)
    if kind == "circle":  # its centre and a point on it
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return (x - radius, y - radius, x + radius, y + radius), partial(_disc, x, y, radius)
    if kind != "mask":
        return box, None
    # The first and the last pixel of the mask.
    inside = x1 >= 0 and y1 >= 0 and (size is None or (x2 < size[1] and y2 < size[0]))
    if not inside or not all(side.is_integer() for side in box):
        raise InputError(
            f"{where}: the mask's corners {list(box)} are not pixels of the image; expected those of its "
            "first and its last pixel, whole numbers"
        )
    return (x1, y1, x2 + 1, y2 + 1), partial(_masked, content, box)


def _disc(x: float, y: float, radius: float, size: tuple[int, int], where: str) -> bytes:
    return draw([ellipse(x, y, radius, radius)], size, where)


def _masked(content: Any, box: Box, size: tuple[int, int], where: str) -> bytes:
    """Draw a mask: a PNG image in base64 of the pixels from one corner to the other."""
    if size[0] * size[1] > _MAX_MASK_PIXELS:
        raise InputError(
            f"{where}: a mask in an image of {size[1]} x {size[0]} pixels is refused; cut it into tiles"
        )
    crop = _decoded(content, where)
    left, top, right, bottom = map(int, box)
    if crop.shape != (bottom - top + 1, right - left + 1):
        raise InputError(
            f"{where}: the mask has shape {crop.shape}, which does not fit its corners {list(box)}"
        )
    whole = np.zeros((1, *size), np.uint8)
    whole[0, top : bottom + 1, left : right + 1] = crop
    return Masks.encode(whole).counts[0] if crop.any() else b""


def _decoded(content: Any, where: str) -> np.ndarray:
    try:
        data = base64.b64decode(content, validate=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.height * image.width > _MAX_MASK_PIXELS or image.mode not in ("1", "L", "P"):
                    raise ValueError(f"a {image.mode} image of {image.width} x {image.height} pixels")
                return np.asarray(image) != 0
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise InputError(f"{where}: its mask is not a PNG image in base64 ({error})"[:300]) from None


def _joined(parts: Sequence[Shape]) -> Shape:
    """Return the object that consists of ``parts``, at least one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    only_polygons = all(part.polygons for part in parts)
    return Shape(
        labels=first.labels,
        box=extent([corner for part in parts for corner in (part.box[:2], part.box[2:])]),
        polygons=tuple(outline for part in parts for outline in part.polygons) if only_polygons else (),
        painter=None if all(part.is_box for part in parts) else partial(_painted, parts),
        difficult=any(part.difficult for part in parts),
        attributes={key: value for part in parts for key, value in part.attributes.items()},
        joined=True,
        place=first.place,
    )


def _painted(parts: Sequence[Shape], size: tuple[int, int], where: str) -> bytes:
    """Draw several shapes as one mask; a rectangle among them covers all its pixels."""
    counts = [
        draw([_corners(part.box)], size, where) if part.is_box else part.mask(size, where) for part in parts
    ]
    covered = [{"size": list(size), "counts": one} for one in counts if one]
    if len(covered) < 2:
        return bytes(covered[0]["counts"]) if covered else b""
    merged: bytes = coco_mask.merge(covered)["counts"]
    return merged


def _corners(box: Box) -> np.ndarray:
    x1, y1, x2, y2 = box
    return np.array(((x1, y1), (x2, y1), (x2, y2), (x1, y2)))
