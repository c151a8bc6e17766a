"""Readers of proposal files that other programs wrote. Each returns the images as they are in the file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from detector.core.errors import InputError, nearest
from detector.core.files import require_regular
from detector.proposals.readers.cellpose import read_cellpose
from detector.proposals.readers.coco_annotations import read_coco_annotations
from detector.proposals.readers.coco_results import read_coco_results
from detector.proposals.readers.label_images import read_label_images
from detector.proposals.readers.label_studio import read_label_studio
from detector.proposals.readers.labelme import read_labelme_regions
from detector.proposals.readers.matlab import read_matlab
from detector.proposals.readers.megadetector import read_megadetector
from detector.proposals.readers.numpy_files import read_npy_folder, read_npz
from detector.proposals.readers.own import read_own
from detector.proposals.readers.pickles import read_detectron, read_mmdetection
from detector.proposals.readers.raw_images import RawImages
from detector.proposals.readers.sam import read_sam
from detector.proposals.readers.text_files import read_text_folder
from detector.proposals.readers.voc import read_voc
from detector.proposals.readers.yolo import read_yolo

_READERS: dict[str, Callable[[Path], RawImages]] = {
    "mat": read_matlab,
    "detectron": partial(read_detectron, convention="xyxy_inclusive"),
    "detectron2": partial(read_detectron, convention="xyxy"),
    "mmdetection": read_mmdetection,
    "npz": read_npz,
    "npy": read_npy_folder,
    "coco": read_coco_results,
    "text": read_text_folder,
    "coco_annotations": read_coco_annotations,
    "sam": read_sam,
    "labels": read_label_images,
    "cellpose": read_cellpose,
    "megadetector": read_megadetector,
    "yolo": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme_regions,
    "labelstudio": read_label_studio,
}
FORMATS = tuple(_READERS)


def read_images(source: Path, file_format: str) -> RawImages:
    """Return the images of ``source``, one in memory at a time where the format allows it.

    ``file_format`` is one of ``FORMATS``, or ``module:Name``, a function of the user (`read_own`). Raises
    InputError, which names file and image, for content that does not follow the format, and for a pipe or a
    device.
    """
    if not source.is_dir():
        require_regular(source)
    if ":" in file_format:
        return read_own(source, file_format)
    if file_format not in _READERS:
        raise InputError(
            f"proposal format {file_format!r} is unknown{nearest(file_format, FORMATS)}; "
            f"use one of {', '.join(FORMATS)}, or module:Name for a function of yours"
        )
    return _READERS[file_format](source)
