"""Readers of proposal files that other programs wrote. Each gives the images as the file has them."""

from __future__ import annotations

from pathlib import Path

from detector.core.errors import InputError, nearest
from detector.core.files import require_regular
from detector.proposals.readers.coco_results import read_coco_results
from detector.proposals.readers.matlab import read_matlab
from detector.proposals.readers.numpy_files import read_npy_folder, read_npz
from detector.proposals.readers.pickles import read_detectron, read_mmdetection
from detector.proposals.readers.raw_images import RawImages
from detector.proposals.readers.text_files import read_text_folder

FORMATS = ("mat", "detectron", "detectron2", "mmdetection", "npz", "npy", "coco", "text")


def read_images(source: Path, file_format: str) -> RawImages:
    """Return the images of ``source``, one in memory at a time where the format allows it.

    ``file_format`` is one of ``FORMATS``. Raises InputError, which names file and image, for content that
    does not follow the format, and for a pipe or a device.
    """
    if not source.is_dir():
        require_regular(source)
    match file_format:
        case "mat":
            return read_matlab(source)
        case "detectron":
            return read_detectron(source, "xyxy_inclusive")
        case "detectron2":
            return read_detectron(source, "xyxy")
        case "mmdetection":
            return read_mmdetection(source)
        case "npz":
            return read_npz(source)
        case "npy":
            return read_npy_folder(source)
        case "coco":
            return read_coco_results(source)
        case "text":
            return read_text_folder(source)
        case _:
            raise InputError(
                f"proposal format {file_format!r} is unknown{nearest(file_format, FORMATS)}; "
                f"use one of {', '.join(FORMATS)}"
            )
