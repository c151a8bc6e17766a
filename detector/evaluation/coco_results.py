"""COCO result files: a JSON list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import MAX_FLOAT32, read_json, write_text
from detector.core.structures import Detections
from detector.evaluation.file_faults import Sizes, warn_of_coco_results

Result = dict[str, Any]


def to_results(image_id: int, detections: Detections, category_ids: Sequence[int]) -> list[Result]:
    """Return detections as COCO's dictionaries; label k becomes ``category_ids[k - 1]``.

    No precision is lost: the width is x2 - x1 of the float32 corners, computed in float64.
    """
    columns = (detections.boxes.tolist(), detections.labels.tolist(), detections.scores.tolist())
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), label, score in zip(*columns, strict=True)
    ]


def write_coco_results(
    path: Path | str,
    images: Iterable[tuple[int, NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]],
    category_ids: Sequence[int],
) -> None:
    """Write a results file. Each image has COCO's id, boxes (D, 4), scores (D,) and categories (D,).

    Boxes are (x, y, width, height) in pixels; categories are places in ``category_ids``. The text is that of
    `json.dumps`.

    Raises:
        InputError: the file cannot be written.
        ValueError: a number is not finite, which JSON cannot express.
    """
    categories = [json.dumps(one) for one in category_ids]
    lines = []
    for image_id, boxes, scores, places in images:
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"image {image_id}: a detection has a number that is not finite")
        start = f'{{"image_id": {json.dumps(image_id)}, "category_id": '
        # A list of finite floats has the same text in Python and in JSON.
        rows = zip(places.tolist(), boxes.tolist(), scores.tolist(), strict=True)
        lines += [f'{start}{categories[at]}, "bbox": {box}, "score": {score}}}' for at, box, score in rows]
    write_text(Path(path), "[" + ",\n".join(lines) + "]\n")


def read_coco_results(path: Path | str, sizes: Sizes, category_ids: Collection[int]) -> list[Result]:
    """Read a results file; log a warning about boxes and scores that are probably wrong.

    ``sizes`` gives the images' (height, width) by COCO's id, zeros where they are not known. Other keys of an
    entry than those of a result, such as ``segmentation``, are left in it.

    Raises:
        InputError: the file cannot be read or is not a list of results, an entry names an image or a
            category that the annotations do not have, or a number is missing. The message names the file
            and the entry.
    """
    path = Path(path)
    results = read_json(path)
    if not isinstance(results, list):
        raise InputError(
            f"{path}: expected a COCO results file, a list of objects with image_id, bbox and score"
        )
    images, categories = set(sizes), set(category_ids)
    if not _are_plain(results, images, categories):
        for number, entry in enumerate(results):
            _check(entry, images, categories, f"{path}: entry {number}")
    warn_of_coco_results(path, results, sizes)
    return results


def _are_plain(results: list[Any], images: set[int], categories: set[int]) -> bool:
    """Say whether all entries are as expected. This is much faster than `_check`, which finds the fault."""
    try:
        for key, known in (("image_id", images), ("category_id", categories)):
            ids = [entry[key] for entry in results]
            if not (set(map(type, ids)) <= {int} and known.issuperset(ids)):
                return False
        boxes, scores = [entry["bbox"] for entry in results], [entry["score"] for entry in results]
        are_lists = set(map(type, boxes)) <= {list} and set(map(len, boxes)) <= {4}
        numbers = [*itertools.chain.from_iterable(boxes), *scores] if are_lists else [None]
        if not set(map(type, numbers)) <= {int, float}:
            return False
        return bool((np.abs(np.array(numbers, dtype=np.float64)) <= MAX_FLOAT32).all())
    except (LookupError, TypeError, OverflowError):
        return False


def _check(entry: Any, images: set[int], categories: set[int], place: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(
            f"{place} is {_short(entry)}; expected an object with image_id, category_id, bbox, score"
        )
    for key, known in (("image_id", images), ("category_id", categories)):
        if not isinstance(entry.get(key), int) or entry[key] not in known:
            raise InputError(f"{place}: {key} is {_short(entry.get(key))}, which the annotations do not have")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise InputError(f"{place}: bbox is {_short(box)}; expected [x, y, width, height] in pixels")
    if not _is_number(entry.get("score")):
        raise InputError(f"{place}: score is {_short(entry.get('score'))}; expected a number")


def _is_number(value: Any) -> bool:
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return is_numeric and abs(value) <= MAX_FLOAT32  # false for NaN


def _short(value: Any) -> str:
    return repr(value)[:60]
