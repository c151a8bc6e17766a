"""MATLAB files: the selective search boxes of rbgirshick/fast-rcnn and of the IJCV release.

Three layouts: one file for a data set, a cell array ``boxes`` with a matrix (P, 4) for each image and often
a cell array ``images`` with their names; one file for an image, a matrix ``boxes``; a folder of such files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from detector.errors import InputError
from detector.proposals.readers.arrays import Position, RawImage, image_place, raw_image
from detector.proposals.readers.folders import files_of
from detector.proposals.readers.mat_file import Cells, Value, read_variable


def read_matlab(source: Path) -> Iterator[RawImage]:
    """Yield the images of the file or folder ``source``, one in memory at a time.

    Files of one image are called after it, perhaps with ``_boxes`` behind (the demo of fast-rcnn).
    """
    if source.is_dir():
        for key, path in files_of(source, ".mat"):
            yield _image(path, key.removesuffix("_boxes"), _boxes(path))
        return
    boxes = _boxes(source)
    if not isinstance(boxes, Cells):
        yield _image(source, source.stem.removesuffix("_boxes"), boxes)
        return
    names = _names(source, len(boxes))
    for place, cell in enumerate(boxes):
        yield _image(source, Position(place, len(boxes)) if names is None else names[place], cell)


def _boxes(path: Path) -> Cells | Value:
    found = read_variable(path, "boxes")
    if found is None:
        raise InputError(f"{path} has no variable 'boxes'")
    return found


def _names(source: Path, count: int) -> list[str] | None:
    cells = read_variable(source, "images")
    if cells is None:
        return None
    names = [cell for cell in cells if isinstance(cell, str)] if isinstance(cells, Cells) else []
    if len(names) != count:
        raise InputError(f"{source}: 'images' does not hold {count} names, one for each cell of 'boxes'")
    return names


def _image(source: Path, key: str | Position, boxes: Cells | Value) -> RawImage:
    where = image_place(source, key)
    if not isinstance(boxes, np.ndarray):
        raise InputError(f"{where}: 'boxes' is no matrix")
    return raw_image(key, boxes, "auto", where)
