"""YOLO's text files as regions: one file per image, one line per region, in fractions of the image.

`detector.core.yolo_file` describes the lines. A polygon is the mask of its region; of a line with keypoints
the box is read.
"""

from __future__ import annotations

import math
from array import array
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from detector.core.polygons import FractionalPolygons, Polygon
from detector.core.yolo_file import keypoint_numbers, read_data_yaml, yolo_lines
from detector.proposals.readers.raw_images import RawImage, RawImages, files_or_one

_NO_LABELS = frozenset(("classes", "notes", "readme"))  # files that programs put beside the others
_FOLDERS_ABOVE = 3


def read_yolo(source: Path) -> RawImages:
    """Return the images of the folder ``source`` of text files, or of one file; one is in memory at a time.

    ``classes.txt`` is not read. The names are the paths in the folder; what comes before and with a folder
    ``labels`` is left out, since YOLO has the images in a folder ``images`` instead.
    """
    files = files_or_one(source, ".txt")
    if source.is_dir():
        files = [(key, path) for key, path in files if path.stem.lower() not in _NO_LABELS] or files
    named = [(_image_name(key), path) for key, path in files]
    keypoints = keypoints_near(source)
    return RawImages([key for key, _ in named], (_image(key, path, keypoints) for key, path in named))


def _image_name(key: str) -> str:
    parts = PurePosixPath(key).parts
    if "labels" in parts[:-1]:
        parts = parts[len(parts) - parts[::-1].index("labels") :]
    return "/".join(parts)


def _image(key: str, path: Path, keypoints: int) -> RawImage:
    boxes, scores = array("d"), array("d")
    polygons: list[tuple[Polygon, ...]] = []
    for line in yolo_lines(path, keypoints=keypoints, confidences=True):
        boxes.extend(line.box)
        polygons.append((np.array(line.polygon, np.float64),) if line.polygon else ())
        scores.append(math.nan if line.confidence is None else line.confidence)
    found = np.frombuffer(scores, np.float64)
    return RawImage(
        key,
        np.frombuffer(boxes, np.float64).reshape(-1, 4),
        None if not len(found) or np.isnan(found).all() else found,
        "cxcywh_normalized",
        masks=FractionalPolygons(tuple(polygons)) if any(polygons) else None,
    )


def keypoints_near(source: Path) -> int:
    """Return how many numbers of keypoints the lines of ``source`` have behind a box; 0 without keypoints.

    They are named in the data.yaml of the data set, which is looked for in the folder and the three above it:
    labels are in ``labels/SPLIT`` or ``SPLIT/labels`` below its folder, perhaps in folders of their own.
    Raises InputError for a data.yaml that cannot be read.
    """
    folder = (source if source.is_dir() else source.parent).absolute()
    for place in (folder, *islice(folder.parents, _FOLDERS_ABOVE)):
        if (path := place / "data.yaml").is_file():
            return keypoint_numbers(read_data_yaml(path), path)
    return 0
