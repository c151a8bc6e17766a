"""Warnings about detections in well-formed files that are probably wrong; they are still scored.

Boxes in another convention or in fractions of the image have an average precision near zero, which looks
like a bad detector. Scores need not lie in [0, 1], since those of an SVM do not: only their order counts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from detector.evaluation.result_files import FileDetections

_log = logging.getLogger(__name__)

_TOLERANCE = 1.0  # pixels that a box may reach out of its image
_MOST = 0.9  # the fraction of the boxes that must fit in another convention

Sizes = Mapping[Any, tuple[float, float]]
"""(height, width) by image, in pixels; zeros where the size is not known."""


class _FileBoxes(NamedTuple):
    """D detections of a file.

    ``groups`` (D, 2) holds the numbers of image and class, ``written`` (D, 4) the numbers in the file,
    ``corners`` (D, 4) the half-open boxes that they stand for, ``sizes`` (D, 2) the images' (height, width).
    """

    groups: NDArray[np.int64]
    scores: NDArray[np.float64]
    written: NDArray[np.float64]
    corners: NDArray[np.float64]
    sizes: NDArray[np.float64]


def warn_of_coco_results(path: Path, results: Sequence[Mapping[str, Any]], sizes: Sizes) -> None:
    """Warn about entries of a COCO results file that are probably wrong; ``sizes`` by COCO's image id."""
    numbers = {image_id: number for number, image_id in enumerate(sizes)}
    written = _table([one["bbox"] for one in results], 4)
    detections = _FileBoxes(
        groups=_table([(numbers[one["image_id"]], one["category_id"]) for one in results], 2, np.int64),
        scores=_table([one["score"] for one in results], 1)[:, 0],
        written=written,
        corners=_corners(written),
        sizes=_table([sizes[one["image_id"]] for one in results], 2),
    )
    hint = "as x1, y1, x2, y2 they would fit, but bbox is x, y, width, height"
    _warn(path, detections, other=written, hint=hint)


def warn_of_result_files(folder: Path, detections: Mapping[str, FileDetections], sizes: Sizes) -> None:
    """Warn about lines of VOC result files that are probably wrong; ``sizes`` by image id."""
    counts = [len(one.labels) for one in detections.values()]
    images = np.repeat(np.arange(len(counts)), counts)
    empty = np.zeros((0, 4))
    corners = np.concatenate([empty, *(one.boxes.double().numpy() for one in detections.values())])
    labels = np.concatenate([empty[:, 0], *(one.labels.numpy() for one in detections.values())])
    scores = np.concatenate([empty[:, 0], *(one.scores.numpy() for one in detections.values())])
    written = np.add(corners, (1, 1, 0, 0))
    file_boxes = _FileBoxes(
        groups=np.stack((images, labels.astype(np.int64)), axis=1),
        scores=scores,
        written=written,
        corners=corners,
        sizes=_table([sizes[image_id] for image_id in detections], 2)[images],
    )
    hint = "as x, y, width, height they would fit, but the lines are image_id score x1 y1 x2 y2"
    _warn(folder, file_boxes, other=_corners(written), hint=hint)


def _table(rows: Sequence[Any], columns: int, kind: type[Any] = np.float64) -> NDArray[Any]:
    return np.array(rows, dtype=kind).reshape(-1, columns)


def _corners(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def _warn(place: Path, detections: _FileBoxes, other: NDArray[np.float64], hint: str) -> None:
    """Log one line about the boxes and one about the scores; ``other``: the boxes in another convention."""
    total = len(detections.scores)
    if not total:
        return
    flat = _is_flat(detections.corners)
    outside = ~flat & _is_outside(detections.corners, detections.sizes)
    lowest, highest = detections.written.min(axis=1), detections.written.max(axis=1)
    fractions = (lowest >= 0) & (highest <= 1) & (detections.written % 1 != 0).any(axis=1)
    counts = {
        "have no area": int(flat.sum()),
        "leave their image": int(outside.sum()),
        "lie in 0..1": int(fractions.sum()),
    }
    faults = ", ".join(f"{count} {fault}" for fault, count in counts.items() if count)
    fits, fits_other = ~flat & ~outside, ~_is_flat(other) & ~_is_outside(other, detections.sizes)
    if fractions.mean() >= _MOST:
        faults += "; they seem to be fractions of the image's sides, pixels are expected"
    elif fits_other.mean() >= max(_MOST, fits.mean() + 1 / total):
        faults += f"; {hint}"
    if faults:
        _log.warning("%s: of %d boxes, %s", place, total, faults)
    _warn_of_scores(place, detections)


def _warn_of_scores(place: Path, detections: _FileBoxes) -> None:
    total = len(detections.scores)
    if total > 1 and (detections.scores == detections.scores[0]).all():
        _log.warning(
            "%s: all %d scores are %g, so that the metrics depend on the order in the file",
            *(place, total, detections.scores[0]),
        )
    rows = np.column_stack((detections.groups, detections.scores, detections.written))
    again = total - len(np.unique(rows, axis=0))
    if again:
        _log.warning(
            "%s: %d of %d detections are repeated; each repetition counts as a false positive",
            *(place, again, total),
        )


def _is_flat(corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.any(corners[:, 2:] <= corners[:, :2], axis=1)


def _is_outside(corners: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which boxes reach more than one pixel out of their image, where its size is known."""
    before = np.any(corners < -_TOLERANCE, axis=1)
    behind = np.any(corners[:, 2:] > sizes[:, ::-1] + _TOLERANCE, axis=1)
    return np.logical_and(before | behind, np.all(sizes > 0, axis=1))
