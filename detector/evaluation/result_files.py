"""VOC result files: one text file a class, ``image_id score x1 y1 x2 y2`` a line.

The name and the 1-based inclusive coordinates are those of the VOC development kit's detection task
("comp4"): 1 is added to our x1 and y1. Numbers are written in the shortest decimal form that reads back as
the same float32, and the 1 is added and taken away in decimal arithmetic, so nothing is lost on the way.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from decimal import Context, Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector.core.errors import InputError, nearest
from detector.core.files import ASCII_SPACE, MAX_FLOAT32, file_name_of, require_regular, write_text
from detector.core.structures import Detections

# The smallest float32 has 54 decimals, the largest 39 digits before the point.
_EXACT = Context(prec=100)
_ONE = Decimal(1)
_LONGEST_SPLIT = 60  # bytes, in a file name
_COLUMNS = 7  # of a row as it is read: score, box, label, line


class FileDetections(NamedTuple):
    """The D detections that result files hold for one image, class after class, in the files' order.

    boxes (D, 4) float32 in the project's convention; scores (D,) float64, since files of others may have
    more digits than float32; labels (D,) 1..K; lines (D,), each detection's line in its class's file.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    lines: Tensor

    def detections(self) -> Detections:
        """Return them by falling score, as the detector would."""
        order = torch.argsort(self.scores, descending=True, stable=True)
        return Detections(
            boxes=self.boxes[order], scores=self.scores[order].float(), labels=self.labels[order]
        )


def result_file(folder: Path, split: str, name: str) -> Path:
    """Return the path of a class's result file, ``FOLDER/comp4_det_<split>_<class>.txt``.

    Split and class stand there as `file_name_of` writes them: ``cabinet/shelf`` is ``cabinet%2Fshelf``.
    """
    return _class_file(folder, "comp4_det", split, name)


def result_files(folder: Path, split: str, classes: Sequence[str]) -> dict[str, Path]:
    """Return the file of each class that has one: that of `result_file`, or one with the bare class name.

    Other programs do not escape names: a class ``a:b`` may be found in ``comp4_det_test_a:b.txt``.
    """
    files = {name: result_file(folder, split, name) for name in classes}
    there = set(folder.glob("*.txt"))
    others = there - set(files.values())
    for name in classes:
        bare = folder / f"comp4_det_{split}_{name}.txt"
        if files[name] not in there and bare in others:
            files[name] = bare
    return {name: path for name, path in files.items() if path in there}


def other_result_files(folder: Path, split: str, classes: Sequence[str]) -> list[str]:
    """Return the names of result files of ``split`` that belong to none of ``classes``, sorted."""
    known = {path.name for path in result_files(folder, split, classes).values()}
    starts = (f"comp4_det_{split}_", result_file(folder, split, "").stem)
    return sorted(
        path.name for path in folder.glob("*.txt") if path.name.startswith(starts) and path.name not in known
    )


def write_class_scores(
    folder: Path, scores: Mapping[str, Tensor], classes: Sequence[str], split: str = "test"
) -> list[Path]:
    """Write the kit's files of the classification task ("comp2"), ``FOLDER/comp2_cls_<split>_<class>.txt``.

    ``scores`` holds the K classes' scores (K,) by image id; a line is ``image_id score``, every image in
    every file, in the order of ``scores``. Raises InputError if the folder cannot be written.
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
    """Write every class's file, an empty one where nothing was found, and return their paths.

    ``detections`` is by image id; lines are in its order, then in the detections' own. ``first_pixel`` 0
    counts pixels from 0 as annotations do that are read so; ends stay inclusive. Raises InputError if the
    folder cannot be written.
    """
    lines: list[list[str]] = [[] for _ in classes]
    for image_id, found in detections.items():
        for label, line in zip(found.labels.tolist(), _lines(image_id, found, first_pixel), strict=True):
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
        InputError: a line without six fields or with a number that is none, or an id that is not among
            ``image_ids``; the message names file and line.
    """
    rows = {image_id: array("d") for image_id in image_ids}
    files = result_files(folder, split, classes)
    for label, name in enumerate(classes, start=1):
        if name in files:
            _read_class(files[name], label, rows)
    return {image_id: _as_tensors(found) for image_id, found in rows.items()}


def _lines(image_id: str, found: Detections, first_pixel: int) -> list[str]:
    # str() of a NumPy float32 is the shortest decimal that reads back as the same float32.
    boxes = found.boxes.cpu().numpy().astype(np.float32)
    texts = [[str(number) for number in row] for row in boxes]
    if first_pixel == 0:
        texts = [[x1, y1, str(_shift(x2, -_ONE)), str(_shift(y2, -_ONE))] for x1, y1, x2, y2 in texts]
    else:
        texts = [[str(_shift(x1, _ONE)), str(_shift(y1, _ONE)), x2, y2] for x1, y1, x2, y2 in texts]
    return [
        f"{image_id} {score!s} {x1} {y1} {x2} {y2}\n"
        for score, (x1, y1, x2, y2) in zip(found.scores.cpu().numpy(), texts, strict=True)
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
