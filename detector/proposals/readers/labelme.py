"""LabelMe's JSON files as regions: turned and upright rectangles, polygons, circles and masks.

`detector.core.labelme_file` describes them. Points and lines are no regions, and a label is not needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detector.core.errors import InputError
from detector.core.labelme_file import WITHOUT_AREA, read_labelme
from detector.core.masks import Masks
from detector.proposals.readers.raw_images import RawImage, RawImages, files_or_one, number_of_pixels


def read_labelme_regions(source: Path) -> RawImages:
    """Return the images of the folder ``source`` of JSON files, or of one file; one is in memory at a time.

    The name of a file without its suffix is the image's, as LabelMe names it.
    """
    files = files_or_one(source, ".json")
    return RawImages([key for key, _ in files], (_image(key, path) for key, path in files))


def _image(key: str, path: Path) -> RawImage:
    found = read_labelme(path, labelled=False, skip=WITHOUT_AREA)
    if found.size is None:
        raise InputError(f"{path}: expected the size of the image in imageHeight and imageWidth")
    size = number_of_pixels(*found.size, str(path))
    boxes: list[list[float]] = []
    counts: list[bytes] = []
    for shape in found.shapes:
        mask = shape.mask(size, f"{path}: {shape.place}")
        # Parts may lie outside the image, or be too thin to cover a pixel.
        exact = Masks(size, (mask,)).boxes()[0].tolist() if shape.joined and mask else list(shape.box)
        boxes.append(exact)
        counts.append(mask)
    masks = Masks(size, tuple(counts)) if any(counts) else None
    return RawImage(key, np.array(boxes, np.float64).reshape(-1, 4), None, "xyxy", size, masks)
