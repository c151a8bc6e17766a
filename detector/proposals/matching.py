"""Which image of a data set a proposal file means: the same image has many names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_COCO_PREFIX = re.compile(r"COCO_(train|val|test)\d{4}_")


class IdMatcher:
    """Finds the data set's id of an image by what a file calls it.

    The names are the same, or they are once folders, an image suffix, COCO's prefix and, in numbers, zeros
    at the front and underscores are left out: 4 is 000004, 2008000001 is 2008_000001. A name that two
    images of the data set could have in this way finds none.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = set(ids)
        reduced = [reduce_id(image_id) for image_id in ids]
        counts = Counter(reduced)
        self._by_reduced = {
            name: image_id for name, image_id in zip(reduced, ids, strict=True) if counts[name] == 1
        }

    def find(self, key: str) -> str | None:
        """Return the id that ``key`` means, or None."""
        return key if key in self._ids else self._by_reduced.get(reduce_id(key))


def reduce_id(key: str) -> str:
    """Return ``key`` without folders, image suffix, COCO's prefix, leading zeros and underscores."""
    path = PurePosixPath(key.replace("\\", "/"))
    name = path.stem if path.suffix.lower() in _IMAGE_SUFFIXES else path.name
    name = _COCO_PREFIX.sub("", name)
    digits = name.replace("_", "")
    return digits.lstrip("0") if digits.isdecimal() and digits.isascii() else name
