"""VOC result files, written, read and scored: per class a text file of lines ``image_id score x1 y1 x2 y2``.

The name and the 1-based inclusive coordinates are those of the VOC development kit's detection task
("comp4"): 1 is added to our x1 and y1. Numbers are written in the shortest decimal form that reads back as
the same float32, and the 1 is added and subtracted in decimal arithmetic, so that no precision is lost.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping, Sequence
from decimal import Context, Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector.core.errors import InputError, listed, nearest
from detector.core.files import ASCII_SPACE, MAX_FLOAT32, file_name_of, require_regular, write_text
from detector.core.structures import Detections, ImageRecord
from detector.evaluation.file_faults import warn_of_result_files
from detector.evaluation.voc import VocEvaluator

_log = logging.getLogger(__name__)

# The smallest float32 has 54 decimals, the largest 39 digits before the point.
_EXACT = Context(prec=100)
_ONE = Decimal(1)
_LONGEST_SPLIT = 60  # bytes, in a file name
_COLUMNS = 7  # of a row in memory: score, box (4), label, line


class FileDetections(NamedTuple):
    """The D detections that result files hold for one image, class after class, in the files' order.

    boxes (D, 4) float32, half-open pixels; scores (D,) float64, since other programs may write more digits
    than float32 has; labels (D,) 1..K; lines (D,), the line of each detection in its class's file.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    lines: Tensor

    def detections(self) -> Detections:
        """Return them sorted by decreasing score, as the detector returns its detections."""
        order = torch.argsort(self.scores, descending=True, stable=True)
        return Detections(
            boxes=self.boxes[order], scores=self.scores[order].float(), labels=self.labels[order]
        )


def result_file(folder: Path, split: str, name: str) -> Path:
    """Return the path of a class's result file, ``FOLDER/comp4_det_<split>_<class>.txt``.

    Split and class are escaped by `file_name_of`: ``cabinet/shelf`` becomes ``cabinet%2Fshelf``.
    """
    return _class_file(folder, "comp4_det", split, name)


def result_files(folder: Path, split: str, classes: Sequence[str]) -> dict[str, Path]:
    """Return the file of each class that has one: that of `result_file`, or one with an unescaped name.

    Other programs do not escape names: the file of a class ``a:b`` may be ``comp4_det_test_a:b.txt``.
    """
    files = {name: result_file(folder, split, name) for name in classes}
    existing = set(folder.glob("*.txt"))
    others = existing - set(files.values())
    for name in classes:
        unescaped = folder / f"comp4_det_{split}_{name}.txt"
        if files[name] not in existing and unescaped in others:
            files[name] = unescaped
    return {name: path for name, path in files.items() if path in existing}


def other_result_files(folder: Path, split: str, classes: Sequence[str]) -> list[str]:
    """Return the sorted names of the result files of ``split`` that belong to none of ``classes``."""
    known = {path.name for path in result_files(folder, split, classes).values()}
    starts = (f"comp4_det_{split}_", result_file(folder, split, "").stem)
    return sorted(
        path.name for path in folder.glob("*.txt") if path.name.startswith(starts) and path.name not in known
    )


def write_class_scores(
    folder: Path, scores: Mapping[str, Tensor], classes: Sequence[str], split: str = "test"
) -> list[Path]:
    """Write the kit's files of the classification task ("comp2"), ``FOLDER/comp2_cls_<split>_<class>.txt``.

    ``scores`` holds the scores (K,) of each image by image id. Every file has one line ``image_id score`` per
    image, in the order of ``scores``. Raises InputError if the folder cannot be written.
    """
    paths = []
    for number, name in enumerate(classes):
        paths.append(_class_file(folder, "comp2_cls", split, name))
        lines = (f"{image_id} {row.numpy()[number]!s}\n" for image_id, row in scores.items())
        write_text(paths[-1], "".join(lines))
    return paths


def _class_file(folder: Path, start: str, split: str, name: str) -> Path:
    return folder / f"{start}_{file_name_of(split, _LONGEST_SPLIT)}_{file_name_of(name)}.txt"


def write_result_files(
    folder: Path,
    detections: Mapping[str, Detections],
    classes: Sequence[str],
    split: str = "test",
    first_pixel: int = 1,
) -> list[Path]:
    """Write the file of every class, empty where there are no detections, and return their paths.

    ``detections`` is by image id; lines are in its order, then in the order of the image's detections.
    ``first_pixel`` is the number of the first pixel in the files, 1 or 0, as for annotations; ends are
    inclusive. Raises InputError if the folder cannot be written.
    """
    lines: list[list[str]] = [[] for _ in classes]
    for image_id, one in detections.items():
        for label, line in zip(one.labels.tolist(), _lines(image_id, one, first_pixel), strict=True):
            lines[label - 1].append(line)
    paths = [result_file(folder, split, name) for name in classes]
    for path, content in zip(paths, lines, strict=True):
        write_text(path, "".join(content))
    return paths


def read_result_files(
    folder: Path, image_ids: Sequence[str], classes: Sequence[str], split: str = "test"
) -> dict[str, FileDetections]:
    """Read the classes' files, where they exist, into one entry for each of ``image_ids``.

    Raises:
        InputError: a line does not have six fields, a field is not a number, or an id is not among
            ``image_ids``. The message names the file and the line.
    """
    rows = {image_id: array("d") for image_id in image_ids}
    files = result_files(folder, split, classes)
    for label, name in enumerate(classes, start=1):
        if name in files:
            _read_class(files[name], label, rows)
    return {image_id: _as_tensors(row) for image_id, row in rows.items()}


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
    wrong (`detector.evaluation.file_faults`). Raises InputError as `score_result_files` does.
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


def _lines(image_id: str, detections: Detections, first_pixel: int) -> list[str]:
    # str() of a NumPy float32 is the shortest decimal that reads back as the same float32.
    boxes = detections.boxes.cpu().numpy().astype(np.float32)
    texts = [[str(number) for number in row] for row in boxes]
    if first_pixel == 0:
        texts = [[x1, y1, str(_shift(x2, -_ONE)), str(_shift(y2, -_ONE))] for x1, y1, x2, y2 in texts]
    else:
        texts = [[str(_shift(x1, _ONE)), str(_shift(y1, _ONE)), x2, y2] for x1, y1, x2, y2 in texts]
    return [
        f"{image_id} {score!s} {x1} {y1} {x2} {y2}\n"
        for score, (x1, y1, x2, y2) in zip(detections.scores.cpu().numpy(), texts, strict=True)
    ]


def _shift(number: str, by: Decimal) -> Decimal:
    return _EXACT.add(Decimal(number), by)


def _read_class(path: Path, label: int, rows: dict[str, array[float]]) -> None:
    require_regular(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                fields = line.rsplit(maxsplit=5)
                if not fields:
                    continue
                image_id, values = _read_fields(fields, f"{path}: line {number}")
                if image_id not in rows:
                    raise InputError(
                        f"{path}: line {number}: image id {image_id!r} is not in the split"
                        f"{nearest(image_id, rows)}; score the files against the split they were made for"
                    )
                rows[image_id].extend((*values, label, number))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read the result file: {error}") from None


def _read_fields(fields: list[str], place: str) -> tuple[str, tuple[float, ...]]:
    if len(fields) != 6:
        raise InputError(f"{place}: has {len(fields)} fields; expected: image_id score x1 y1 x2 y2")
    image_id, score, x1, y1, x2, y2 = fields
    try:
        values = (float(score), float(_shift(x1, -_ONE)), float(_shift(y1, -_ONE)), float(x2), float(y2))
    except (ValueError, ArithmeticError):
        raise InputError(f"{place}: {' '.join(fields[1:])!r} are not five numbers") from None
    if not all(abs(value) <= MAX_FLOAT32 for value in values):
        raise InputError(f"{place}: {' '.join(fields[1:])!r} has a number that is NaN or too large")
    return image_id.strip(ASCII_SPACE), values


def _as_tensors(row: array[float]) -> FileDetections:
    table = torch.from_numpy(np.array(row).reshape(-1, _COLUMNS))
    return FileDetections(
        boxes=table[:, 1:5].float(), scores=table[:, 0], labels=table[:, 5].long(), lines=table[:, 6].long()
    )
