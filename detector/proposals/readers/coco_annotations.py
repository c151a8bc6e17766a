"""COCO annotation files as regions: the boxes of all objects, with the masks of those that have one.

Source: "Data format" at cocodataset.org, object detection. A mask is a list of polygons, or a run-length
encoding with compressed or plain counts. Crowd regions are regions like all others; categories are ignored.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detector.core.errors import InputError
from detector.core.masks import Masks
from detector.core.polygons import draw
from detector.proposals.readers.json_stream import section_items
from detector.proposals.readers.raw_images import (
    RawImage,
    RawImages,
    is_number,
    number_of_pixels,
    numbers,
)

_WHAT = "COCO annotation file"


class _Image:
    """An image and its regions so far: five numbers and the compressed mask of each."""

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        self.name = name
        self.size = size
        self.rows = array("d")
        self.counts: list[bytes] = []


class Region(NamedTuple):
    """One region: x, y, width and height, the score or NaN, and the counts of its mask, perhaps ``b""``."""

    box: list[float]
    score: float
    counts: bytes


def read_coco_annotations(source: Path) -> RawImages:
    """Return the images of ``source`` in the order of its ``images``, their regions in that of the file.

    An image's name is its ``file_name``, or its id where it has none. The file is parsed entry by entry; a
    region takes 40 bytes and those of its compressed mask.
    """
    images = _read_images(source)
    for number, entry in enumerate(section_items(source, "annotations", _WHAT)):
        where = f"{source}, annotation {number}"
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(image_id, int | str) or image_id not in images:
            raise InputError(f"{where}: its image_id {image_id!r:.40} is not the id of one of the images")
        image = images[image_id]
        region = read_region(entry, image.size, f"{where}, image {image.name!r}")
        image.rows.extend([*region.box, region.score])
        image.counts.append(region.counts)
    names = [image.name for image in images.values()]
    return RawImages(names, _taken_from(images))


def read_region(entry: Mapping[str, Any], size: tuple[int, int], where: str) -> Region:
    """Return the region that ``entry`` of an image of ``size`` describes by ``bbox`` and ``segmentation``.

    One of the two may be missing. Raises InputError, which begins with ``where``, for other content.
    """
    counts = _counts(entry.get("segmentation"), size, where)
    given = entry.get("bbox")
    score = entry.get("score")
    if score is not None and not is_number(score):
        raise InputError(f"{where}: score {score!r:.40} is not a number")
    if given is not None:
        box = numbers(given, 4, f"{where}: bbox")
    elif counts:
        x1, y1, x2, y2 = Masks(size, (counts,)).boxes()[0].tolist()
        box = [x1, y1, x2 - x1, y2 - y1]
    else:
        raise InputError(f"{where}: it has neither a bbox nor a segmentation")
    return Region(box, math.nan if score is None else float(score), counts)


def _read_images(source: Path) -> dict[int | str, _Image]:
    images: dict[int | str, _Image] = {}
    for number, entry in enumerate(section_items(source, "images", _WHAT)):
        where = f"{source}, images[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            raise InputError(f"{where}: expected an object with an id, a number or a text")
        name = entry.get("file_name", str(entry["id"]))
        if not isinstance(name, str) or entry["id"] in images:
            raise InputError(
                f"{where}: its file_name is not a text, or its id {entry['id']!r:.40} is there twice"
            )
        size = number_of_pixels(entry.get("height"), entry.get("width"), where)
        images[entry["id"]] = _Image(name, size)
    return images


def _counts(segmentation: Any, size: tuple[int, int], where: str) -> bytes:
    if not segmentation:  # missing, null, or an empty list
        return b""
    if not isinstance(segmentation, list):
        return Masks.from_rles([segmentation], size, where).counts[0]
    polygons = []
    for part in segmentation:
        if not isinstance(part, list) or len(part) < 6 or len(part) % 2 or not all(map(is_number, part)):
            raise InputError(f"{where}: segmentation must have polygons x1, y1, x2, y2, x3, y3, ...")
        polygons.append(np.array(part, np.float64).reshape(-1, 2))
    return draw(polygons, size, where)


def _taken_from(images: dict[int | str, _Image]) -> Iterator[RawImage]:
    for key in list(images):
        image = images.pop(key)
        rows = np.frombuffer(image.rows, np.float64).reshape(-1, 5)
        scores = rows[:, 4] if len(rows) and not np.isnan(rows[:, 4]).all() else None
        masks = Masks(image.size, tuple(image.counts)) if any(image.counts) else None
        yield RawImage(image.name, rows[:, :4], scores, "xywh", image.size, masks)
