"""Label Studio's JSON export: a list of tasks, each with an image and the regions that people have drawn.

Source: "Export annotations: Label Studio JSON format", and the pages of the tags RectangleLabels,
EllipseLabels, PolygonLabels and BrushLabels at labelstud.io. Coordinates are percentages of the image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from detector.core.brush import brush_mask
from detector.core.errors import FaultHandler, InputError, faults_to
from detector.core.files import IMAGE_SUFFIXES
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
    number_of,
    points_of,
    short,
    size_of,
)

UPLOADED = re.compile(r"\A[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of a file that is uploaded."""


def objects_in(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    """Return ``value``, which is called ``name``; InputError unless it is a list of objects."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InputError(f"{where}: {name} is {short(value)}; expected a list of objects")
    return value


def is_skipped(annotation: Mapping[str, Any]) -> bool:
    """Say whether the annotator has skipped the task."""
    return bool(annotation.get("was_cancelled") or annotation.get("skipped"))


def image_reference(task: Mapping[str, Any], where: str) -> str:
    """Return the reference to a task's image: ``data.image``, or the only text that names an image file.

    Raises InputError, which begins with ``where``, for a task without one, or with several.
    """
    data = task.get("data")
    if not isinstance(data, dict):
        raise InputError(f"{where} has no 'data'; expected the task's image in data.image")
    if isinstance(data.get("image"), str) and data["image"].strip():
        return str(data["image"])
    named = [value for value in data.values() if isinstance(value, str) and _names_image(value)]
    if len(named) != 1:
        raise InputError(
            f"{where}: {len(named)} texts in 'data' name an image file; expected data.image with the image"
        )
    return named[0]


def _names_image(text: str) -> bool:
    parts = reference_parts(text)
    return bool(parts) and parts[-1].lower().endswith(IMAGE_SUFFIXES)


def reference_path(reference: str) -> str:
    """Return the decoded path in a reference to an image: a path, an address, or local-files/?d=PATH.

    ``/`` separates its parts; it may lead upwards. It is empty for what is no reference.
    """
    try:
        address = urlsplit(reference.replace("\\", "/"))
    except ValueError:
        return ""
    local = parse_qs(address.query).get("d", [""])[0] if "local-files" in address.path else ""
    named = local or unquote(address.path)  # parse_qs has decoded what it returns
    return named.replace("\\", "/")


def reference_parts(reference: str) -> tuple[str, ...]:
    """Return the parts of `reference_path`.

    Parts that would lead upwards are left out, so that the result stays below any folder.
    """
    return tuple(part for part in reference_path(reference).split("/") if part not in ("", ".", ".."))


_LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels", "brushlabels", "keypointlabels")
_SHAPES = {"rectanglelabels", "rectangle", "polygonlabels", "polygon", "ellipselabels", "ellipse"}
_BRUSHES = {"brushlabels", "brush"}
_OTHERS = {"keypoint", "vector", "bitmask"}
_ATTRIBUTES = ("choices", "rating", "number")
_GEOMETRY = ("x", "y", "width", "height", "rotation", "radiusX", "radiusY", "points", "rle", "vertices")


def read_regions(
    annotation: Mapping[str, Any],
    path: Path,
    place: str,
    *,
    labelled: bool = True,
    brushes: bool = False,
    skip_others: bool = False,
    on_fault: FaultHandler | None = None,
) -> tuple[tuple[int, int] | None, list[Shape]]:
    """Return the size (height, width) of a task's image and the regions of one of its annotations.

    Rectangles (turned ones as the box around them), polygons and ellipses are read, in pixels. Choices,
    ratings and numbers given for a single region are its attributes, by the name of the control; a result
    that draws the same again adds its labels. The size is None where nothing is drawn.

    Args:
        annotation: an annotation or a prediction of the task, which is ``place`` in the file ``path``.
        labelled: whether each region must have a label.
        brushes: whether brush strokes are read, too.
        skip_others: whether other regions, such as key points, are left out instead of refused.

    Raises:
        InputError: a faulty region, or regions of images of different sizes; the message names file, place
            and region. With ``on_fault`` a faulty region is passed to it and left out.
    """
    results = objects_in(annotation.get("result"), "result", f"{path}: {place}")
    kinds = _SHAPES | _BRUSHES if brushes else _SHAPES
    sizes: dict[tuple[int, int], str] = {}
    shapes = []
    for number, region in enumerate(_together(results, kinds if skip_others else None), start=1):
        where = f"{place}, region {number}"
        with faults_to(on_fault):
            shape, size = _region(region, kinds, labelled, path, where)
            sizes.setdefault(size, where)
            shapes.append(shape)
    if len(sizes) > 1:
        (first, other), (_, where) = list(sizes)[:2], list(sizes.values())[:2]
        raise InputError(
            f"{path}: {where}: the image is {other[1]}x{other[0]}, and {first[1]}x{first[0]} for another "
            "region; correct original_width and original_height"
        )
    return next(iter(sizes), None), shapes


class _Results(NamedTuple):
    """The results of one region: those that draw it, at least one, and others that describe it."""

    drawn: list[dict[str, Any]]
    described: list[dict[str, Any]]


def _together(results: Sequence[dict[str, Any]], kinds: set[str] | None) -> list[_Results]:
    """Return the results of each region: they have one id and, where they draw, draw the same.

    Only regions of ``kinds`` are returned, with None all.
    """
    described: dict[object, list[dict[str, Any]]] = {}
    found: dict[object, _Results] = {}
    for number, one in enumerate(results):
        identity = one.get("id") if isinstance(one.get("id"), str) else number
        about = described.setdefault(identity, [])
        kind, value = one.get("type"), mapping_of(one.get("value"))
        if not isinstance(kind, str) or not _is_drawn(kind):
            about.append(one)
        elif kinds is None or kind in kinds:
            drawn = kind.removesuffix("labels"), repr([value.get(key) for key in _GEOMETRY])
            found.setdefault((identity, drawn), _Results([], about)).drawn.append(one)
    return list(found.values())


def _is_drawn(kind: str) -> bool:
    """Say whether a result of this type draws a region, also one that cannot be read; others describe it."""
    return kind in _SHAPES | _BRUSHES | _OTHERS or (kind.endswith("labels") and kind != "labels")


def _region(
    region: _Results, kinds: set[str], labelled: bool, path: Path, place: str
) -> tuple[Shape, tuple[int, int]]:
    labels: list[Any] = []
    attributes: dict[str, Any] = {}
    for one in (*region.drawn, *region.described):
        value = mapping_of(one.get("value"))
        for kind in _LABELS:
            given = value.get(kind, ())
            if not isinstance(given, list | tuple):
                raise InputError(f"{path}: {place}: {kind} is {short(given)}; expected a list of labels")
            labels.extend(given)
        if one.get("type") in _ATTRIBUTES and isinstance(one.get("from_name"), str):
            attributes[one["from_name"]] = value.get(one["type"])
    names = labels_of(labels, labelled, f"{path}: {place}")
    if labelled and not names:
        raise InputError(f"{path}: {place} has no label; give it one, or remove it")
    place = f"{place} ({', '.join(names)})" if names else place
    where, first = f"{path}: {place}", region.drawn[0]
    size = _image_size(first, where)
    box, polygon, painter = _drawn(first, kinds, size, where)
    score = first.get("score")
    shape = Shape(
        labels=names,
        box=box,
        polygons=(polygon,) if polygon else (),
        painter=painter,
        confidence=None if score is None else number_of(score, "score", where),
        attributes=attributes,
        place=place,
    )
    return shape, size


def _image_size(result: Mapping[str, Any], where: str) -> tuple[int, int]:
    size = size_of(result, "original_height", "original_width", where)
    if size is None:
        raise InputError(f"{where} has no original_width and original_height; export the task again")
    if result.get("image_rotation", 0) not in (0, None):
        raise InputError(
            f"{where}: the image was turned in Label Studio (image_rotation), which is not read; turn the "
            "image file itself and annotate it again"
        )
    return size


_Drawing = tuple[Box, tuple[Point, ...], Painter | None]
"""The box of a region, its outline if it is a polygon, and what draws it if it is neither box nor polygon."""


def _drawn(result: Mapping[str, Any], kinds: set[str], size: tuple[int, int], where: str) -> _Drawing:
    kind, value = result["type"], mapping_of(result.get("value"))
    if kind not in kinds:
        raise InputError(f"{where}: a {kind} has no box; draw a rectangle or polygon, or remove the region")
    if kind in _BRUSHES:
        return _brush(value, size, where)
    height, width = size
    if kind.startswith("polygon"):
        points = points_of(value.get("points"), where)
        if len(points) < 3:
            raise InputError(f"{where}: a polygon of {len(points)} points; expected at least 3")
        outline = tuple((x * width / 100, y * height / 100) for x, y in points)
        return extent(outline), outline, None
    degrees = value.get("rotation")
    degrees = 0.0 if degrees is None else number_of(degrees, "rotation", where)
    sides = ("radiusX", "radiusY") if kind.startswith("ellipse") else ("width", "height")
    x, y, across, down = (number_of(value.get(key), key, where) for key in ("x", "y", *sides))
    left, top, across, down = x * width / 100, y * height / 100, across * width / 100, down * height / 100
    if kind.startswith("ellipse"):
        return _ellipse((left, top), (across, down), degrees)
    return _rectangle((left, top), (across, down), degrees)


def _ellipse(center: Point, radii: Point, degrees: float) -> _Drawing:
    (x, y), (across, down), turn = center, radii, math.radians(degrees)
    cosine, sine = math.cos(turn), math.sin(turn)
    right, below = math.hypot(across * cosine, down * sine), math.hypot(across * sine, down * cosine)
    return (x - right, y - below, x + right, y + below), (), partial(_oval, center, radii, degrees)


def _oval(center: Point, radii: Point, degrees: float, size: tuple[int, int], where: str) -> bytes:
    return draw([ellipse(*center, *radii, degrees)], size, where)


def _rectangle(corner: Point, sides: Point, degrees: float) -> _Drawing:
    """Turned clockwise around the upper left corner, as Label Studio's documentation of "rotation" says."""
    (left, top), (across, down), turn = corner, sides, math.radians(degrees)
    cosine, sine = math.cos(turn), math.sin(turn)
    corners = ((0.0, 0.0), (across, 0.0), (across, down), (0.0, down))
    if not turn:
        return extent([(left + x, top + y) for x, y in corners]), (), None
    outline = tuple((left + x * cosine - y * sine, top + x * sine + y * cosine) for x, y in corners)
    return extent(outline), outline, None


def _brush(value: Mapping[str, Any], size: tuple[int, int], where: str) -> _Drawing:
    if value.get("format") != "rle":
        raise InputError(f"{where}: a brush region must have the format 'rle'")
    counts = brush_mask(value.get("rle"), size, where)
    x1, y1, x2, y2 = Masks(size, (counts,)).boxes()[0].tolist()
    return (x1, y1, x2, y2), (), partial(_painted, counts)


def _painted(counts: bytes, size: tuple[int, int], where: str) -> bytes:
    return counts
