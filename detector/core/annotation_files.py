"""What is drawn in the annotation files of YOLO, LabelMe and Label Studio, in one form: `Shape`.

Sources: the description of detection and segmentation labels at docs.ultralytics.com ("Detection datasets",
"Segmentation datasets", "Pose datasets"), the files that LabelMe 5 and X-AnyLabeling write, and "Export
annotations: Label Studio JSON format" at labelstud.io. All three count coordinates from the outer corner of
the first pixel, so that a box is half-open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from detector.core.errors import FaultHandler, InputError, faults_to
from detector.core.files import ASCII_SPACE, IMAGE_SUFFIXES, read_json, read_short_text

Point = tuple[float, float]

MAX_PIXELS = 2.0**24
"""Pixels along a side; up to here float32 holds every whole pixel."""
MAX_FRACTION = 2.0
"""Numbers in YOLO's files are fractions of a side; one above this is a number of pixels by mistake."""

_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One object as it is drawn.

    ``labels`` are its names, at least one; YOLO's is the number of the class. ``box`` is x1, y1, x2, y2,
    half-open, in pixels of the image, in YOLO's files as fractions of its sides. ``polygons`` are its
    outlines in the same unit, none where only a box is drawn. ``attributes`` are further properties as the
    file has them, and ``place`` says where in the file it is.
    """

    labels: tuple[str, ...]
    box: tuple[float, float, float, float]
    polygons: tuple[tuple[Point, ...], ...] = ()
    difficult: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)
    place: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelMeFile:
    """One file of LabelMe. ``image`` is imagePath, and ``size`` (height, width); None where not given."""

    image: str | None
    size: tuple[int, int] | None
    shapes: list[Shape]


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


def read_yolo(path: Path, *, keypoints: bool = False, on_fault: FaultHandler | None = None) -> list[Shape]:
    """Read one file of YOLO labels.

    A line is ``class x y width height`` with the centre of the box, or ``class x1 y1 x2 y2 x3 y3 ...`` with
    the corners of a polygon. With ``keypoints`` what follows the box are keypoints, which are left out.

    Raises:
        InputError: a file that cannot be read, or a line of another form; the message names file and line.
            With ``on_fault`` a faulty line is passed to it and left out.
    """
    shapes = []
    for number, line in enumerate(read_short_text(path, "the labels").split("\n"), start=1):
        words = line.strip(ASCII_SPACE).split()
        with faults_to(on_fault):
            if words:
                shapes.append(_yolo_shape(words, keypoints, path, f"line {number}"))
    return shapes


def _yolo_shape(words: Sequence[str], keypoints: bool, path: Path, place: str) -> Shape:
    where = f"{path}: {place}"
    numbers = [_fraction(word, where) for word in words[1:]]
    label = _number_in(words[0])
    if not 0 <= label <= 2**31 or label != int(label):
        raise InputError(f"{where}: {words[0][:40]!r} is no class; expected a whole number from 0")
    labels = (str(int(label)),)
    if len(numbers) == 4 or (keypoints and len(numbers) > 4):
        x, y, width, height = numbers[:4]
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Shape(labels=labels, box=box, place=place)
    if len(numbers) < 6 or len(numbers) % 2:
        raise InputError(
            f"{where}: {len(words)} numbers; expected 5 (class, centre, width, height) or a class and the "
            "corners of a polygon, two numbers for each of at least three"
        )
    corners = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return Shape(labels=labels, box=extent(corners), polygons=(corners,), place=place)


def _fraction(word: str, where: str) -> float:
    value = _number_in(word)
    if not abs(value) <= MAX_FRACTION:
        raise InputError(
            f"{where}: {word[:40]!r} is no fraction of the image's width or height; YOLO's coordinates are "
            "divided by them and lie between 0 and 1"
        )
    return value


def _number_in(word: str) -> float:
    """Return ``word`` as a number, NaN where it is none."""
    try:
        return math.nan if "_" in word else float(word)  # only Python allows 1_000
    except ValueError:
        return math.nan


def extent(points: Sequence[Point]) -> tuple[float, float, float, float]:
    """Return the smallest box around ``points``, at least one."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def read_labelme(path: Path, on_fault: FaultHandler | None = None) -> LabelMeFile:
    """Read one file of LabelMe, or of X-AnyLabeling, which writes the same with more keys.

    Rectangles, polygons, circles, lines and masks are read, each as the box around it. Shapes with the same
    label and the same ``group_id`` are parts of one object, as in LabelMe's own converters. The image inside
    the file (``imageData``) is not read.

    Raises:
        InputError: a file that cannot be read or is not LabelMe's, or a faulty shape; the message names the
            file and the shape's place from 0. With ``on_fault`` a faulty shape is passed to it and left out.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise InputError(f"{path}: not a file of LabelMe: expected an object with 'shapes', a list")
    image = content.get("imagePath")
    if image is not None and not isinstance(image, str):
        raise InputError(f"{path}: imagePath is {_short(image)}; expected the path of the image")
    size = None
    with faults_to(on_fault):
        size = _size(content, "imageHeight", "imageWidth", str(path))
    shapes: list[Shape] = []
    groups: dict[tuple[str, str], int] = {}
    for number, entry in enumerate(content["shapes"]):
        with faults_to(on_fault):
            shape = _labelme_shape(entry, path, f"shapes[{number}]")
            _add_part(shapes, groups, shape, entry.get("group_id"))
    return LabelMeFile(image=image or None, size=size, shapes=shapes)


def _labelme_shape(entry: Any, path: Path, place: str) -> Shape:
    where = f"{path}: {place}"
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {_short(entry)}; expected an object with 'label' and 'points'")
    label = checked_label(entry.get("label"), where)
    place = f"{place} ({label})"
    points = _points(entry.get("points"), f"{path}: {place}")
    box, outline = _drawn(entry.get("shape_type") or "polygon", points, f"{path}: {place}")
    difficult = entry.get("difficult", False)
    if difficult not in (None, False, True, 0, 1):
        raise InputError(f"{path}: {place}: difficult is {_short(difficult)}; expected true or false")
    return Shape(
        labels=(label,),
        box=box,
        polygons=(outline,) if outline else (),
        difficult=bool(difficult),
        attributes={**_mapping(entry.get("flags")), **_mapping(entry.get("attributes"))},
        place=place,
    )


_FEWEST = {"rectangle": 2, "circle": 2, "line": 2, "linestrip": 2, "mask": 2, "polygon": 3, "rotation": 3}
_FEWEST["oriented_rectangle"] = 3


def _drawn(
    kind: Any, points: Sequence[Point], where: str
) -> tuple[tuple[float, float, float, float], tuple[Point, ...]]:
    """Return the box of a shape of LabelMe and its outline, which only polygons have."""
    if not isinstance(kind, str) or kind not in _FEWEST:
        raise InputError(
            f"{where}: a {_short(kind)} has no box; draw one of {', '.join(_FEWEST)}, or remove the shape"
        )
    if len(points) < _FEWEST[kind]:
        raise InputError(f"{where}: a {kind} of {len(points)} points; expected at least {_FEWEST[kind]}")
    x1, y1, x2, y2 = box = extent(points)
    if kind == "circle":  # its centre and a point on it
        (x, y), edge = points[:2]
        radius = math.dist((x, y), edge)
        box = (x - radius, y - radius, x + radius, y + radius)
    elif kind == "mask":  # the first and the last pixel of the mask
        box = (x1, y1, x2 + 1, y2 + 1)
    return box, tuple(points) if kind in ("polygon", "rotation", "oriented_rectangle") else ()


def _add_part(shapes: list[Shape], groups: dict[tuple[str, str], int], shape: Shape, group: Any) -> None:
    """Add ``shape``, or join it with the object of the same label and ``group``, which null does not name."""
    if group is None:
        shapes.append(shape)
        return
    at = groups.setdefault((shape.labels[0], repr(group)), len(shapes))
    if at == len(shapes):
        shapes.append(shape)
        return
    first = shapes[at]
    shapes[at] = Shape(
        labels=first.labels,
        box=extent([first.box[:2], first.box[2:], shape.box[:2], shape.box[2:]]),
        polygons=first.polygons + shape.polygons if first.polygons and shape.polygons else (),
        difficult=first.difficult or shape.difficult,
        attributes={**first.attributes, **shape.attributes},
        place=first.place,
    )


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
        raise InputError(f"{where}: annotations is {_short(found)}; expected a list of objects")
    image = _image_of(task, where)
    kept = [one for one in found if not (one.get("was_cancelled") or one.get("skipped"))]
    shapes: list[Shape] = []
    size = None
    if kept:
        results = _chosen(kept).get("result")
        if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
            raise InputError(f"{where}: result is {_short(results)}; expected a list of regions")
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


def reference_parts(reference: str) -> tuple[str, ...]:
    """Return the parts of the path in a reference to an image: a path, an address, or local-files/?d=PATH.

    Parts that would lead upwards are left out, so that the result stays below any folder.
    """
    try:
        address = urlsplit(reference.replace("\\", "/"))
    except ValueError:
        return ()
    local = parse_qs(address.query).get("d", [""])[0] if "local-files" in address.path else ""
    named = local or unquote(address.path)
    return tuple(part for part in named.replace("\\", "/").split("/") if part not in ("", ".", ".."))


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
        value = _mapping(one.get("value"))
        for kind in _LABELS:
            given = value.get(kind, ())
            if not isinstance(given, list | tuple):
                raise InputError(f"{path}: {place}: {kind} is {_short(given)}; expected a list of labels")
            labels |= dict.fromkeys(checked_label(label, f"{path}: {place}") for label in given)
        if one.get("type") in _ATTRIBUTES and isinstance(one.get("from_name"), str):
            attributes[one["from_name"]] = value.get(one["type"])
    if not labels:
        raise InputError(f"{path}: {place} has no label; give it one, or remove it")
    place = f"{place} ({', '.join(labels)})"
    where = f"{path}: {place}"
    size = _size(drawn[0], "original_height", "original_width", where)
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
    kind, value = region["type"], _mapping(region.get("value"))
    height, width = size
    if kind not in _READ:
        raise InputError(f"{where}: a {kind} has no box; draw a rectangle or polygon, or remove the region")
    if kind.startswith("polygon"):
        points = _points(value.get("points"), where)
        if len(points) < 3:
            raise InputError(f"{where}: a polygon of {len(points)} points; expected at least 3")
        return [(x * width / 100, y * height / 100) for x, y in points], True
    turn = math.radians(_number(value.get("rotation", 0) or 0, "rotation", where))
    cosine, sine = math.cos(turn), math.sin(turn)
    x, y = (_number(value.get(key), key, where) for key in ("x", "y"))
    left, top = x * width / 100, y * height / 100
    if kind.startswith("ellipse"):  # x, y is its centre
        across, down = (
            _number(value.get(key), key, where) * side / 100
            for key, side in (("radiusX", width), ("radiusY", height))
        )
        right, below = math.hypot(across * cosine, down * sine), math.hypot(across * sine, down * cosine)
        return [(left - right, top - below), (left + right, top + below)], False
    across, down = (
        _number(value.get(key), key, where) * side / 100
        for key, side in (("width", width), ("height", height))
    )
    corners = [(0.0, 0.0), (across, 0.0), (across, down), (0.0, down)]
    if not turn:
        return [(left + x, top + y) for x, y in corners], False
    # Turned clockwise around the upper left corner, as Label Studio's documentation of "rotation" says.
    return [(left + x * cosine - y * sine, top + x * sine + y * cosine) for x, y in corners], True


def _points(points: Any, where: str) -> list[Point]:
    if not isinstance(points, list) or not points:
        raise InputError(f"{where}: points is {_short(points)}; expected a list of [x, y]")
    for point in points:
        if not isinstance(point, list) or len(point) != 2:
            raise InputError(f"{where}: a point is {_short(point)}; expected [x, y]")
    return [(_number(x, "x", where), _number(y, "y", where)) for x, y in points]


def _number(value: Any, name: str, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MAX_PIXELS:
        raise InputError(f"{where}: {name} is {_short(value)}; expected a number")
    return float(value)


def _size(entry: Mapping[str, Any], height: str, width: str, where: str) -> tuple[int, int] | None:
    """Return the (height, width) under these keys, None where one is missing, null or zero."""
    sides = []
    for key in (height, width):
        value = _number(entry.get(key) or 0, key, where)
        if value < 0 or value != int(value):
            raise InputError(f"{where}: {key} is {_short(entry[key])}; expected a whole number of pixels")
        sides.append(int(value))
    return (sides[0], sides[1]) if all(sides) else None


def checked_label(label: Any, where: str) -> str:
    """Return the name of a class without blanks around it; InputError, which begins with ``where``."""
    if not isinstance(label, str) or not label.strip():
        raise InputError(f"{where}: the label is {_short(label)}; expected the name of a class")
    if label.encode("utf-8", errors="replace").decode() != label:
        raise InputError(f"{where}: the label is {_short(label)}, with half a character in it; correct it")
    return label.strip()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _NOTHING


def _short(value: Any) -> str:
    return repr(value)[:60]
