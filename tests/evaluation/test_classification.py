"""Classification mAP against slow loops in exact fractions, a hand-made example, and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from detector.core.structures import Targets
from detector.evaluation.classification import ClassificationEvaluator
from tests.evaluation.reference import average_precisions


def objects(*labels: int, difficult: tuple[int, ...] = (), crowd: tuple[int, ...] = ()) -> Targets:
    """Return targets with an object a label, and ``difficult`` and ``crowd`` ones besides."""
    found = [*labels, *difficult, *crowd]
    flags = [number >= len(labels) for number in range(len(found))]
    is_crowd = [number >= len(labels) + len(difficult) for number in range(len(found))]
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0]]).expand(len(found), 4)
    return Targets.make(
        boxes,
        torch.tensor(found, dtype=torch.int64),
        torch.tensor(
            [flag and not group for flag, group in zip(flags, is_crowd, strict=True)], dtype=torch.bool
        ),
        torch.tensor(is_crowd, dtype=torch.bool),
    )


def test_presence_is_vocs_three_numbers() -> None:
    assert objects(1, 1, 3, difficult=(2, 3), crowd=(4,)).presence(5).tolist() == [1, 0, 1, 0, -1]
    assert Targets.empty().presence(2).tolist() == [-1, -1]


def test_a_worked_example() -> None:
    # Ranked: a (dog), b (none), c (dog), d (only a difficult dog: left out), e (none).
    truth = {
        "a": objects(1),
        "b": objects(2),
        "c": objects(1, 1),
        "d": objects(difficult=(1,)),
        "e": objects(),
    }
    evaluator = ClassificationEvaluator(truth, ("dog", "cat", "cow"))
    scores = {"a": 0.9, "b": 0.8, "d": 0.7, "c": 0.6, "e": 0.1}
    for image_id, score in scores.items():
        evaluator.update([image_id], torch.tensor([[score, 1 - score, 0.0]]))
    metrics = evaluator.compute()
    dog = metrics["per_class"]["dog"]
    # Recall 1/2 at precision 1, recall 1 at precision 2/3: six points of 1 and five of 2/3; two halves.
    assert dog["voc07_AP"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert dog["voc_AP"] == pytest.approx((1 + 2 / 3) / 2)
    assert (dog["images"], dog["difficult"]) == (2, 1)
    cat = metrics["per_class"]["cat"]  # falling 1 - score: e, c, d, b, a: the cat is the fourth
    assert cat["voc07_AP"] == cat["voc_AP"] == pytest.approx(1 / 4)
    assert math.isnan(metrics["per_class"]["cow"]["voc_AP"])
    assert metrics["voc_mAP"] == pytest.approx((5 / 6 + 1 / 4) / 2)


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    images, classes = draw(st.integers(1, 25)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    presence = rng.choice((-1, 0, 1), (images, classes), p=(0.5, 0.15, 0.35))
    return presence, rng.integers(0, draw(st.sampled_from((4, 1000))), (images, classes)) / 8  # some ties


def evaluate(presence: np.ndarray, scores: np.ndarray, order: np.ndarray) -> dict[str, Any]:
    truth = {
        str(number): objects(*np.flatnonzero(row == 1) + 1, difficult=tuple(np.flatnonzero(row == 0) + 1))
        for number, row in enumerate(presence)
    }
    evaluator = ClassificationEvaluator(truth, [f"class {k}" for k in range(presence.shape[1])])
    evaluator.update([str(number) for number in order], torch.from_numpy(scores[order]))
    return evaluator.compute()


@settings(max_examples=150, deadline=None)
@given(tables(), st.integers(0, 1000))
def test_both_average_precisions_equal_the_reference(table: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    presence, scores = table
    metrics = evaluate(presence, scores, np.random.default_rng(seed).permutation(len(presence)))
    for k, found in enumerate(metrics["per_class"].values()):
        ranked = sorted(range(len(presence)), key=lambda number: -scores[number, k])  # stable
        right = [bool(presence[number, k] > 0) for number in ranked if presence[number, k]]
        wanted = average_precisions(right, sum(right))
        if wanted is None:
            assert math.isnan(found["voc07_AP"])
            assert math.isnan(found["voc_AP"])
        else:
            assert found["voc07_AP"] == pytest.approx(float(wanted[0]), abs=1e-12)
            assert found["voc_AP"] == pytest.approx(float(wanted[1]), abs=1e-12)


def test_area_is_scikit_learns_where_precision_never_rises_again() -> None:
    """scikit-learn has no envelope: both agree on a ranking whose precision only falls from hit to hit."""
    right = np.array([1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0], dtype=bool)
    scores = np.linspace(1, 0, len(right))
    found = evaluate(np.where(right, 1, -1)[:, None], scores[:, None], np.arange(len(right)))
    assert found["voc_mAP"] == pytest.approx(average_precision_score(right, scores), abs=1e-12)


def test_area_is_never_below_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        right, scores = rng.random(30) < 0.4, rng.random(30)
        found = evaluate(np.where(right, 1, -1)[:, None], scores[:, None], np.arange(30))
        assert found["voc_mAP"] >= average_precision_score(right, scores) - 1e-12


def test_only_the_images_given_count_and_none_twice() -> None:
    truth = {"a": objects(1), "b": objects(1), "c": objects()}
    evaluator = ClassificationEvaluator(truth, ("dog",))
    assert math.isnan(evaluator.compute()["voc_mAP"])
    evaluator.update(["c", "a"], torch.tensor([[0.9], [0.1]]))
    assert evaluator.compute()["per_class"]["dog"]["images"] == 1
    assert evaluator.compute()["voc_mAP"] == pytest.approx(0.5)
    for ids, scores, message in (
        (["a"], torch.zeros(1, 1), "given before"),
        (["x"], torch.zeros(1, 1), "not in the ground truth"),
        (["b"], torch.zeros(1, 2), "shape"),
        (["b"], torch.tensor([[math.nan]]), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator.update(ids, scores)
    evaluator.reset()
    evaluator.update(["a"], torch.ones(1, 1))
    assert evaluator.compute()["voc07_mAP"] == 1.0
