"""COCO's curves on columns against the arrays of pycocotools, and by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from detector.evaluation.coco_metrics import CocoDetections, CocoObjects, coco_curves

from .test_coco import as_coco, evaluation_of, random_records


def columns(
    objects: Sequence[tuple[float, ...]], found: Sequence[tuple[float, ...]]
) -> tuple[CocoObjects, CocoDetections]:
    """Rows are image, category, x, y, width, height, then area and crowd of objects, or the score."""
    truth, results = np.array(objects, float).reshape(-1, 8), np.array(found, float).reshape(-1, 7)
    (images, categories), (found_on, found_as) = truth[:, :2].astype(int).T, results[:, :2].astype(int).T
    return (
        CocoObjects(images, categories, truth[:, 2:6], areas=truth[:, 6], crowd=truth[:, 7] > 0),
        CocoDetections(found_on, found_as, results[:, 2:6], scores=results[:, 6]),
    )


def test_the_precision_at_every_recall_is_that_of_pycocotools() -> None:
    truth, results = as_coco(*random_records(5, images=40))
    evaluation = evaluation_of(truth, results)
    objects = [
        (one["image_id"], one["category_id"] - 1, *one["bbox"], one["area"], one["iscrowd"])
        for one in truth["annotations"]
    ]
    found = [(one["image_id"], one["category_id"] - 1, *one["bbox"], one["score"]) for one in results]
    curves = coco_curves(*columns(objects, found), categories=2)
    assert np.array_equal(curves.precision, evaluation.eval["precision"][..., -1])
    assert np.array_equal(curves.recall, evaluation.eval["recall"])
    assert 0.1 < curves.precision.mean() < 0.9


def test_a_crowd_region_is_matched_again_and_again_and_a_taken_object_is_not() -> None:
    box = (10, 10, 40, 40)
    crowd = (0, 0, 60, 10, 40, 40, 1600, 1)
    hit, on_crowd, late = (0, 0, *box, 0.9), (0, 0, 60, 10, 40, 40, 0.8), (0, 0, *box, 0.1)
    objects = [(0, 0, *box, 1600, 0), crowd, (0, 0, 200, 10, 40, 40, 1600, 0)]
    last = (0, 0, 200, 10, 40, 40, 0.05)
    curves = coco_curves(*columns(objects, [hit, on_crowd, on_crowd, late, last]), categories=1)
    # Of the five detections two are hits, two count as neither, and the second on the taken object is wrong.
    assert curves.recall[0, 0, 0].tolist() == [0.5, 1, 1]
    assert curves.precision[0, :, 0, 0] == pytest.approx([1] * 51 + [2 / 3] * 50)


def test_of_equal_overlaps_the_last_object_is_taken_unless_it_is_ignored() -> None:
    box = (0, 0, 40, 40)
    for first_area, second_area, expected in ((100, 1600, "m"), (1600, 100, "s")):
        objects = [(0, 0, *box, first_area, 0), (0, 0, *box, second_area, 0)]
        curves = coco_curves(*columns(objects, [(0, 0, *box, 0.5)]), categories=1)
        metrics = curves.metrics()
        # Whichever range is looked at, its own object is the one that counts there.
        assert (metrics["ARs"], metrics["ARm"], metrics["AR100"]) == (1, 1, 0.5)
        assert math.isnan(metrics["ARl"])
        assert metrics[f"AP{expected}"] == pytest.approx(1)


def test_only_the_first_hundred_detections_of_a_class_on_an_image_count() -> None:
    objects = [(image, 0, 0, 0, 40, 40, 1600, 0) for image in range(2)]
    wrong = [(0, 0, 500, 500, 9, 9, 0.5)] * 100
    found = [*wrong, (0, 0, 0, 0, 40, 40, 0.4), (1, 0, 0, 0, 40, 40, 0.4)]
    assert coco_curves(*columns(objects, found), categories=1).recall[0, 0, 0, -1] == 0.5
    assert coco_curves(*columns(objects, found[1:]), categories=1).recall[0, 0, 0, -1] == 1


def test_without_objects_nothing_counts_and_without_detections_all_is_zero() -> None:
    curves = coco_curves(*columns([], [(0, 0, 0, 0, 9, 9, 0.5)]), categories=2)
    assert all(math.isnan(value) for value in curves.metrics().values())
    assert all(math.isnan(value) for value in curves.of_category(1))
    curves = coco_curves(*columns([(0, 1, 0, 0, 9, 9, 81, 0)], []), categories=2)
    assert (curves.metrics()["AP"], curves.of_category(1)) == (0, (0, 0))
    assert math.isnan(curves.of_category(0)[0])
