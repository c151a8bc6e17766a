"""Sliding windows cover the image evenly, also their first few."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core import boxes as box_ops
from detector.core.errors import InputError
from detector.proposals.dense import dense_proposals
from detector.proposals.recall import best_overlaps

sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


@settings(max_examples=25, deadline=None)
@given(sizes, st.lists(st.floats(0.15, 2), min_size=1, max_size=3), st.floats(0.2, 1))
def test_windows_lie_inside_are_unique_and_reach_every_border(
    size: tuple[int, int], scales: list[float], stride: float
) -> None:
    boxes = dense_proposals(size, scales=scales, aspects=(0.5, 1, 2), stride_fraction=stride).boxes
    assert torch.equal(box_ops.clip(boxes, size), boxes)
    assert ((boxes[:, 2:] - boxes[:, :2]) > 0).all()
    assert len(torch.unique(boxes, dim=0)) == len(boxes)
    height, width = size
    assert boxes[:, :2].amin(dim=0).tolist() == [0, 0]
    torch.testing.assert_close(boxes[:, 2:].amax(dim=0), torch.tensor([float(width), float(height)]))


@pytest.mark.parametrize("stride", [0.2, 0.35, 1.0])
def test_neighbours_are_at_most_a_stride_apart(stride: float) -> None:
    boxes = dense_proposals((150, 190), scales=(0.3,), aspects=(1.0,), stride_fraction=stride).boxes
    for axis in (0, 1):
        starts = torch.unique(boxes[:, axis])
        assert (starts.diff() <= stride * 45 + 1e-3).all()
    overlaps = box_ops.iou(boxes, boxes).fill_diagonal_(0).amax(dim=1)
    assert (overlaps >= (1 - stride) / (1 + stride) - 1e-5).all()


def test_window_shapes_follow_scale_and_aspect() -> None:
    boxes = dense_proposals((100, 200), scales=(0.4,), aspects=(0.5, 2.0), stride_fraction=0.5).boxes
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    torch.testing.assert_close(width * height, torch.full_like(width, 1600.0))
    assert {round(float(aspect), 3) for aspect in width / height} == {0.5, 2.0}


def test_the_prefix_is_the_same_windows_and_spread_over_the_image() -> None:
    size = (160, 160)
    everything = dense_proposals(size).boxes
    prefix = dense_proposals(size, max_proposals=128).boxes
    assert torch.equal(prefix, everything[:128])
    centres = (prefix[:, :2] + prefix[:, 2:]) / 2
    quarters = torch.histogramdd(centres, bins=[2, 2], range=[0.0, 160.0, 0.0, 160.0]).hist
    assert quarters.min() >= 0.75 * 128 / 4


def _random_objects(count: int, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Objects of 26 to 96 pixels, at any place, a little longer than wide or the reverse."""
    side = torch.exp(torch.empty(count).uniform_(math.log(26), math.log(96), generator=generator))
    stretch = torch.exp(torch.empty(count).uniform_(-0.2, 0.2, generator=generator)).sqrt()
    extent = torch.stack((side * stretch, side / stretch), dim=1)
    room = torch.tensor([float(size[1]), float(size[0])]) - extent
    corner = torch.rand(count, 2, generator=generator) * room.clamp(min=0)
    return box_ops.clip(torch.cat((corner, corner + extent), dim=1), size)


def test_defaults_find_the_objects_of_the_quick_start() -> None:
    generator = torch.Generator().manual_seed(0)
    overlaps, counts = [], []
    for _ in range(60):
        size = (int(torch.randint(120, 201, (), generator=generator)),) * 2
        proposals = dense_proposals(size)
        counts.append(len(proposals))
        overlaps.append(best_overlaps(_random_objects(20, size, generator), proposals))
    best = torch.cat(overlaps)
    assert (best >= 0.5).float().mean() >= 0.98
    assert (best >= 0.7).float().mean() >= 0.85
    assert 600 <= sum(counts) / len(counts) <= 1200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (0, 5)}, "at least 1 x 1"),
        ({"size": (5, 5), "scales": ()}, "must be positive"),
        ({"size": (5, 5), "aspects": (-1.0,)}, "must be positive"),
        ({"size": (5, 5), "stride_fraction": 0.0}, "stride_fraction"),
    ],
)
def test_impossible_parameters_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dense_proposals(**arguments)  # type: ignore[arg-type]


def test_more_windows_than_memory_holds_are_refused_before_they_are_made() -> None:
    with pytest.raises(InputError, match=r"would make \d+ windows of an image of 4000x3000 pixels"):
        dense_proposals((3000, 4000), scales=(0.01,), stride_fraction=0.01)
