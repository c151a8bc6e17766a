"""MATLAB files: the selective search boxes of rbgirshick/fast-rcnn and of the IJCV release.

Three layouts: one file for a data set, a cell array ``boxes`` with a matrix (P, 4) for each image and often
a cell array ``images`` with their names; one file for an image, a matrix ``boxes``; a folder of such files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detector.core.errors import InputError
from detector.proposals.readers.arrays import Position, RawImage, RawImages, image_place, raw_image
from detector.proposals.readers.folders import files_of
from detector.proposals.readers.mat_file import Cells, Value, read_variable


def read_matlab(source: Path) -> RawImages:
    """Return the images of the file or folder ``source``, one in memory at a time.

    Files of one image are called after it, perhaps with ``_boxes`` behind (the demo of fast-rcnn).
    """
    if source.is_dir():
        files = [(key.removesuffix("_boxes"), path) for key, path in files_of(source, ".mat")]
        return RawImages([key for key, _ in files], (_image(path, key, _boxes(path)) for key, path in files))
    boxes = _boxes(source)
    if not isinstance(boxes, Cells):
        key = source.stem.removesuffix("_boxes")
        return RawImages([key], iter([_image(source, key, boxes)]))
    names = _names(source, len(boxes))
    total = len(boxes)
    keys = (Position(place, total) if names is None else names[place] for place in range(total))
    return RawImages(names or [], (_image(source, key, cell) for key, cell in zip(keys, boxes, strict=True)))


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
