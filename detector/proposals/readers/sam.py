"""The automatic masks of Segment Anything: the files of SA-1B, and those that its scripts/amg.py writes.

SA-1B has one JSON file per image, ``{"image": {"file_name", "height", "width"}, "annotations": [...]}``.
``SamAutomaticMaskGenerator`` gives the list alone; scripts/amg.py writes it to NAME.json for the image NAME.
Each mask is a run-length encoding under ``segmentation``. ``bbox`` is one pixel narrower and lower than the
mask, since SAM subtracts the first pixel from the last; the box of the mask is used. ``predicted_iou`` is the
score.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.errors import InputError
from detector.core.masks import Masks
from detector.proposals.readers.coco_annotations import Region, read_region
from detector.proposals.readers.json_stream import JsonText, json_text, list_items
from detector.proposals.readers.raw_images import (
    RawImage,
    RawImages,
    files_or_one,
    image_place,
    number_of_pixels,
)

_WHAT = "file of SAM's masks"


def read_sam(source: Path) -> RawImages:
    """Return the images of a folder of JSON files, or of one: the masks of an image, or a list of images.

    The name of an image is its ``file_name``, or the name of the file. One image is in memory at a time.
    """
    files = files_or_one(source, ".json")
    names = [name for key, path in files for name in _names(path, key)]
    return RawImages(names, (image for key, path in files for image in _images(path, key)))


def _names(path: Path, key: str) -> Iterator[str]:
    """Yield the names of the images of one file without reading their masks."""
    with json_text(path, _WHAT) as text:
        if text.next_character() != "[":
            yield _name_in(text) or key
            return
        listed = 0
        for _ in text.items():
            listed += 1
            found = _name_in(text)
            if found is None:  # a mask, and all others are of the same image
                yield key
                return
            yield found
        if not listed:
            yield key


def _name_in(text: JsonText) -> str | None:
    """Return the ``file_name`` of the object that follows in ``text``; None where it has no ``image``."""
    name = None
    for member in text.members():
        if member != "image":
            text.skip()
            continue
        image = text.value()
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            name = image["file_name"]
    return name


def _images(path: Path, key: str) -> Iterator[RawImage]:
    with json_text(path, _WHAT) as text:
        listed = text.next_character() == "["
        content = None if listed else text.value()
    if not listed:
        yield _image(path, key, content)
        return
    regions: list[tuple[Region, tuple[int, int]]] = []
    number = -1
    for number, entry in enumerate(list_items(path, _WHAT)):
        if isinstance(entry, dict) and "image" in entry:
            yield _image(path, f"{key}_{number}", entry)
        else:
            regions.append(_region(entry, None, f"{image_place(path, key)}, mask {number}"))
    if regions or number < 0:
        yield _gathered(key, regions, path)


def _image(path: Path, key: str, content: Any) -> RawImage:
    """Return the image that an object of SA-1B describes."""
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise InputError(f"{path}: expected the masks of SAM, a list or an object with 'annotations'")
    about = content.get("image")
    if not isinstance(about, dict):
        raise InputError(f"{path}: 'image' must be an object with height and width")
    name = about.get("file_name")
    key = name if isinstance(name, str) else key
    where = image_place(path, key)
    size = number_of_pixels(about.get("height"), about.get("width"), where)
    entries = enumerate(content["annotations"])
    return _gathered(
        key, [_region(entry, size, f"{where}, mask {number}") for number, entry in entries], path, size
    )


def _region(entry: Any, size: tuple[int, int] | None, where: str) -> tuple[Region, tuple[int, int]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("segmentation"), dict):
        raise InputError(f"{where}: expected an object with a run-length encoding as 'segmentation'")
    if size is None:
        sides = entry["segmentation"].get("size")
        if not isinstance(sides, list) or len(sides) != 2:
            raise InputError(f"{where}: its size must be [height, width]")
        size = number_of_pixels(sides[0], sides[1], where)
    scored = {**entry, "score": entry.get("predicted_iou", entry.get("score"))}
    return read_region(scored, size, where), size


def _gathered(
    key: str,
    regions: list[tuple[Region, tuple[int, int]]],
    path: Path,
    size: tuple[int, int] | None = None,
) -> RawImage:
    sizes = {found for _, found in regions} | ({size} if size else set())
    if len(sizes) > 1:
        first, other = sorted(sizes)[:2]
        raise InputError(
            f"{image_place(path, key)}: its masks are of images of {first[1]} x {first[0]} and of {other[1]} "
            f"x {other[0]} pixels"
        )
    boxes = np.array([region.box for region, _ in regions], np.float64).reshape(-1, 4)
    scores = np.array([region.score for region, _ in regions], np.float64)
    known = sizes.pop() if sizes else None
    counts = tuple(region.counts for region, _ in regions)
    masks = Masks(known, counts) if known and any(counts) else None
    unscored = not len(scores) or bool(np.isnan(scores).all())
    return RawImage(key, boxes, None if unscored else scores, "xywh", known, masks)
