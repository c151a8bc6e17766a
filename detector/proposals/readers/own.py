"""Proposals that a function of the user reads, named ``module:Name`` as the format of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.masks import Masks
from detector.core.user_code import load_object
from detector.proposals.readers.raw_images import RawImage, RawImages, image_place, raw_image


def read_own(source: Path, name: str) -> RawImages:
    """Return the images that the function ``name`` reads from ``source``, one in memory at a time.

    The function is called with ``source`` twice: for the names of all images, and then for their boxes. Per
    image it yields (name, boxes), (name, boxes, scores) or (name, boxes, scores, masks), with ``boxes``
    (P, 4) x1, y1, x2, y2, half-open in pixels, ``scores`` (P,) or None, and ``masks`` (P, H, W) of the whole
    image, `Masks`, or None.

    Raises:
        InputError: naming the function, if it cannot be loaded, fails, or yields anything else.
    """
    read = load_object(name, "proposal format")
    where = f"{source}: proposal format {name!r}"
    names = [_name(item, where) for item in _items(read, source, where)]
    return RawImages(names, (_image(item, source, where) for item in _items(read, source, where)))


def _items(read: Callable[[Path], Any], source: Path, where: str) -> Iterator[Any]:
    try:
        yield from read(source)
    except Exception as error:  # the code is the user's, and may fail in any way
        raise InputError(f"{where} failed: {type(error).__name__}: {error}") from error


def _name(item: Any, where: str) -> str:
    if not isinstance(item, tuple | list) or not 2 <= len(item) <= 4 or not isinstance(item[0], str):
        raise InputError(
            f"{where} yielded {item!r:.80}; expected (name, boxes), (name, boxes, scores) or "
            "(name, boxes, scores, masks) with the name of an image as text"
        )
    return item[0]


def _image(item: Any, source: Path, where: str) -> RawImage:
    key = _name(item, where)
    place = f"{image_place(source, key)}: the boxes of {where.removeprefix(f'{source}: ')}"
    _, boxes, scores, masks = [*item, None, None][:4]
    image = raw_image(key, _array(boxes, place), "xyxy", place)
    if image.scores is not None:
        raise InputError(f"{place} have 5 columns; expected 4, and scores on their own")
    if scores is not None:
        scores = _array(scores, place)
        if scores.dtype.kind not in "iuf" or scores.shape != (len(image.boxes),):
            raise InputError(
                f"{place} have scores {scores.dtype} of shape {scores.shape}; expected {len(image.boxes)} "
                "numbers"
            )
    if masks is None:
        return image._replace(scores=scores)
    encoded = _masks(masks, len(image.boxes), place)
    return image._replace(scores=scores, size=encoded.size, masks=encoded)


def _array(values: Any, place: str) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except Exception as error:  # whatever the user's object raises when it is converted
        raise InputError(f"{place} cannot be used as an array: {error}") from error


def _masks(masks: Any, count: int, place: str) -> Masks:
    try:
        encoded = masks if isinstance(masks, Masks) else Masks.encode(_array(masks, place))
    except (ValueError, TypeError) as error:
        raise InputError(f"{place} have unusable masks: {error}") from error
    if len(encoded) != count:
        raise InputError(f"{place} are {count}, and there are {len(encoded)} masks; expected one for each")
    return encoded
