"""Scoring of existing VOC result files; needs no network, no images and no compiled library."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from detector.core.errors import InputError, listed
from detector.core.structures import ImageRecord
from detector.evaluation.file_faults import warn_of_result_files
from detector.evaluation.result_files import (
    FileDetections,
    other_result_files,
    read_result_files,
    result_file,
    result_files,
)
from detector.evaluation.voc import VocEvaluator

_log = logging.getLogger(__name__)


def score_result_files(
    folder: Path | str,
    records: Sequence[ImageRecord],
    classes: Sequence[str],
    split: str = "test",
    iou_threshold: float = 0.5,
) -> VocEvaluator:
    """Return an evaluator with the detections of the files ``FOLDER/comp4_det_<split>_<class>.txt``.

    Equal scores of a class keep the order of its file. A class without a file has no detections and so
    the AP 0; a warning names it, and also the files of classes that the annotations do not have.

    Raises:
        InputError: there is no result file at all, or one is malformed (see `read_result_files`).
    """
    evaluator = VocEvaluator(records, classes, iou_threshold)
    detections = read_checked_files(Path(folder), records, classes, split)
    for image_id, (boxes, scores, labels, lines) in detections.items():
        evaluator.add(image_id, boxes, scores, labels, order=lines)
    return evaluator


def read_checked_files(
    folder: Path, records: Sequence[ImageRecord], classes: Sequence[str], split: str = "test"
) -> dict[str, FileDetections]:
    """Return what `read_result_files` returns, after checking which files exist.

    Logs a warning for classes without a file, files without a class, and boxes and scores that are probably
    wrong (`detector.evaluation.file_faults`). Raises InputError as `score_result_files`.
    """
    _check_files(folder, classes, split)
    sizes = {record.image_id: (record.height, record.width) for record in records}
    detections = read_result_files(folder, list(sizes), classes, split)
    warn_of_result_files(folder, detections, sizes)
    return detections


def _check_files(folder: Path, classes: Sequence[str], split: str) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; expected a folder of VOC result files")
    files = result_files(folder, split, classes)
    if not files:
        expected = ", ".join(result_file(folder, split, name).name for name in classes[:25])
        others = ", ".join(sorted(path.name for path in folder.glob("*.txt"))[:5])
        other = f"; the folder has {others}" if others else ""
        raise InputError(f"{folder} has no result file for split {split!r}: expected {expected}{other}")
    unknown = other_result_files(folder, split, classes)
    if unknown:
        _log.warning("%s: not scored, no such class in the annotations: %s", folder, listed(unknown))
    missing = [name for name in classes if name not in files]
    if missing:
        _log.warning("%s: no result file, so the AP is 0: %s", folder, ", ".join(missing))
