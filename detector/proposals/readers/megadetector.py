"""MegaDetector's batch results: ``{"images": [{"file", "detections": [{"bbox", "conf"}]}]}``.

Source: the MegaDetector output format, lila.science/megadetector-output-format. ``bbox`` is x, y, width and
height in fractions of the image; ``conf`` is the score. An image that MegaDetector could not read
(``failure``) is not in the result.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.errors import InputError
from detector.proposals.readers.json_stream import section_items
from detector.proposals.readers.raw_images import RawImage, RawImages, image_place, is_number, numbers

_WHAT = "file of MegaDetector's results"


def read_megadetector(source: Path) -> RawImages:
    """Return the images of ``source`` in its order; it is parsed twice, one image in memory at a time."""
    names = [entry["file"] for entry in _entries(source)]
    return RawImages(names, (_image(source, entry) for entry in _entries(source)))


def _entries(source: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of the images that MegaDetector could read."""
    for number, entry in enumerate(section_items(source, "images", _WHAT)):
        where = f"{source}, images[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise InputError(f"{where}: expected an object with 'file' and 'detections'")
        if "frame_rate" in entry:
            raise InputError(f"{where}, {entry['file']!r:.80}: is a video; leave it out of the file")
        if entry.get("failure") is None:
            yield entry


def _image(source: Path, entry: dict[str, Any]) -> RawImage:
    where = image_place(source, entry["file"])
    detections = entry.get("detections")
    if not isinstance(detections, list):
        raise InputError(f"{where}: 'detections' is missing or not a list")
    rows = array("d")
    for number, detection in enumerate(detections):
        place = f"{where}, detection {number}"
        if not isinstance(detection, dict) or not is_number(detection.get("conf")):
            raise InputError(f"{place}: expected an object with 'bbox' and a number 'conf'")
        rows.extend([*numbers(detection.get("bbox"), 4, f"{place}: bbox"), float(detection["conf"])])
    found = np.frombuffer(rows, np.float64).reshape(-1, 5)
    return RawImage(entry["file"], found[:, :4], found[:, 4], "xywh_normalized")
