"""Label Studio's JSON export as regions: rectangles, ellipses, polygons and brush strokes.

`detector.core.label_studio_file` describes it. The regions of all annotations of a task are read, except
those of annotators who skipped it; those of its predictions, with their scores, only if it has no annotation.
A label is not needed. Other results, such as choices and key points, are no regions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.errors import InputError
from detector.core.label_studio_file import (
    UPLOADED,
    image_reference,
    is_skipped,
    objects_in,
    read_regions,
    reference_path,
)
from detector.core.masks import Masks
from detector.core.shapes import Shape, number_of
from detector.proposals.readers.json_stream import list_items
from detector.proposals.readers.raw_images import RawImage, RawImages, number_of_pixels

_WHAT = "JSON export of Label Studio"


def read_label_studio(source: Path) -> RawImages:
    """Return the images of the tasks in ``source``, which is parsed twice, one task in memory at a time."""
    names = [_name(task, where) for task, where in _tasks(source)]
    return RawImages(names, (_image(source, task, where) for task, where in _tasks(source)))


def _tasks(source: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for number, task in enumerate(list_items(source, _WHAT)):
        where = f"{source}: tasks[{number}]"
        if not isinstance(task, dict):
            raise InputError(f"{where}: expected an object with 'data' and 'annotations'")
        yield task, where


def _name(task: dict[str, Any], where: str) -> str:
    """Return the name of the image: the end of its address, without what Label Studio puts before it."""
    address = image_reference(task, where)
    path = reference_path(address)
    if not path:
        raise InputError(f"{where}: {address!r:.80} names no image; expected a path or an address")
    folder, slash, name = path.rpartition("/")
    if "/data/upload/" in address or task.get("file_upload") == name:
        return UPLOADED.sub("", name)
    return folder + slash + name


def _image(source: Path, task: dict[str, Any], where: str) -> RawImage:
    key = _name(task, where)
    place = f"image {key!r}"
    size, found = _regions(source, task, place)
    if size is None:
        return RawImage(key, np.zeros((0, 4)), None, "xywh_percent")
    pixels = np.array((size[1], size[0]) * 2) / 100
    boxes = np.array([shape.box for shape, _ in found], np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    scores = np.array([score for _, score in found])
    counts = tuple(shape.mask(size, f"{source}: {shape.place}") for shape, _ in found)
    masks = Masks(size, counts) if any(counts) else None
    return RawImage(
        key, boxes / pixels, None if np.isnan(scores).all() else scores, "xywh_percent", size, masks
    )


def _regions(
    source: Path, task: dict[str, Any], place: str
) -> tuple[tuple[int, int] | None, list[tuple[Shape, float]]]:
    """Return the (height, width) of a task's image, None without regions, and each region with its score."""
    size: tuple[int, int] | None = None
    found: list[tuple[Shape, float]] = []
    for one in _read(task, f"{source}: {place}"):
        own, shapes = read_regions(one, source, place, labelled=False, brushes=True, skip_others=True)
        if own is None:
            continue
        if size not in (None, own):
            raise InputError(
                f"{source}: {place}: a region is of an image of {own[1]} x {own[0]} pixels, others are not"
            )
        size = number_of_pixels(*own, f"{source}: {place}")
        score = one.get("score")
        common = math.nan if score is None else number_of(score, "score", f"{source}: {place}")
        found += [(shape, common if shape.confidence is None else shape.confidence) for shape in shapes]
    return size, found


def _read(task: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the annotations of a task, or its predictions if it has none."""
    annotations = task.get("annotations", task.get("completions"))
    kept = [one for one in _objects(annotations, "annotations", where) if not is_skipped(one)]
    return kept or _objects(task.get("predictions"), "predictions", where)


def _objects(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    return [] if value is None else objects_in(value, name, where)
