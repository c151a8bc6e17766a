"""filter_proposals against the obvious loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core.structures import Proposals
from detector.proposals.filtering import filter_proposals, unique_proposals

coordinates = st.sampled_from([-5.0, -0.0, 0.0, 1.0, 2.5, 7.0, 30.0, math.nan, math.inf])
scores = st.sampled_from([0.0, 0.5, 0.5, 1.0, -3.0, math.nan, -math.inf])


def slow_filter(
    rows: list[tuple[float, ...]],
    ranks: list[float] | None,
    size: tuple[int, int],
    min_size: float,
    top_k: int | None,
    deduplicate: bool,
) -> list[tuple[tuple[float, ...], float | None]]:
    height, width = size
    kept: list[tuple[tuple[float, ...], float | None]] = []
    for place, row in enumerate(rows):
        rank = None if ranks is None else ranks[place]
        if not all(math.isfinite(value) for value in row) or (rank is not None and math.isnan(rank)):
            continue
        x1, x2 = (min(max(row[i], 0.0), width) for i in (0, 2))
        y1, y2 = (min(max(row[i], 0.0), height) for i in (1, 3))
        if x2 - x1 >= min_size and y2 - y1 >= min_size:
            kept.append(((x1, y1, x2, y2), rank))
    if ranks is not None:
        kept.sort(key=lambda pair: -(pair[1] or 0.0))
    if deduplicate:
        kept = [pair for i, pair in enumerate(kept) if pair[0] not in [before[0] for before in kept[:i]]]
    return kept[:top_k]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.tuples(*[coordinates] * 4), scores), max_size=12),
    st.booleans(),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
)
def test_equals_the_obvious_loop(
    rows: list[tuple[tuple[float, ...], float]],
    scored: bool,
    min_size: float,
    top_k: int | None,
    deduplicate: bool,
) -> None:
    boxes = [row for row, _ in rows]
    ranks = [rank for _, rank in rows] if scored else None
    found = filter_proposals(
        Proposals(
            boxes=torch.tensor(boxes).reshape(-1, 4), scores=None if ranks is None else torch.tensor(ranks)
        ),
        (20, 10),
        min_size=min_size,
        top_k=top_k,
        deduplicate=deduplicate,
    )
    wanted = slow_filter(boxes, ranks, (20, 10), min_size, top_k, deduplicate)
    assert [tuple(row) for row in found.boxes.tolist()] == [row for row, _ in wanted]
    assert (found.scores is None) == (ranks is None)
    if found.scores is not None:
        assert found.scores.tolist() == [rank for _, rank in wanted]


def test_equal_scores_keep_their_order() -> None:
    count = 500
    boxes = torch.arange(count * 4, dtype=torch.float32).reshape(count, 4)
    boxes[:, 2:] += 5000
    proposals = Proposals(boxes=boxes, scores=torch.ones(count))
    assert torch.equal(filter_proposals(proposals, (10**5, 10**5), top_k=100).boxes, boxes[:100])


def test_the_argument_is_left_alone() -> None:
    boxes = torch.tensor([[-5.0, 0, 50, 50], [0, 0, 5, 5]])
    filter_proposals(Proposals(boxes=boxes), (10, 10))
    assert boxes[0].tolist() == [-5, 0, 50, 50]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_of_equal_boxes_the_first_stays(count: int) -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2], [-0.0, 0, 1, 1], [0, 0, 1, 1]])[:count]
    found = unique_proposals(Proposals(boxes=boxes, scores=torch.arange(count, dtype=torch.float32)))
    assert found.scores is not None
    assert found.scores.tolist() == list(range(count))[:2]
