"""Average precision of hand-made curves."""

import math

import numpy as np
import pytest

from detector.evaluation.average_precision import PrecisionRecall, area_ap, eleven_point_ap, precision_recall


def curve(right: list[bool], objects: int) -> PrecisionRecall:
    return precision_recall(np.array(right, dtype=bool), np.linspace(1, 0, len(right)), objects)


@pytest.mark.parametrize("tenths", range(1, 11))
def test_recall_of_exactly_k_tenths_reaches_its_point(tenths: int) -> None:
    assert eleven_point_ap(curve([True] * tenths, 10)) == pytest.approx((tenths + 1) / 11, abs=1e-15)


@pytest.mark.parametrize("objects", [10, 20, 30, 70, 110, 1230])
@pytest.mark.parametrize("tenths", [3, 6, 7])
def test_the_points_that_floats_miss(objects: int, tenths: int) -> None:
    hits = objects * tenths // 10
    assert eleven_point_ap(curve([True] * hits, objects)) == pytest.approx((tenths + 1) / 11, abs=1e-15)
    assert eleven_point_ap(curve([True] * (hits - 1), objects)) == pytest.approx(tenths / 11, abs=1e-15)


def test_a_curve_worked_by_hand() -> None:
    # Hit, miss, hit, miss of 4 objects: precision 1, 1/2, 2/3, 1/2 at recall 1/4, 1/4, 1/2, 1/2.
    worked = curve([True, False, True, False], 4)
    assert worked.recall.tolist() == [0.25, 0.25, 0.5, 0.5]
    assert worked.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert area_ap(worked) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert eleven_point_ap(worked) == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)


def test_no_detections_score_zero() -> None:
    assert eleven_point_ap(curve([], 5)) == 0
    assert area_ap(curve([], 5)) == 0


def test_no_objects_have_no_ap() -> None:
    nothing = curve([False, False], 0)
    assert math.isnan(eleven_point_ap(nothing))
    assert math.isnan(area_ap(nothing))
    assert np.isnan(nothing.recall).all()
