"""CorLoc against a slow evaluation of its definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.core.structures import Detections, ImageRecord, Targets
from detector.evaluation.corloc import corloc

CLASSES = ("a", "b", "c")
Box = tuple[float, float, float, float]


def record(name: str, objects: list[tuple[int, Box, bool, bool]]) -> ImageRecord:
    labels, boxes, difficult, crowd = ([one[part] for one in objects] for part in range(4))
    targets = Targets.make(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(difficult, dtype=torch.bool),
        torch.tensor(crowd, dtype=torch.bool),
    )
    return ImageRecord(image_id=name, path=Path(name), height=100, width=100, targets=targets)


def detections(boxes: dict[int, Box]) -> Detections:
    return Detections(
        boxes=torch.tensor(list(boxes.values()), dtype=torch.float32).reshape(-1, 4),
        scores=torch.ones(len(boxes)),
        labels=torch.tensor(list(boxes), dtype=torch.int64),
    )


def pixels(box: Box) -> set[tuple[int, int]]:
    """Return the pixels of a box with whole corners: the oracle's IoU counts them."""
    x1, y1, x2, y2 = map(int, box)
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


def overlap(first: Box, second: Box) -> float:
    one, other = pixels(first), pixels(second)
    return len(one & other) / max(len(one | other), 1)


def by_definition(
    images: list[list[tuple[int, Box, bool, bool]]], best: list[dict[int, Box]]
) -> tuple[float, list[float]]:
    shares = []
    for label in range(1, len(CLASSES) + 1):
        outcomes = []
        for objects, found in zip(images, best, strict=True):
            own = [(box, difficult, crowd) for name, box, difficult, crowd in objects if name == label]
            if not any(not difficult and not crowd for _, difficult, crowd in own):
                continue
            hits = [
                overlap(found[label], box) >= 0.5 for box, _, crowd in own if not crowd and label in found
            ]
            outcomes.append(any(hits))
        shares.append(sum(outcomes) / len(outcomes) if outcomes else math.nan)
    known = [share for share in shares if not math.isnan(share)]
    return (sum(known) / len(known) if known else math.nan), shares


@pytest.mark.parametrize("seed", range(20))
def test_equals_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def box() -> Box:
        x, y, w, h = (int(number) for number in rng.integers(1, 8, 4))
        return x, y, x + w, y + h

    images = [
        [
            (int(rng.integers(1, 4)), box(), bool(rng.random() < 0.2), bool(rng.random() < 0.2))
            for _ in range(rng.integers(0, 5))
        ]
        for _ in range(12)
    ]
    best = [{label: box() for label in (1, 2, 3) if rng.random() < 0.9} for _ in images]
    for objects, found in zip(images, best, strict=True):  # enough hits
        found.update({label: one for label, one, *_ in objects if rng.random() < 0.5})
    records = [record(str(number), objects) for number, objects in enumerate(images)]
    by_id = {str(number): detections(found) for number, found in enumerate(best)}
    result, (mean, shares) = corloc(records, CLASSES, by_id), by_definition(images, best)
    assert result["CorLoc"] == pytest.approx(mean, nan_ok=True)
    rows = [result["per_class"][name]["CorLoc"] for name in CLASSES]
    assert rows == pytest.approx(shares, nan_ok=True)


def test_the_bound_is_one_half_and_counts() -> None:
    image = record("x", [(1, (0, 0, 10, 10), False, False)])
    at = corloc([image], CLASSES, {"x": detections({1: (0, 0, 5, 10)})})
    below = corloc([image], CLASSES, {"x": detections({1: (0, 0, 5, 9)})})
    assert (at["CorLoc"], below["CorLoc"]) == (1.0, 0.0)
    assert at["images"] == 1
    assert at["per_class"]["a"] == {"CorLoc": 1.0, "images": 1}
    assert math.isnan(at["per_class"]["b"]["CorLoc"])
    nothing = corloc([record("y", [])], CLASSES, {"y": detections({})})
    assert math.isnan(nothing["CorLoc"])
    assert nothing["images"] == 0
