"""Recall against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detector.core.structures import ImageRecord, Proposals, Targets
from detector.proposals.recall import best_overlaps, recall


def make_record(
    image_id: str, boxes: list[list[float]], difficult: list[bool], crowd: list[bool]
) -> ImageRecord:
    targets = Targets.make(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.ones(len(boxes), dtype=torch.int64),
        torch.tensor(difficult, dtype=torch.bool),
        torch.tensor(crowd, dtype=torch.bool),
    )
    return ImageRecord(image_id=image_id, path=Path("none"), height=100, width=100, targets=targets)


RECORDS = [
    make_record(
        "a",
        [[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 100, 100]],
        difficult=[False, True, False],
        crowd=[False, False, True],
    ),
    make_record("b", [[20, 20, 40, 40]], difficult=[False], crowd=[False]),
    make_record("empty", [], difficult=[], crowd=[]),
]
STORE = {
    # IoU 0.6 with the first object of a, 0 with its second
    "a": Proposals(boxes=torch.tensor([[0.0, 0, 10, 6]]), scores=torch.tensor([0.3])),
    # IoU 0.25 and then 1 with the object of b, the better one first by score
    "b": Proposals(
        boxes=torch.tensor([[20.0, 20, 30, 30], [20, 20, 40, 40]]), scores=torch.tensor([0.1, 0.9])
    ),
    "empty": Proposals(boxes=torch.zeros(0, 4)),
}


def test_best_overlaps_of_each_object() -> None:
    assert best_overlaps(RECORDS[0].targets.boxes, STORE["a"]).tolist() == pytest.approx([0.6, 0, 0.006])
    assert best_overlaps(RECORDS[0].targets.boxes, STORE["empty"]).tolist() == [0, 0, 0]
    assert best_overlaps(RECORDS[2].targets.boxes, STORE["b"]).shape == (0,)


def test_crowds_never_count_and_difficult_ones_by_choice() -> None:
    figures = recall(RECORDS, STORE)
    assert figures == pytest.approx(
        {
            "recall_0.5": 2 / 3,
            "recall_0.7": 1 / 3,
            "mean_best_overlap": 1.6 / 3,
            "objects": 3,
            "images": 3,
            "proposals_per_image": 1,
        }
    )
    easy = recall(RECORDS, STORE, (0.5, 0.6, 0.95), include_difficult=False)
    assert [easy["recall_0.5"], easy["recall_0.6"], easy["recall_0.95"]] == pytest.approx([1, 1, 0.5])
    assert easy["objects"] == 2


def test_the_limit_takes_the_best_by_score() -> None:
    figures = recall(RECORDS[1:2], STORE, limit=1)
    assert (figures["recall_0.7"], figures["proposals_per_image"]) == (1, 1)


def test_no_object_at_all() -> None:
    assert recall(RECORDS[2:], STORE)["recall_0.5"] == 0
