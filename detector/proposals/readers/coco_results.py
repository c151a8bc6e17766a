"""COCO's results format: a JSON list of {"image_id", "bbox": [x, y, width, height], "score"}."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.errors import InputError
from detector.proposals.readers.json_stream import json_text
from detector.proposals.readers.raw_images import RawImage, RawImages


def read_coco_results(source: Path) -> RawImages:
    """Return the images of ``source`` in the order in which they first occur, with their boxes in order.

    The file is parsed result by result into arrays of 40 bytes per box; it is never in memory as a whole.
    """
    boxes: dict[str, array[float]] = {}
    for number, result in enumerate(_results(source)):
        values = _values(source, number, result)
        boxes.setdefault(str(result["image_id"]), array("d")).extend(values)
    return RawImages(list(boxes), _taken_from(boxes))


def _taken_from(boxes: dict[str, array[float]]) -> Iterator[RawImage]:
    for key in list(boxes):
        rows = np.frombuffer(boxes.pop(key), np.float64).reshape(-1, 5)
        scored = not np.isnan(rows[:, 4]).all()
        yield RawImage(key, rows[:, :4], rows[:, 4] if scored else None, "xywh")


def _values(source: Path, number: int, result: Any) -> list[float]:
    """Return x, y, width, height and score; NaN for a result without score."""
    where = f"{source}, result {number}"
    if not isinstance(result, dict) or not {"image_id", "bbox"} <= result.keys():
        raise InputError(f"{where}: expected an object with 'image_id' and 'bbox'")
    image_id, box, score = result["image_id"], result["bbox"], result.get("score")
    if isinstance(image_id, bool) or not isinstance(image_id, int | str):
        raise InputError(f"{where}: image_id {image_id!r} is neither a number nor a text")
    numbers: list[Any] = [*box, 0.0 if score is None else score] if isinstance(box, list) else []
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers)
    if len(numbers) != 5 or not plain:
        raise InputError(f"{where}, image {image_id!r}: bbox and score must be four numbers and one")
    try:
        values = [float(value) for value in numbers]
    except OverflowError as error:
        raise InputError(f"{where}, image {image_id!r}: {error}") from error
    return values if score is not None else [*values[:4], np.nan]


def _results(source: Path) -> Iterator[Any]:
    """Yield the elements of the JSON list in ``source``, a block of text in memory at a time."""
    with json_text(source, "list of COCO results") as text:
        for _ in text.items():
            yield text.element()
