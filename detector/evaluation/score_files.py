"""Scoring VOC result files that exist already; no network, image or compiled op takes part."""

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
    """Return an evaluator that has seen what ``FOLDER/comp4_det_<split>_<class>.txt`` hold.

    Equal scores of a class keep the order of its file. A class without a file has no detections, so AP 0;
    it is named in a warning, as are files of classes that the annotations do not have.

    Raises:
        InputError: no result file at all, or a malformed one (see `read_result_files`).
    """
    evaluator = VocEvaluator(records, classes, iou_threshold)
    found = read_checked_files(Path(folder), records, classes, split)
    for image_id, (boxes, scores, labels, lines) in found.items():
        evaluator.add(image_id, boxes, scores, labels, order=lines)
    return evaluator


def read_checked_files(
    folder: Path, records: Sequence[ImageRecord], classes: Sequence[str], split: str = "test"
) -> dict[str, FileDetections]:
    """Return what `read_result_files` does, after a look at which files there are.

    Warns of classes without a file, of files without a class, and of boxes and scores that seem wrong, as
    `detector.evaluation.file_faults` says. Raises InputError as `score_result_files`.
    """
    _check_files(folder, classes, split)
    sizes = {record.image_id: (record.height, record.width) for record in records}
    found = read_result_files(folder, list(sizes), classes, split)
    warn_of_result_files(folder, found, sizes)
    return found


def _check_files(folder: Path, classes: Sequence[str], split: str) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; expected a folder of VOC result files")
    found = result_files(folder, split, classes)
    if not found:
        wanted = ", ".join(result_file(folder, split, name).name for name in classes[:25])
        there = ", ".join(sorted(path.name for path in folder.glob("*.txt"))[:5])
        other = f"; the folder has {there}" if there else ""
        raise InputError(f"{folder} has no result file for split {split!r}: expected {wanted}{other}")
    unknown = other_result_files(folder, split, classes)
    if unknown:
        _log.warning("%s: not scored, no such class in the annotations: %s", folder, listed(unknown))
    missing = [name for name in classes if name not in found]
    if missing:
        _log.warning("%s: no result file, so counted with AP 0: %s", folder, ", ".join(missing))
