"""COCO's detection metrics, computed by pycocotools, for data sets of any format.

The ground truth is a dictionary as in COCO's annotation files, with ``images``, ``categories`` and
``annotations``. Crowd regions are ignored as COCO ignores them. Objects with ``ignore: 1`` or
``difficult: 1`` are ignored too: missing one is not counted, and a detection on one is not a false positive.
pycocotools overwrites ``ignore`` by ``iscrowd``, so these objects are given to it as crowd regions, which is
the only way to make it ignore an object. COCO's own annotation files have neither flag, so their metrics are
exactly those of pycocotools.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.core.structures import Detections, ImageRecord
from detector.evaluation.coco_results import Result, read_coco_results, to_results, write_coco_results
from detector.evaluation.report import COCO_METRICS

GroundTruth = Mapping[str, Sequence[Mapping[str, Any]]]

IGNORED = ("iscrowd", "ignore", "difficult")
"""Flags of an annotation; an object with any of them is ignored."""


class CocoEvaluator:
    """The twelve COCO metrics over the images given to `update`, those without detections included.

    Label k is the category named ``classes[k - 1]``; None takes all categories by increasing id.
    ``image_ids`` maps a record's image id to COCO's; None means that the image id is COCO's id as text.
    """

    def __init__(
        self,
        ground_truth: GroundTruth,
        classes: Sequence[str] | None = None,
        image_ids: Mapping[str, int] | None = None,
    ) -> None:
        categories = sorted(ground_truth["categories"], key=lambda entry: entry["id"])
        by_name = {entry["name"]: entry["id"] for entry in categories}
        self.classes = tuple(by_name) if classes is None else tuple(classes)
        self.category_ids = [by_name[name] for name in self.classes]
        known = [entry["id"] for entry in ground_truth["images"]]
        self.image_ids = {str(one): one for one in known} if image_ids is None else dict(image_ids)
        self._truth = _index(ground_truth, _annotations(ground_truth))
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._results: dict[int, list[Result]] = {}

    def update(self, image_ids: list[str], detections: list[Detections]) -> None:
        """Add the detections of some images. Each image may be given once.

        Raises:
            ValueError: an image that is not in the ground truth or was given before, or a label outside
                1..K.
        """
        for image_id, one in zip(image_ids, detections, strict=True):
            if image_id not in self.image_ids:
                raise ValueError(f"image {image_id!r} is not in the ground truth")
            if len(one) and (int(one.labels.min()) < 1 or int(one.labels.max()) > len(self.classes)):
                raise ValueError(f"image {image_id!r}: labels must be 1..{len(self.classes)}")
            coco_id = self.image_ids[image_id]
            self.add([coco_id], to_results(coco_id, one, self.category_ids))

    def add(self, coco_ids: Iterable[int], results: Iterable[Result]) -> None:
        """Add ``results``, COCO's dictionaries, of the images ``coco_ids``. Errors as in `update`."""
        for coco_id in coco_ids:
            if coco_id in self._results:
                raise ValueError(f"image {coco_id} was given before")
            self._results[coco_id] = []
        for result in results:
            self._results[result["image_id"]].append(result)

    def compute(self) -> dict[str, Any]:
        """Return the twelve metrics, by the names in `COCO_METRICS`, and ``per_class``.

        ``per_class[name]`` has ``AP``, ``AP50``, and the numbers of ``objects`` (ignored ones included), of
        ``ignored`` objects and of ``detections``. A metric for which no object counts is NaN.
        """
        evaluation = self._evaluate()
        metrics: dict[str, Any] = {
            name: _or_nan(value) for name, value in zip(COCO_METRICS, evaluation.stats, strict=True)
        }
        objects, ignored, detections = self._counts()
        # (IoU thresholds, recall points, classes, areas: "all" is first, detections per image: 100 is last)
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        column = {category_id: number for number, category_id in enumerate(evaluation.params.catIds)}
        metrics["per_class"] = {
            name: {
                "AP": _mean(precision[:, :, column[category_id]]),
                "AP50": _mean(precision[0, :, column[category_id]]),
                "objects": objects[category_id],
                "ignored": ignored[category_id],
                "detections": detections[category_id],
            }
            for name, category_id in zip(self.classes, self.category_ids, strict=True)
        }
        return metrics

    def write_results(self, path: Path | str) -> None:
        """Write the detections given so far as a results file for COCO's server. Errors as `write_json`."""
        write_coco_results(path, self._all_results())

    def _all_results(self) -> Iterator[Result]:
        for image_id in sorted(self._results):
            yield from self._results[image_id]

    def _evaluate(self) -> COCOeval:
        # pycocotools needs the area of each detection, and ids from 1: it takes 0 for "unmatched".
        detections = [
            {**result, "id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
            for number, result in enumerate(self._all_results(), start=1)
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._truth, _index(self._truth.dataset, detections), "bbox")
            evaluation.params.imgIds = sorted(self._results)
            evaluation.params.catIds = sorted(self.category_ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation

    def _counts(self) -> tuple[Counter[int], Counter[int], Counter[int]]:
        """Return, by category, the objects and ignored objects on the images given, and the detections."""
        given = [one for one in self._truth.dataset["annotations"] if one["image_id"] in self._results]
        return (
            Counter(one["category_id"] for one in given),
            Counter(one["category_id"] for one in given if one["iscrowd"]),
            Counter(one["category_id"] for one in self._all_results()),
        )


def score_coco_results(path: Path | str, ground_truth: GroundTruth) -> CocoEvaluator:
    """Return an evaluator with the detections of a results file, for all images of the ground truth.

    Logs warnings and raises InputError as `read_coco_results` does.
    """
    evaluator = CocoEvaluator(ground_truth)
    sizes = {one["id"]: (one.get("height", 0), one.get("width", 0)) for one in ground_truth["images"]}
    evaluator.add(sizes, read_coco_results(path, sizes, evaluator.category_ids))
    return evaluator


def ground_truth_of(records: Sequence[ImageRecord], classes: Sequence[str]) -> GroundTruth:
    """Return records as COCO's dictionary: images 1, 2, ... in their order, categories 1..K."""
    annotations = []
    for image_id, record in enumerate(records, start=1):
        targets = record.targets
        is_ignored = (targets.crowd | targets.difficult).tolist()
        columns = (targets.boxes.tolist(), targets.labels.tolist(), targets.area.tolist(), is_ignored)
        for (x1, y1, x2, y2), label, area, ignored in zip(*columns, strict=True):
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": int(ignored),
                }
            )
    return {
        "images": [
            {"id": number, "height": record.height, "width": record.width}
            for number, record in enumerate(records, start=1)
        ],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
        "annotations": annotations,
    }


def _annotations(ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """Return what pycocotools needs of the annotations, with ids from 1: it takes 0 for "unmatched"."""
    return [
        {
            "id": number,
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": entry["bbox"],
            "area": entry.get("area", entry["bbox"][2] * entry["bbox"][3]),
            "iscrowd": int(any(entry.get(flag, 0) for flag in IGNORED)),
        }
        for number, entry in enumerate(ground_truth["annotations"], start=1)
    ]


def _index(ground_truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = {
            "images": [{"id": entry["id"]} for entry in ground_truth["images"]],
            "categories": [{"id": entry["id"]} for entry in ground_truth["categories"]],
            "annotations": annotations,
        }
        index.createIndex()
    return index


def _or_nan(value: float) -> float:
    return float(value) if value > -1 else float("nan")  # pycocotools writes -1 for "no objects"


def _mean(precision: NDArray[np.float64]) -> float:
    return float(precision.mean()) if (precision > -1).all() else float("nan")
