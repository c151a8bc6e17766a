"""LabelMe's JSON files, one per image: polygons, rectangles, circles and masks as regions.

Source: ``labelme/label_file.py`` and ``labelme/utils/shape.py`` of wkentaro/labelme. Shapes of one label and
one ``group_id`` are parts of one object, as in labelme2coco.py. Points and lines are no regions.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from detector.core.errors import InputError
from detector.core.files import read_json
from detector.core.masks import Masks
from detector.core.polygons import corners, draw, ellipse
from detector.proposals.readers.raw_images import (
    RawImage,
    RawImages,
    files_or_one,
    number_of_pixels,
    numbers,
)

_NO_REGIONS = ("point", "points", "line", "linestrip")
_MAX_MASK_PIXELS = 2**27


def read_labelme(source: Path) -> RawImages:
    """Return the images of the folder ``source`` of JSON files, or of one file; one is in memory at a time.

    The name of a file without its suffix is the image's, as LabelMe names it.
    """
    files = files_or_one(source, ".json")
    return RawImages([key for key, _ in files], (_image(key, path) for key, path in files))


def _image(key: str, path: Path) -> RawImage:
    content = read_json(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise InputError(f"{path}: not a file of LabelMe: it has no list 'shapes'")
    size = number_of_pixels(content.get("imageHeight"), content.get("imageWidth"), str(path))
    boxes: list[list[float]] = []
    counts: list[bytes] = []
    groups: dict[tuple[str, str], int] = {}
    for number, shape in enumerate(shapes):
        where = f"{path}, shape {number}"
        if not isinstance(shape, dict):
            raise InputError(f"{where}: expected an object")
        found = _region(shape, size, where)
        if found is None:
            continue
        group = (repr(shape.get("label")), repr(shape.get("group_id")))
        row = groups.get(group)
        if row is not None and found[1] and counts[row]:
            counts[row] = _joined(counts[row], found[1], size)
            boxes[row] = Masks(size, (counts[row],)).boxes()[0].tolist()
            continue
        if shape.get("group_id") is not None and found[1]:
            groups.setdefault(group, len(boxes))
        boxes.append(found[0])
        counts.append(found[1])
    masks = Masks(size, tuple(counts)) if any(counts) else None
    return RawImage(key, np.array(boxes, np.float64).reshape(-1, 4), None, "xyxy", size, masks)


def _region(shape: dict[str, Any], size: tuple[int, int], where: str) -> tuple[list[float], bytes] | None:
    """Return the box (x1, y1, x2, y2) and the counts of a shape's mask; None for a shape without an area."""
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind in _NO_REGIONS:
        return None
    if kind == "polygon":
        outline = corners(points, where)
        return [*outline.min(axis=0).tolist(), *outline.max(axis=0).tolist()], draw([outline], size, where)
    if not isinstance(points, list) or len(points) != 2:
        raise InputError(f"{where}: its shape_type {kind!r:.40} needs two points, a polygon three or more")
    first, second = (numbers(point, 2, f"{where}: a point") for point in points)
    box = [*map(min, first, second), *map(max, first, second)]
    if kind == "rectangle":
        return box, b""
    if kind == "mask":
        return _masked(shape.get("mask"), box, size, where)
    if kind != "circle":
        raise InputError(f"{where}: the shape_type {kind!r:.40} is unknown")
    radius = math.dist(first, second)
    x, y = first
    return [x - radius, y - radius, x + radius, y + radius], draw(
        [ellipse(x, y, radius, radius)], size, where
    )


def _masked(content: Any, box: list[float], size: tuple[int, int], where: str) -> tuple[list[float], bytes]:
    """Return box and counts of a mask: a PNG image in base64 of the pixels from one corner to the other."""
    x1, y1, x2, y2 = box
    inside = x1 >= 0 and y1 >= 0 and x2 < size[1] and y2 < size[0]
    if not inside or not all(side.is_integer() for side in box) or size[0] * size[1] > _MAX_MASK_PIXELS:
        raise InputError(f"{where}: the mask's corners {box} are not pixels of the image, or it is too large")
    crop = _decoded(content, where)
    left, top = int(x1), int(y1)
    if crop.shape != (int(y2) - top + 1, int(x2) - left + 1):
        raise InputError(f"{where}: the mask has shape {crop.shape}, which does not fit its corners {box}")
    whole = np.zeros((1, *size), np.uint8)
    whole[0, top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    counts = Masks.encode(whole).counts[0] if crop.any() else b""
    return [x1, y1, x2 + 1, y2 + 1], counts


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


def _joined(one: bytes, other: bytes, size: tuple[int, int]) -> bytes:
    parts = [{"size": list(size), "counts": counts} for counts in (one, other)]
    counts: bytes = coco_mask.merge(parts)["counts"]
    return counts
