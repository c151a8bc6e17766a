"""Class scores beside an image: what has to change in the picture, and that nothing unusual breaks it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from detector.visualize import (
    ClassifiedImage,
    class_colour,
    draw_class_scores,
    label_with_classes,
    run_charts,
    score_rows,
)

CLASSES = ("disc", "Blutplättchen", "Ωжñ")
GREY = 128


class Curve(NamedTuple):
    recall: np.ndarray
    precision: np.ndarray


def blank(height: int = 60, width: int = 90) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def bar(drawn: np.ndarray, label: int) -> tuple[int, int]:
    """Return the length and the top of a class's bar."""
    y, x = np.nonzero((drawn == class_colour(label)).all(axis=2))
    return int(x.max() - x.min() + 1), int(y.min())


def test_bars_are_as_long_as_the_scores_and_the_best_is_on_top() -> None:
    drawn = draw_class_scores(ClassifiedImage(blank(), [0.25, 1.0, 0.5]), CLASSES)
    lengths, tops = zip(*(bar(drawn, label) for label in (1, 2, 3)), strict=True)
    assert np.allclose(lengths, np.array([0.25, 1.0, 0.5]) * 60, atol=1.5)
    assert tops[1] < tops[2] < tops[0]
    assert not (drawn == class_colour(4)).all(axis=2).any()


def test_the_image_keeps_its_proportions_and_is_not_drawn_over() -> None:
    drawn = draw_class_scores(ClassifiedImage(blank(60, 90), [0.5, 0.5, 0.5]), CLASSES)
    y, x = np.nonzero((drawn == GREY).all(axis=2)[:, :200])
    assert (x.max() + 1, y.max() + 1) == (200, 133)
    assert len(y) == 200 * 133


def test_what_is_there_is_told_from_what_is_not() -> None:
    drawn = [
        draw_class_scores(ClassifiedImage(blank(), [0.5, 0.4, 0.3], presence), CLASSES)
        for presence in (None, (-1, -1, -1), (1, -1, -1), (0, -1, -1), (-1, 1, -1))
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert len({one.tobytes() for one in drawn[1:]}) == 4


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (1200, 1600)])
def test_odd_images_many_classes_and_long_names_fit(size: tuple[int, int]) -> None:
    names = [f"class {number} with a name that is much too long for its line" for number in range(80)]
    shown = ClassifiedImage(blank(*size), np.linspace(0, 1, 80).tolist(), [0] * 80)
    plain = draw_class_scores(ClassifiedImage(blank(), [0.5, 0.5, 0.5]), CLASSES)
    assert draw_class_scores(shown, names).shape == plain.shape


def picture(**changes: Any) -> np.ndarray:
    shown: dict[str, Any] = {
        "losses": {"loss_cls": [(20, 1.0), (40, 0.5)]},
        "pr_curves": {name: Curve(np.linspace(0.1, 1, 9), np.linspace(1, 0.4, 9)) for name in CLASSES},
        "metrics": {"voc07_mAP": 0.5, "per_class": {name: {"voc07_AP": 0.5} for name in CLASSES}},
        "best": [ClassifiedImage(blank(), [0.9, 0.1, 0.2], [1, -1, -1])] * 2,
        "worst": [ClassifiedImage(blank(), [0.2, 0.9, 0.2], [1, -1, 0])],
        "classes": CLASSES,
        "title": "A run",
    }
    shown |= changes
    groups = shown.pop("best"), shown.pop("worst")
    plots = run_charts(**shown)
    return np.concatenate((plots, score_rows(*groups, shown["classes"], plots.shape[1])))


def test_the_page_shows_each_part() -> None:
    whole = picture()
    changes = {
        "losses": {"loss_cls": [(20, 1.0), (40, 0.9)]},
        "best": [ClassifiedImage(blank(), [0.8, 0.1, 0.2], [1, -1, -1])] * 2,
        "worst": [ClassifiedImage(blank(), [0.2, 0.9, 0.2], [1, -1, -1])],
        "evaluations": {"voc07_mAP": [(20, 0.2), (40, 0.5)]},
    }
    for name, value in changes.items():
        other = picture(**{name: value})
        assert other.shape == whole.shape
        assert (other != whole).any(), name
    assert len(picture(best=[], worst=[])) < len(whole)
    many = [ClassifiedImage(blank(), [0.8, 0.1, 0.2])] * 9
    assert picture(best=many).shape == whole.shape


def test_classes_are_written_into_the_corner_by_falling_score_as_many_as_fit() -> None:
    grey = np.full((100, 300, 3), 128, np.uint8)
    classes, scores = ["a", "b", "c"], [0.6, 0.9, 0.4]
    drawn = label_with_classes(grey, scores, classes, 0.5)
    assert (grey == 128).all()
    assert drawn[0, 0].tolist() == list(class_colour(2))  # the best class
    changed = np.flatnonzero((drawn != 128).any(axis=(1, 2)))
    assert drawn[changed[-1], 0].tolist() == list(class_colour(1))
    assert (label_with_classes(grey, scores, classes, 0.95) == 128).all()
    assert (label_with_classes(grey, [0.9] * 3, classes, 0.0)[:, 250:] == 128).all()
    flat = np.full((5, 300, 3), 128, np.uint8)
    assert (label_with_classes(flat, scores, classes, 0.5) == 128).all()  # no line fits
