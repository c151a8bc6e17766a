"""Label Studio's JSON export: rectangles, ellipses, polygons and brush strokes as regions.

Source: the pages of the tags RectangleLabels, EllipseLabels, PolygonLabels and BrushLabels at labelstud.io.
Coordinates are percentages of the image. The regions of all annotations of a task are read, except cancelled
ones; those of its predictions, with their scores, only if it has no annotation. Other results, such as
choices and key points, are no regions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.brush import brush_mask
from detector.core.errors import InputError
from detector.core.files import IMAGE_SUFFIXES
from detector.core.label_studio_file import reference_path
from detector.core.masks import Masks
from detector.core.polygons import Polygon, corners, draw, ellipse, turned
from detector.proposals.readers.json_stream import list_items
from detector.proposals.readers.raw_images import (
    RawImage,
    RawImages,
    image_place,
    is_number,
    number_of_pixels,
    numbers,
)

_WHAT = "JSON export of Label Studio"
_UPLOAD = re.compile(r"\A[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file
_RECTANGLES, _ELLIPSES = ("rectanglelabels", "rectangle"), ("ellipselabels", "ellipse")
_POLYGONS, _BRUSHES = ("polygonlabels", "polygon"), ("brushlabels", "brush")
_KINDS = (*_RECTANGLES, *_ELLIPSES, *_POLYGONS, *_BRUSHES)


def read_label_studio(source: Path) -> RawImages:
    """Return the images of the tasks in ``source``, which is parsed twice, one task in memory at a time."""
    names = [_name(task, where) for task, where in _tasks(source)]
    return RawImages(names, (_image(source, task, where) for task, where in _tasks(source)))


def _tasks(source: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for number, task in enumerate(list_items(source, _WHAT)):
        where = f"{source}, task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise InputError(f"{where}: expected an object with 'data' and 'annotations'")
        yield task, where


def _name(task: dict[str, Any], where: str) -> str:
    """Return the name of the image: the end of its address, without what Label Studio puts before it."""
    texts = {key: value for key, value in task["data"].items() if isinstance(value, str)}
    images = [text for text in texts.values() if reference_path(text).lower().endswith(IMAGE_SUFFIXES)]
    address = texts.get("image") or (images[0] if images else "")
    path = reference_path(address)
    if not path:
        raise InputError(f"{where}: its 'data' names no image")
    folder, slash, name = path.rpartition("/")
    if "/data/upload/" in address or task.get("file_upload") == name:
        return _UPLOAD.sub("", name)
    return folder + slash + name


def _image(source: Path, task: dict[str, Any], where: str) -> RawImage:
    key = _name(task, where)
    where = image_place(source, key)
    size: tuple[int, int] | None = None
    boxes: list[list[float]] = []
    counts: list[bytes] = []
    scores: list[float] = []
    for number, (result, score) in enumerate(_results(task, where)):
        place = f"{where}, region {number}"
        own = number_of_pixels(result.get("original_height"), result.get("original_width"), place)
        if size not in (None, own):
            raise InputError(f"{place}: it is of an image of {own[1]} x {own[0]} pixels, others are not")
        size = own
        if result.get("image_rotation") not in (None, 0):
            raise InputError(f"{place}: the image was rotated in Label Studio, which is not read")
        box, mask = _region(result["type"], result["value"], size, place)
        boxes.append(box)
        counts.append(mask)
        scores.append(score)
    masks = Masks(size, tuple(counts)) if size and any(counts) else None
    rows = np.array(boxes, np.float64).reshape(-1, 4)
    unscored = not scores or all(map(math.isnan, scores))
    return RawImage(key, rows, None if unscored else np.array(scores), "xywh_percent", size, masks)


def _results(task: dict[str, Any], where: str) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield each result that is a region, and its score or NaN."""
    annotations = _objects(task.get("annotations", task.get("completions")), f"{where}: annotations")
    chosen = [one for one in annotations if not one.get("was_cancelled")]
    for one in chosen or _objects(task.get("predictions"), f"{where}: predictions"):
        for result in _objects(one.get("result"), f"{where}: result"):
            if result.get("type") not in _KINDS:
                continue
            if not isinstance(result.get("value"), dict):
                raise InputError(f"{where}: a region without a value")
            score = result.get("score", one.get("score"))
            if score is not None and not is_number(score):
                raise InputError(f"{where}: a region's score {score!r:.40} is not a number")
            yield result, math.nan if score is None else float(score)


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InputError(f"{where} must be a list of objects")
    return value


def _region(kind: str, value: dict[str, Any], size: tuple[int, int], where: str) -> tuple[list[float], bytes]:
    """Return the box of a region, x, y, width and height in percent, and the counts of its mask."""
    pixels = np.array(size[::-1]) / 100
    degrees = value.get("rotation") or 0.0
    if not is_number(degrees) or not math.isfinite(degrees):
        raise InputError(f"{where}: its rotation {degrees!r:.40} is not a number")
    if kind in _BRUSHES:
        if value.get("format") != "rle":
            raise InputError(f"{where}: a brush region must have the format 'rle'")
        counts = brush_mask(value.get("rle"), size, where)
        x1, y1, x2, y2 = Masks(size, (counts,)).boxes()[0].tolist() if counts else (0.0, 0.0, 0.0, 0.0)
        sides = np.array([x1, y1, x2 - x1, y2 - y1]) / np.tile(pixels, 2)
        return sides.tolist(), counts
    if kind in _POLYGONS:
        outline = corners(value.get("points"), where) * pixels
        return _extent(outline / pixels), draw([outline], size, where)
    if kind in _ELLIPSES:
        names = ("x", "y", "radiusX", "radiusY")
        x, y, width, height = numbers([value.get(name) for name in names], 4, f"{where}: {', '.join(names)}")
        outline = ellipse(x * pixels[0], y * pixels[1], width * pixels[0], height * pixels[1], degrees)
        return _extent(outline / pixels), draw([outline], size, where)
    names = ("x", "y", "width", "height")
    box = numbers([value.get(name) for name in names], 4, f"{where}: {', '.join(names)}")
    if degrees == 0:
        return box, b""
    width, height = box[2] * pixels[0], box[3] * pixels[1]  # turned around the upper left corner
    outline = turned(np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]]), degrees)
    outline = outline + np.array(box[:2]) * pixels
    return _extent(outline / pixels), draw([outline], size, where)


def _extent(outline: Polygon) -> list[float]:
    """Return x, y, width and height of the box around ``outline``."""
    least, most = outline.min(axis=0), outline.max(axis=0)
    return [*least.tolist(), *(most - least).tolist()]
