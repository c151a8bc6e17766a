"""Label Studio's JSON export, a list of tasks with the regions that people have drawn.

Source: "Export annotations: Label Studio JSON format" at labelstud.io. Coordinates are percentages of the
image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from detector.core.errors import FaultHandler, InputError, faults_to
from detector.core.files import IMAGE_SUFFIXES, read_json
from detector.core.shapes import (
    Point,
    Shape,
    extent,
    label_of,
    mapping_of,
    number_of,
    points_of,
    short,
    size_of,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelStudioTask:
    """One task of a Label Studio export.

    ``image`` is the reference to the image as written. ``size`` is (height, width), None where nothing is
    drawn. ``annotations`` is how many people's annotations there are, without skipped ones; the ``shapes``
    are those of one of them.
    """

    image: str
    size: tuple[int, int] | None
    shapes: list[Shape]
    annotations: int
    place: str


def read_label_studio(path: Path, on_fault: FaultHandler | None = None) -> list[LabelStudioTask]:
    """Read a Label Studio export in the format "JSON", a list of tasks.

    Of several annotations of a task one is read: one that is marked as the ground truth, otherwise the one
    that was made last; skipped ones never are. Rectangles (turned ones as the box around them), polygons and
    ellipses are read; choices, ratings and numbers given for a single region are its attributes, by the name
    of the control.

    Raises:
        InputError: a file that cannot be read or another format, a task without an image, or a faulty
            region; the message names file, task and region. With ``on_fault`` a faulty region or task is
            passed to it and left out.
    """
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
        raise InputError(
            f"{path}: expected a Label Studio export in the format JSON, a list of tasks; not JSON-MIN"
        )
    tasks = []
    for number, task in enumerate(content):
        with faults_to(on_fault):
            tasks.append(_task(task, path, f"tasks[{number}]", on_fault))
    return tasks


def _task(task: dict[str, Any], path: Path, place: str, on_fault: FaultHandler | None) -> LabelStudioTask:
    where = f"{path}: {place}"
    found = task.get("annotations", task.get("completions"))
    if found is None and "annotations" not in task:
        raise InputError(
            f"{where} has no 'annotations'; export the project in the format JSON, which is not JSON-MIN"
        )
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InputError(f"{where}: annotations is {short(found)}; expected a list of objects")
    image = _image_of(task, where)
    kept = [one for one in found if not (one.get("was_cancelled") or one.get("skipped"))]
    shapes: list[Shape] = []
    size = None
    if kept:
        results = _chosen(kept).get("result")
        if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
            raise InputError(f"{where}: result is {short(results)}; expected a list of regions")
        size, shapes = _regions(results, path, place, on_fault)
    return LabelStudioTask(image=image, size=size, shapes=shapes, annotations=len(kept), place=place)


def _chosen(annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def rank(number: int) -> tuple[bool, str, int]:
        one = annotations[number]
        return bool(one.get("ground_truth")), str(one.get("created_at", "")), number

    return annotations[max(range(len(annotations)), key=rank)]


def _image_of(task: Mapping[str, Any], where: str) -> str:
    """Return the reference to a task's image: ``data.image``, or the only text that names an image file."""
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
_READ = {"rectanglelabels", "rectangle", "polygonlabels", "polygon", "ellipselabels", "ellipse"}
_WITHOUT_BOX = {"brush", "keypoint", "vector", "bitmask"}
_ATTRIBUTES = ("choices", "rating", "number")


def _regions(
    results: Sequence[dict[str, Any]], path: Path, place: str, on_fault: FaultHandler | None
) -> tuple[tuple[int, int] | None, list[Shape]]:
    """Return the size (height, width) of a task's image and its regions, one for each region's id."""
    parts: dict[object, list[dict[str, Any]]] = {}
    for number, one in enumerate(results):  # label and attributes may be results of their own with its id
        identity = one.get("id")
        parts.setdefault(identity if isinstance(identity, str) else number, []).append(one)
    sizes: dict[tuple[int, int], str] = {}
    shapes = []
    for number, own in enumerate(parts.values()):
        where = f"{place}, region {number + 1}"
        with faults_to(on_fault):
            drawn = [one for one in own if _is_drawn(one.get("type"))]
            if drawn:
                shape, size = _region(drawn, own, path, where)
                sizes.setdefault(size, where)
                shapes.append(shape)
    if len(sizes) > 1:
        (first, other), (_, where) = list(sizes)[:2], list(sizes.values())[:2]
        raise InputError(
            f"{path}: {where}: the image is {other[1]}x{other[0]}, and {first[1]}x{first[0]} for another "
            "region; correct original_width and original_height"
        )
    return next(iter(sizes), None), shapes


def _region(
    drawn: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]], path: Path, place: str
) -> tuple[Shape, tuple[int, int]]:
    labels: dict[str, None] = {}
    attributes: dict[str, Any] = {}
    for one in own:
        value = mapping_of(one.get("value"))
        for kind in _LABELS:
            given = value.get(kind, ())
            if not isinstance(given, list | tuple):
                raise InputError(f"{path}: {place}: {kind} is {short(given)}; expected a list of labels")
            labels |= dict.fromkeys(label_of(label, f"{path}: {place}") for label in given)
        if one.get("type") in _ATTRIBUTES and isinstance(one.get("from_name"), str):
            attributes[one["from_name"]] = value.get(one["type"])
    if not labels:
        raise InputError(f"{path}: {place} has no label; give it one, or remove it")
    place = f"{place} ({', '.join(labels)})"
    where = f"{path}: {place}"
    size = size_of(drawn[0], "original_height", "original_width", where)
    if size is None:
        raise InputError(f"{where} has no original_width and original_height; export the task again")
    if drawn[0].get("image_rotation", 0) not in (0, None):
        raise InputError(
            f"{where}: the image was turned in Label Studio (image_rotation), which is not read; turn the "
            "image file itself and annotate it again"
        )
    outline, is_polygon = _outline(drawn[0], size, where)
    shape = Shape(
        labels=tuple(labels),
        box=extent(outline),
        polygons=(tuple(outline),) if is_polygon else (),
        attributes=attributes,
        place=place,
    )
    return shape, size


def _is_drawn(kind: Any) -> bool:
    """Say whether a result of this type draws a region, also one that cannot be read; others describe it."""
    if not isinstance(kind, str):
        return False
    return kind in _READ | _WITHOUT_BOX or (kind.endswith("labels") and kind != "labels")


def _outline(region: Mapping[str, Any], size: tuple[int, int], where: str) -> tuple[list[Point], bool]:
    """Return points in pixels whose box is the region's, and whether they are its outline."""
    kind, value = region["type"], mapping_of(region.get("value"))
    height, width = size
    if kind not in _READ:
        raise InputError(f"{where}: a {kind} has no box; draw a rectangle or polygon, or remove the region")
    if kind.startswith("polygon"):
        points = points_of(value.get("points"), where)
        if len(points) < 3:
            raise InputError(f"{where}: a polygon of {len(points)} points; expected at least 3")
        return [(x * width / 100, y * height / 100) for x, y in points], True
    turn = math.radians(number_of(value.get("rotation", 0) or 0, "rotation", where))
    cosine, sine = math.cos(turn), math.sin(turn)
    x, y = (number_of(value.get(key), key, where) for key in ("x", "y"))
    left, top = x * width / 100, y * height / 100
    if kind.startswith("ellipse"):  # x, y is its centre
        across, down = (
            number_of(value.get(key), key, where) * side / 100
            for key, side in (("radiusX", width), ("radiusY", height))
        )
        right, below = math.hypot(across * cosine, down * sine), math.hypot(across * sine, down * cosine)
        return [(left - right, top - below), (left + right, top + below)], False
    across, down = (
        number_of(value.get(key), key, where) * side / 100
        for key, side in (("width", width), ("height", height))
    )
    corners = [(0.0, 0.0), (across, 0.0), (across, down), (0.0, down)]
    if not turn:
        return [(left + x, top + y) for x, y in corners], False
    # Turned clockwise around the upper left corner, as Label Studio's documentation of "rotation" says.
    return [(left + x * cosine - y * sine, top + x * sine + y * cosine) for x, y in corners], True
