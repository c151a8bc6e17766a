"""Geometry of boxes against torchvision and a plain loop."""

from __future__ import annotations

import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.core import boxes as box_ops
from tests.conftest import MakeBoxes

# Quarters of pixels up to 1024: every product and sum below is exact in float32.
quarter = st.integers(0, 4096).map(lambda steps: steps / 4)
box = st.tuples(quarter, quarter, quarter, quarter)
valid_box = box.map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 0.25, max(c[1], c[3]) + 0.25)
)


def as_tensor(boxes: list[tuple[float, ...]]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def slow_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a = max(0.0, a[2] - a[0]) * max(0.0, a[3] - a[1])
    area_b = max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1])
    union = area_a + area_b - width * height
    return width * height / union if union > 0 else 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(box, max_size=5), st.lists(box, max_size=5))
def test_iou_equals_a_loop_also_for_degenerate_and_reversed_boxes(first: list, second: list) -> None:
    found = box_ops.iou(as_tensor(first), as_tensor(second))
    assert found.shape == (len(first), len(second))
    expected = torch.tensor([slow_iou(a, b) for a in first for b in second]).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(valid_box, max_size=6), st.lists(valid_box, max_size=6))
def test_iou_equals_torchvision_and_is_symmetric(first: list, second: list) -> None:
    a, b = as_tensor(first), as_tensor(second)
    found = box_ops.iou(a, b)
    torch.testing.assert_close(found, torchvision.ops.box_iou(a, b))
    assert torch.equal(found, box_ops.iou(b, a).T)
    assert ((found >= 0) & (found <= 1)).all()


def test_iou_of_a_box_with_itself_is_exactly_one(make_boxes: MakeBoxes) -> None:
    boxes = make_boxes(200, extent=1500.0)
    assert torch.equal(box_ops.iou(boxes, boxes).diagonal(), torch.ones(200))


def test_boxes_without_area_overlap_nothing_not_even_themselves() -> None:
    point = as_tensor([(5, 5, 5, 5), (5, 5, 9, 5), (9, 9, 5, 5)])
    assert torch.equal(box_ops.area(point), torch.zeros(3))
    assert torch.equal(box_ops.iou(point, point), torch.zeros(3, 3))


@settings(max_examples=50, deadline=None)
@given(st.lists(valid_box, max_size=6), st.integers(1, 2000))
def test_flips_are_involutions_that_keep_size(boxes: list, extent: int) -> None:
    given_boxes = as_tensor(boxes)
    for flip, axis in ((box_ops.flip, 0), (box_ops.flip_vertical, 1)):
        mirrored = flip(given_boxes, extent)
        assert torch.equal(flip(mirrored, extent), given_boxes)
        assert torch.equal(box_ops.area(mirrored), box_ops.area(given_boxes))
        assert torch.equal(mirrored[:, axis], extent - given_boxes[:, axis + 2])
        assert torch.equal(mirrored[:, 1 - axis], given_boxes[:, 1 - axis])


@settings(max_examples=50, deadline=None)
@given(st.lists(box, max_size=6), st.integers(1, 500), st.integers(1, 500))
def test_clip_equals_torchvision_and_takes_height_first(boxes: list, height: int, width: int) -> None:
    shifted = as_tensor(boxes) - 300
    found = box_ops.clip(shifted, (height, width))
    assert torch.equal(found, torchvision.ops.clip_boxes_to_image(shifted, (height, width)))


def test_clip_scale_and_flip_take_further_dimensions() -> None:
    boxes = torch.tensor([[[-5.0, 2.0, 50.0, 90.0]], [[1.0, 1.0, 3.0, 4.0]]])
    assert box_ops.clip(boxes, (20, 40)).tolist() == [[[0, 2, 40, 20]], [[1, 1, 3, 4]]]
    assert box_ops.scale(boxes, (2.0, 0.5)).tolist() == [[[-2.5, 4, 25, 180]], [[0.5, 2, 1.5, 8]]]
    assert box_ops.flip(boxes, 40.0).tolist() == [[[-10, 2, 45, 90]], [[37, 1, 39, 4]]]


def test_no_boxes_are_no_boxes() -> None:
    none, some = torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    assert box_ops.area(none).shape == (0,)
    assert box_ops.iou(none, some).shape == (0, 1)
    assert box_ops.iou(some, none).shape == (1, 0)
    for result in (box_ops.clip(none, (5, 5)), box_ops.flip(none, 5), box_ops.scale(none, (2.0, 2.0))):
        assert result.shape == (0, 4)


def test_arguments_stay_as_they_were(make_boxes: MakeBoxes) -> None:
    boxes = make_boxes(10)
    before = boxes.clone()
    box_ops.clip(boxes, (10, 10))
    box_ops.flip(boxes, 10)
    box_ops.scale(boxes, (3.0, 2.0))
    box_ops.iou(boxes, boxes)
    assert torch.equal(boxes, before)
