"""Scoring VOC result files that exist already; no network, image or compiled op takes part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from detector.errors import InputError
from detector.evaluation.result_files import FileDetections, read_result_files, result_file
from detector.evaluation.voc import VocEvaluator
from detector.structures import ImageRecord

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
    found = read_checked_files(Path(folder), [record.image_id for record in records], classes, split)
    for image_id, (boxes, scores, labels, lines) in found.items():
        evaluator.add(image_id, boxes, scores, labels, order=lines)
    return evaluator


def read_checked_files(
    folder: Path, image_ids: Sequence[str], classes: Sequence[str], split: str = "test"
) -> dict[str, FileDetections]:
    """Return what `read_result_files` does, after a look at which files there are.

    Warns of classes without a file and of files without a class. Raises InputError as `score_result_files`.
    """
    _check_files(folder, classes, split)
    return read_result_files(folder, image_ids, classes, split)


def _check_files(folder: Path, classes: Sequence[str], split: str) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; expected a folder of VOC result files")
    expected = {result_file(folder, split, name).name: name for name in classes}
    there = {path.name for path in folder.glob("*.txt")}
    if not there & expected.keys():
        wanted = ", ".join(list(expected)[:25])
        other = f"; the folder has {', '.join(sorted(there)[:5])}" if there else ""
        raise InputError(f"{folder} has no result file for split {split!r}: expected {wanted}{other}")
    start = result_file(folder, split, "").stem
    unknown = sorted(name for name in there - expected.keys() if name.startswith(start))
    if unknown:
        _log.warning("%s: not scored, no such class in the annotations: %s", folder, ", ".join(unknown))
    missing = [name for file, name in expected.items() if file not in there]
    if missing:
        _log.warning("%s: no result file, so counted with AP 0: %s", folder, ", ".join(missing))
