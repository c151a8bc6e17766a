"""COCO's detection metrics for data sets of any format, with the digits of pycocotools.

The ground truth is a dictionary as in COCO's annotation files, with ``images``, ``categories`` and
``annotations``. Crowd regions are ignored as COCO ignores them. Objects with ``ignore: 1`` or
``difficult: 1`` are ignored too: missing one is not counted, and a detection on one is not a false positive.
They are treated as crowd regions, because only those are ignored by pycocotools, which overwrites ``ignore``
by ``iscrowd``. COCO's own annotation files have neither flag, so their metrics are exactly those of
pycocotools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.core.records import Records
from detector.core.structures import Detections, ImageRecord
from detector.evaluation.coco_metrics import CocoDetections, CocoObjects, coco_curves
from detector.evaluation.coco_results import Result, read_coco_results, write_coco_results

GroundTruth = Mapping[str, Sequence[Mapping[str, Any]]]

IGNORED = ("iscrowd", "ignore", "difficult")
"""Flags of an annotation; an object with any of them is ignored."""


class ImageResults(NamedTuple):
    """The D detections of one image: ``boxes`` (D, 4) are (x, y, width, height) in pixels, float64.

    ``categories`` (D,) int64 are places in the evaluator's sorted category ids; ``scores`` (D,) are float64.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    categories: NDArray[np.int64]


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
        self._sorted_ids = sorted(set(self.category_ids))
        self._place = {category_id: place for place, category_id in enumerate(self._sorted_ids)}
        self._places = np.array([self._place[one] for one in self.category_ids], dtype=np.int64)
        # The objects' `images` are set when it is known which images are scored.
        self._objects, self._images_of_objects = _objects(ground_truth["annotations"], self._place)
        self.reset()

    def reset(self) -> None:
        """Forget all detections."""
        self._results: dict[int, ImageResults] = {}

    def update(self, image_ids: list[str], detections: list[Detections]) -> None:
        """Add the detections of some images. Each image may be given once.

        Raises:
            ValueError: an image that is not in the ground truth or was given before, or a label outside
                1..K.
        """
        for image_id, one in zip(image_ids, detections, strict=True):
            if image_id not in self.image_ids:
                raise ValueError(f"image {image_id!r} is not in the ground truth")
            labels = one.labels.cpu().numpy()
            if len(labels) and (labels.min() < 1 or labels.max() > len(self.classes)):
                raise ValueError(f"image {image_id!r}: labels must be 1..{len(self.classes)}")
            boxes = one.boxes.cpu().numpy().astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            scores = one.scores.cpu().numpy().astype(np.float64)
            self._add_image(self.image_ids[image_id], ImageResults(boxes, scores, self._places[labels - 1]))

    def add(self, coco_ids: Iterable[int], results: Iterable[Result]) -> None:
        """Add ``results``, COCO's dictionaries, of the images ``coco_ids``.

        Raises:
            ValueError: an image was given before, or a result is of an image or a category that is not among
                ``coco_ids`` and the classes' ids.
        """
        by_image: dict[int, list[Result]] = {coco_id: [] for coco_id in coco_ids}
        for result in results:
            if result["image_id"] not in by_image:
                raise ValueError(f"image {result['image_id']} is not among those given")
            if result["category_id"] not in self._place:
                raise ValueError(f"category {result['category_id']} is none of the classes")
            by_image[result["image_id"]].append(result)
        for coco_id, mine in by_image.items():
            boxes = np.array([one["bbox"] for one in mine], dtype=np.float64).reshape(-1, 4)
            scores = np.array([one["score"] for one in mine], dtype=np.float64)
            categories = np.array([self._place[one["category_id"]] for one in mine], dtype=np.int64)
            self._add_image(coco_id, ImageResults(boxes, scores, categories))

    def _add_image(self, coco_id: int, results: ImageResults) -> None:
        if coco_id in self._results:
            raise ValueError(f"image {coco_id} was given before")
        self._results[coco_id] = results

    def compute(self) -> dict[str, Any]:
        """Return the twelve metrics, by the names in `COCO_METRICS`, and ``per_class``.

        ``per_class[name]`` has ``AP``, ``AP50``, and the numbers of ``objects`` (ignored ones included), of
        ``ignored`` objects and of ``detections``. A metric for which no object counts is NaN.
        """
        objects, detections = self._given_objects(), self._all_detections()
        curves = coco_curves(objects, detections, len(self._sorted_ids))
        counts = {
            "objects": objects.categories,
            "ignored": objects.categories[objects.crowd],
            "detections": detections.categories,
        }
        columns = {
            name: np.bincount(column, minlength=len(self._sorted_ids)).tolist()
            for name, column in counts.items()
        }
        metrics: dict[str, Any] = dict(curves.metrics())
        metrics["per_class"] = {}
        for name, place in zip(self.classes, self._places.tolist(), strict=True):
            scores = dict(zip(("AP", "AP50"), curves.of_category(place), strict=True))
            metrics["per_class"][name] = scores | {key: column[place] for key, column in columns.items()}
        return metrics

    def write_results(self, path: Path | str) -> None:
        """Write the detections given so far as a results file for COCO's server.

        Raises:
            InputError: the file cannot be written.
            ValueError: a number is not finite.
        """
        images = (
            (image_id, one.boxes, one.scores, one.categories)
            for image_id, one in sorted(self._results.items())
        )
        write_coco_results(path, images, self._sorted_ids)

    def _given_objects(self) -> CocoObjects:
        """Return the objects of the images given so far, which are numbered in the order of their ids."""
        number = {image_id: number for number, image_id in enumerate(sorted(self._results))}
        images = np.array([number.get(one, -1) for one in self._images_of_objects], dtype=np.int64)
        return self._objects._replace(images=images).take(images >= 0)

    def _all_detections(self) -> CocoDetections:
        every = [results for _, results in sorted(self._results.items())]
        none = ImageResults(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))
        boxes, scores, categories = (np.concatenate(column) for column in zip(none, *every, strict=True))
        images = np.repeat(np.arange(len(every)), [len(one.scores) for one in every])
        return CocoDetections(images=images, categories=categories, boxes=boxes, scores=scores)


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
    columns = Records.of(records)
    objects = columns.objects
    boxes = objects.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    rows = (
        (objects.image_numbers() + 1).tolist(),
        objects.labels.tolist(),
        boxes.tolist(),
        objects.area.tolist(),
        (objects.crowd | objects.difficult).astype(np.int64).tolist(),
    )
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    return {
        "images": [
            {"id": number, "height": height, "width": width}
            for number, (height, width) in enumerate(columns.sizes.tolist(), start=1)
        ],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
        "annotations": [dict(zip(keys, row, strict=True)) for row in zip(*rows, strict=True)],
    }


def _objects(
    annotations: Iterable[Mapping[str, Any]], place: Mapping[int, int]
) -> tuple[CocoObjects, list[int]]:
    """Return the objects of the categories ``place`` as columns, and COCO's id of each one's image.

    Their numbers of images are not known yet, and -1.
    """
    entries = [entry for entry in annotations if entry["category_id"] in place]
    areas = [entry.get("area", entry["bbox"][2] * entry["bbox"][3]) for entry in entries]
    objects = CocoObjects(
        images=np.full(len(entries), -1),
        categories=np.array([place[entry["category_id"]] for entry in entries], dtype=np.int64),
        boxes=np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4),
        areas=np.array(areas, dtype=np.float64),
        crowd=np.array([any(entry.get(flag, 0) for flag in IGNORED) for entry in entries], dtype=bool),
    )
    return objects, [entry["image_id"] for entry in entries]
