"""Pickled proposals of Detectron, detectron2 and mmdetection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.errors import InputError
from detector.proposals.readers.arrays import Position, RawImage, RawImages, image_place, raw_image
from detector.proposals.readers.pickled_arrays import PickledFields, as_array, as_items
from detector.proposals.readers.safe_pickle import read_pickle

# detectron2's BoxMode
_BOX_MODES = {0: "xyxy", 1: "xywh"}


def read_detectron(source: Path, convention: str) -> RawImages:
    """Return the images of a dictionary of lists, of the same length and in the same order.

    ``indexes`` or ``ids`` are the image ids, ``boxes`` arrays (P, 4), and ``scores`` or
    ``objectness_logits``, which may be missing, arrays (P,). ``convention`` is the dialect's: Detectron's
    boxes include their last pixel, detectron2's do not; ``bbox_mode`` overrides it.
    """
    content = read_pickle(source)
    try:
        boxes, keys = as_items(_named(content, "boxes")), as_items(_named(content, "ids", "indexes"))
        keys = [_key(key) for key in keys]
        found = _named(content, "objectness_logits", "scores")
        scores = [None] * len(boxes) if found is None else as_items(found)
        convention = _BOX_MODES[content["bbox_mode"]] if "bbox_mode" in content else convention
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{source} is no proposal file of Detectron, a dictionary with the lists 'boxes' and 'ids' or "
            f"'indexes', perhaps 'scores' or 'objectness_logits', and bbox_mode 0 or 1 ({error!r})"
        ) from error
    if not len(keys) == len(boxes) == len(scores):
        raise InputError(f"{source} has {len(keys)} ids, {len(boxes)} boxes and {len(scores)} scores")
    images = zip(keys, boxes, scores, strict=True)
    return RawImages(keys, (_image(source, *image, convention) for image in images))


def read_mmdetection(source: Path) -> RawImages:
    """Return the images of mmdetection's file.

    Up to version 2 it is a list of arrays (P, 4) or (P, 5), score last, one for each image of the data set
    in its order. From version 3 on it is a dictionary from image path to ``bboxes`` and
    ``scores``; the file's name without its suffix is the id.
    """
    content = read_pickle(source)
    if isinstance(content, dict):
        names = [Path(path).stem for path in content if isinstance(path, str)]
        return RawImages(names, _named_images(source, content))
    if not isinstance(content, list):
        raise InputError(f"{source} is no proposal file of mmdetection: neither a list nor a dictionary")
    places = (Position(index, len(content)) for index in range(len(content)))
    images = zip(places, content, strict=True)
    return RawImages([], (_image(source, place, rows, None, "xyxy") for place, rows in images))


def _named_images(source: Path, content: dict[Any, Any]) -> Iterator[RawImage]:
    for path, fields in content.items():
        fields = fields.fields if isinstance(fields, PickledFields) else fields
        if not isinstance(path, str) or not isinstance(fields, dict) or "bboxes" not in fields:
            raise InputError(f"{source}: {str(path)[:80]!r} does not lead to 'bboxes' and 'scores'")
        yield _image(source, Path(path).stem, fields["bboxes"], fields.get("scores"), "xyxy")


def _image(source: Path, key: str | Position, boxes: Any, scores: Any, convention: str) -> RawImage:
    where = image_place(source, key)
    try:
        image = raw_image(key, as_array(boxes), convention, where)
        if scores is None:
            return image
        ranks = np.ravel(as_array(scores))
    except (TypeError, ValueError, OverflowError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{where}: {error}") from error
    if len(ranks) != len(image.boxes):
        raise InputError(f"{where}: {len(image.boxes)} boxes and {len(ranks)} scores")
    return image._replace(scores=ranks)


def _named(content: Any, *names: str) -> Any:
    """Return the first of the entries ``names`` that is there, or None; TypeError without a dictionary."""
    if not isinstance(content, dict):
        raise TypeError(f"a {type(content).__name__}")
    return next((content[name] for name in names if name in content), None)


def _key(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str | np.integer):
        raise TypeError(f"an image id of type {type(value).__name__}")
    return str(value)
