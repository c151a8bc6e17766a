"""The VOC evaluator against an exact, slow copy of the development kit's rules."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core.structures import Detections, Targets
from detector.evaluation.voc import VocEvaluator

from .reference import Box, Found, Thing, average_precisions, verdicts

CLASSES = ("cat", "dog")
Things = dict[str, list[tuple[int, Thing]]]
AllFound = list[tuple[int, Found]]


def half_open(boxes: list[Box]) -> torch.Tensor:
    """Turn 1-based inclusive boxes into the project's."""
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) - torch.tensor([1.0, 1, 0, 0])


def targets(things: list[tuple[int, Thing]]) -> Targets:
    return Targets.make(
        half_open([thing.box for _, thing in things]),
        torch.tensor([label for label, _ in things], dtype=torch.int64),
        torch.tensor([thing.difficult for _, thing in things], dtype=torch.bool),
    )


def detections(found: list[tuple[int, float, Box]]) -> Detections:
    return Detections(
        boxes=half_open([box for _, _, box in found]),
        scores=torch.tensor([score for _, score, _ in found], dtype=torch.float32),
        labels=torch.tensor([label for label, _, _ in found], dtype=torch.int64),
    )


def evaluate(
    things: Things, found: AllFound, threshold: float = 0.5, update_order: list[str] | None = None
) -> dict[str, Any]:
    evaluator = VocEvaluator({i: targets(t) for i, t in things.items()}, CLASSES, threshold)
    for image in update_order or list(things):
        mine = [(label, f.score, f.box) for label, f in found if f.image == image]
        evaluator.update([image], [detections(mine)])
    return evaluator.compute()


def expected_metrics(things: Things, found: AllFound, label: int, threshold: str) -> tuple[float, float]:
    mine = {image: [thing for one, thing in all_ if one == label] for image, all_ in things.items()}
    # The kit reads a class's detections image after image, each image's in the detector's order.
    in_order = [f for image in things for one, f in found if one == label and f.image == image]
    objects = sum(not thing.difficult for all_ in mine.values() for thing in all_)
    metrics = average_precisions(verdicts(mine, in_order, Fraction(threshold)), objects)
    return (math.nan, math.nan) if metrics is None else (float(metrics[0]), float(metrics[1]))


# A small grid makes equal boxes, exact overlaps and ties frequent.
coordinates = st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(0, 3)] * 2)
boxes = coordinates.map(lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3]))
labels = st.integers(1, 2)
things_of_image = st.lists(st.tuples(labels, st.builds(Thing, boxes, st.booleans())), max_size=4)
all_things = st.fixed_dictionaries(dict.fromkeys("abc", things_of_image))
scores = st.sampled_from([0.125, 0.25, 0.5, 1.0])
all_found = st.lists(st.tuples(labels, st.builds(Found, st.sampled_from("abc"), scores, boxes)), max_size=25)


@settings(max_examples=300, deadline=None)
@given(all_things, all_found, st.sampled_from(["0.3", "0.5", "0.7", "1"]), st.permutations("abc"))
def test_equals_the_development_kit(
    things: Things, found: AllFound, threshold: str, update_order: list[str]
) -> None:
    metrics = evaluate(things, found, float(threshold), update_order)
    rows = metrics["per_class"]
    for label, name in enumerate(CLASSES, start=1):
        wanted = expected_metrics(things, found, label, threshold)
        got = (rows[name]["voc07_AP"], rows[name]["voc_AP"])
        assert got == pytest.approx(wanted, abs=1e-12, nan_ok=True)
        here = [thing for all_ in things.values() for one, thing in all_ if one == label]
        assert rows[name]["objects"] == len(here)
        assert rows[name]["difficult"] == sum(thing.difficult for thing in here)
        assert rows[name]["detections"] == sum(one == label for one, _ in found)
    known = [row["voc_AP"] for row in rows.values() if not math.isnan(row["voc_AP"])]
    mean = sum(known) / len(known) if known else math.nan
    assert metrics["voc_mAP"] == pytest.approx(mean, nan_ok=True)


def test_iou_of_exactly_the_threshold_matches() -> None:
    things = {"a": [(1, Thing((1, 1, 10, 10), False))]}
    half = [(1, Found("a", 0.9, (1, 1, 5, 10)))]
    less = [(1, Found("a", 0.9, (1, 1, 5, 9)))]
    assert evaluate(things, half, 0.5)["voc_mAP"] == 1
    assert evaluate(things, less, 0.5)["voc_mAP"] == 0
    assert evaluate(things, [(1, Found("a", 0.9, (1, 1, 3, 10)))], 0.3)["voc_mAP"] == 1


def test_the_best_object_is_chosen_before_asking_if_it_is_taken_or_difficult() -> None:
    easy, hard = Thing((1, 1, 10, 10), False), Thing((1, 1, 10, 9), True)
    # Nearer to the difficult object: neither right nor wrong, although the easy one is free.
    tied_to_hard = [(1, Found("a", 0.9, (1, 1, 10, 9)))]
    assert evaluate({"a": [(1, easy), (1, hard)]}, tied_to_hard)["voc_mAP"] == 0
    # The taken object is nearer, so the second detection is a duplicate, not a hit on the free object.
    both = [(1, easy), (1, Thing((1, 1, 10, 14), False))]
    found = [(1, Found("a", 0.9, (1, 1, 10, 10))), (1, Found("a", 0.8, (1, 1, 10, 11)))]
    assert evaluate({"a": both}, found)["voc_mAP"] == 0.5


def test_equal_scores_keep_the_order_of_the_data_set() -> None:
    things = {"a": [(1, Thing((1, 1, 9, 9), False))], "b": []}
    hit, miss = (1, Found("a", 0.5, (1, 1, 9, 9))), (1, Found("b", 0.5, (1, 1, 9, 9)))
    assert evaluate(things, [miss, hit], update_order=["b", "a"])["voc_mAP"] == 1
    swapped = {"b": things["b"], "a": things["a"]}
    assert evaluate(swapped, [hit, miss])["voc_mAP"] == 0.5


def test_a_class_without_objects_has_no_part_in_the_mean() -> None:
    things = {"a": [(1, Thing((1, 1, 9, 9), False)), (2, Thing((1, 1, 9, 9), True))]}
    metrics = evaluate(things, [(1, Found("a", 0.5, (1, 1, 9, 9))), (2, Found("a", 0.5, (20, 1, 29, 9)))])
    assert metrics["voc_mAP"] == 1
    assert math.isnan(metrics["per_class"]["dog"]["voc07_AP"])


def test_half_pixel_boxes_measure_as_the_kit_measures_what_is_written() -> None:
    # The kit adds 1 to a side it reads; x1 = 0.5 is written as 1.5, so the side is 10 - 1.5 + 1 = 9.5.
    evaluator = VocEvaluator({"a": targets([(1, Thing((1, 1, 10, 10), False))])}, CLASSES, 0.95)
    found = Detections(boxes=torch.tensor([[0.5, 0, 10, 10]]), scores=torch.ones(1), labels=torch.tensor([1]))
    evaluator.update(["a"], [found])
    assert evaluator.compute()["voc_mAP"] == 1


def test_only_the_images_given_count_and_reset_forgets_them() -> None:
    things = {i: [(1, Thing((1, 1, 9, 9), False))] for i in "ab"}
    evaluator = VocEvaluator({i: targets(t) for i, t in things.items()}, CLASSES)
    evaluator.update(["a"], [detections([(1, 0.5, (1, 1, 9, 9))])])
    assert evaluator.compute()["voc_mAP"] == 1
    evaluator.update(["b"], [Detections.empty()])
    assert evaluator.compute()["voc_mAP"] == 0.5
    evaluator.reset()
    assert math.isnan(evaluator.compute()["voc_mAP"])
    assert evaluator.precision_recall()["cat"].objects == 0


def test_the_curve_has_a_place_for_every_detection_that_counts() -> None:
    things = {"a": [(1, Thing((1, 1, 9, 9), False)), (1, Thing((21, 1, 29, 9), True))]}
    evaluator = VocEvaluator({i: targets(t) for i, t in things.items()}, CLASSES)
    found = [(1, 0.75, (21, 1, 29, 9)), (1, 0.5, (1, 1, 9, 9)), (1, 0.25, (1, 1, 9, 9))]
    evaluator.update(["a"], [detections(found)])
    curve = evaluator.precision_recall()["cat"]
    assert curve.scores.tolist() == [0.5, 0.25]
    assert curve.precision.tolist() == [1, 0.5]
    assert curve.recall.tolist() == [1, 1]


def test_misuse_is_an_error() -> None:
    evaluator = VocEvaluator({"a": Targets.empty()}, CLASSES)
    evaluator.update(["a"], [Detections.empty()])
    with pytest.raises(ValueError, match="'a' was given before"):
        evaluator.update(["a"], [Detections.empty()])
    with pytest.raises(ValueError, match="'z' is not in the ground truth"):
        evaluator.update(["z"], [Detections.empty()])
    evaluator.reset()
    with pytest.raises(ValueError, match=r"labels must be 1\.\.2"):
        evaluator.update(["a"], [detections([(3, 0.5, (1, 1, 9, 9))])])
    with pytest.raises(ValueError, match="iou_threshold"):
        VocEvaluator({}, CLASSES, iou_threshold=50)


def test_objects_as_detections_score_one() -> None:
    generator = random.Random(0)
    things: Things = {}
    for image in map(str, range(20)):
        corners = [(10 * n, generator.randint(1, 9)) for n in range(generator.randint(0, 5))]
        things[image] = [
            (generator.randint(1, 2), Thing((x, y, x + generator.randint(2, 8), y + 5), False))
            for x, y in corners
        ]
    found = [(label, Found(i, 0.5, thing.box)) for i, all_ in things.items() for label, thing in all_]
    metrics = evaluate(things, found)
    assert metrics["voc07_mAP"] == pytest.approx(1, abs=1e-15)
    assert metrics["voc_mAP"] == pytest.approx(1, abs=1e-15)
