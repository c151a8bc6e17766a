"""Scoring detections in files against annotations in files, without images, a network or compiled code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from detector.data.coco.file import read_coco
from detector.data.coco.source import CocoSource
from detector.data.source import Dataset, DataSource
from detector.data.voc.source import VocSource
from detector.evaluation.coco import CocoEvaluator, GroundTruth, ground_truth_of, score_coco_results
from detector.evaluation.coco_results import read_coco_results
from detector.evaluation.result_files import other_result_files, read_checked_files, score_result_files
from detector.evaluation.voc import VocEvaluator

Metric = Literal["voc07", "voc", "coco"]


def score_detections(
    detections: Path, annotations: Path, metric: Metric, split: str, iou_threshold: float
) -> dict[str, Any]:
    """Return the metrics of ``detections``: a folder of VOC result files, or a COCO results JSON.

    ``annotations`` is a COCO annotation file, or the root of a VOC layout, of which ``split`` is read. In
    COCO's results for a VOC layout, images are numbered from 1 in the split's order and categories from 1
    in the order of the sorted class names of all annotations, as this project writes them.

    Raises:
        InputError: a file is missing, malformed or made for other images or classes.
    """
    as_json = detections.suffix.lower() == ".json"
    if metric == "coco" and as_json and annotations.suffix.lower() == ".json":
        return score_coco_results(detections, read_coco(annotations)).compute()
    dataset, truth = read_truth(annotations, split, None if as_json else detections)
    evaluator: CocoEvaluator | VocEvaluator
    match metric, as_json:
        case "coco", True:
            evaluator = score_coco_results(detections, truth)
        case "coco", False:
            results = read_checked_files(detections, dataset.records, dataset.classes, split)
            evaluator = CocoEvaluator(truth, dataset.classes, dataset.coco_ids)
            evaluator.update(list(results), [rows.detections() for rows in results.values()])
        case _, True:
            evaluator = _score_by_voc(detections, dataset, truth, iou_threshold)
        case _:
            evaluator = score_result_files(detections, dataset.records, dataset.classes, split, iou_threshold)
    return evaluator.compute()


def read_truth(
    annotations: Path, split: str, result_folder: Path | None = None
) -> tuple[Dataset, GroundTruth]:
    """Read annotations of either format without opening images; also return them as COCO's dictionary.

    The classes of a VOC layout are those of all its annotations. If ``result_folder`` has VOC result files
    only for the classes of the split, the annotations of other splits are not read: the means are the same.
    """
    source: DataSource = VocSource(annotations)
    if annotations.suffix.lower() == ".json":
        source = CocoSource(annotations.parent, annotations=annotations.name, images=".")
    by_split = source.declares_classes or result_folder is not None
    classes = None if by_split else source.class_names(split)
    dataset = source.load(split, classes, training=False, require_images=False)
    has_others = result_folder is not None and other_result_files(result_folder, split, dataset.classes)
    if has_others and not source.declares_classes:
        return read_truth(annotations, split)
    truth = source.coco_annotations(split, dataset.classes, split)
    return dataset, truth or ground_truth_of(dataset.records, dataset.classes)


def _score_by_voc(path: Path, dataset: Dataset, truth: GroundTruth, iou_threshold: float) -> VocEvaluator:
    categories = {entry["name"]: entry["id"] for entry in truth["categories"]}
    labels = {categories[name]: label for label, name in enumerate(dataset.classes, start=1)}
    sizes = {dataset.coco_ids[one.image_id]: (one.height, one.width) for one in dataset.records}
    results = read_coco_results(path, sizes, labels)
    boxes = torch.tensor([one["bbox"] for one in results], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.tensor([one["score"] for one in results], dtype=torch.float64)
    kinds = torch.tensor([labels[one["category_id"]] for one in results], dtype=torch.int64)
    rows: dict[int, list[int]] = {coco_id: [] for coco_id in dataset.coco_ids.values()}
    for row, result in enumerate(results):
        rows[result["image_id"]].append(row)
    evaluator = VocEvaluator(dataset.records, dataset.classes, iou_threshold)
    for image_id, coco_id in dataset.coco_ids.items():
        own = torch.tensor(rows[coco_id], dtype=torch.int64)
        evaluator.add(image_id, boxes[own], scores[own], kinds[own], order=own)
    return evaluator
