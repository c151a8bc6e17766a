"""The benchmark of COCO's evaluation on a small data set: the same numbers from every evaluator."""

from __future__ import annotations

import math

import pytest

from benchmarks.coco_evaluation import (
    by_pycocotools,
    by_this_project,
    by_voc,
    check,
    differences,
    make_case,
    parts,
)
from detector.evaluation.report import COCO_METRICS


def test_this_project_has_the_digits_of_pycocotools() -> None:
    case = make_case(images=40, classes=10, detections=60, seed=1)
    assert len(case.records) == len(case.detections) == 40
    ours, expected = by_this_project(case), by_pycocotools(case)
    assert not differences(ours, expected)
    assert all(0 < expected[name] < 1 for name in COCO_METRICS)
    voc = by_voc(case)
    for name, row in ours["per_class"].items():
        # Area AP at one IoU threshold is nearly the mean precision at 101 recalls.
        assert math.isnan(row["AP50"]) or row["AP50"] == pytest.approx(
            voc["per_class"][name]["voc_AP"], abs=0.1
        )
        assert row["detections"] == voc["per_class"][name]["detections"]
    check({"pycocotools": expected, "this project": ours})
    with pytest.raises(SystemExit, match="different"):
        check({"pycocotools": expected, "this project": {**ours, "AP": ours["AP"] + 1e-16}})
    assert all(took >= 0 for took in parts(case).values())
