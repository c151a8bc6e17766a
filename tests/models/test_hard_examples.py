"""Online hard example mining against a slow, obvious version of its rules, and torchvision's suppression."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from detector.core.structures import HeadOutput, SampledRoIs, Targets
from detector.models.box_coder import fixed_coder
from detector.models.hard_examples import SAME_PLACE, EveryRegion, HardExamples, hardest
from detector.models.losses import DetectionLoss
from tests.conftest import MakeBoxes


def by_the_rules(losses: Tensor, boxes: Tensor, most: int) -> list[int]:
    """Return the rows that are chosen of one image: one after another, in plain Python."""
    order = sorted(range(len(losses)), key=lambda row: -losses[row].item())  # stable
    kept: list[int] = []
    for row in order:
        if all(box_iou(boxes[row : row + 1], boxes[one : one + 1]).item() <= SAME_PLACE for one in kept):
            kept.append(row)
    suppressed = [row for row in order if row not in kept]
    return (kept + suppressed)[:most]


@pytest.mark.parametrize("most", [1, 7, 40, 1000])
def test_equals_the_rules(make_boxes: MakeBoxes, most: int) -> None:
    counts = (60, 3, 0, 25)
    parts = [make_boxes(count, extent=20.0, seed=number) for number, count in enumerate(counts)]
    generator = torch.Generator().manual_seed(4)
    losses = torch.randint(0, 12, (sum(counts),), generator=generator) / 4  # many are equal
    wanted = []
    offset = 0
    for boxes in parts:
        rows = by_the_rules(losses[offset : offset + len(boxes)], boxes, most)
        wanted += [row + offset for row in rows]
        offset += len(boxes)
    assert hardest(losses, torch.cat(parts), counts, most).tolist() == wanted


def test_the_survivors_are_those_of_torchvision(make_boxes: MakeBoxes) -> None:
    boxes = make_boxes(300, extent=30.0, seed=5)
    losses = torch.rand(300, generator=torch.Generator().manual_seed(6))
    kept = nms(boxes, losses, SAME_PLACE)
    assert 50 < len(kept) < 300
    assert torch.equal(hardest(losses, boxes, (300,), len(kept)), kept)
    everything = hardest(losses, boxes, (300,), 300)
    assert torch.equal(everything.sort().values, torch.arange(300))
    assert all(losses[a] >= losses[b] for a, b in pairwise(everything[len(kept) :]))


def test_a_loss_that_is_not_finite_is_chosen_and_so_noticed() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 14], [20, 20, 24, 24]])
    assert hardest(torch.tensor([1.0, torch.nan, 2.0]), boxes, (3,), 1).tolist() == [1]


def test_no_region_at_all() -> None:
    assert hardest(torch.zeros(0), torch.zeros(0, 4), (0, 0), 4).tolist() == []


def test_regions_are_all_that_can_be_trained_on() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [30, 30, 60, 60]])
    crowd = torch.tensor([False, True])
    targets = Targets.make(boxes, torch.tensor([2, 1]), crowd=crowd)
    rois = torch.tensor([[0.0, 0, 10, 9], [0, 0, 3, 3], [32, 32, 40, 40], [20, 20, 20, 25], [70, 0, 90, 10]])
    drawn = EveryRegion(fixed_coder(2, (0.0,) * 4, (1.0,) * 4))(rois, targets, np.random.default_rng(0))
    # The object itself, then the proposals: one inside the crowd and one without an area are left out.
    assert torch.equal(drawn.boxes, torch.stack((boxes[0], rois[0], rois[1], rois[4])))
    assert drawn.labels.tolist() == [2, 2, 0, 0]
    assert drawn.box_targets[0].tolist() == [0.0] * 4
    assert drawn.box_targets[1, 3].item() == pytest.approx(np.log(10 / 9))
    assert not drawn.box_targets[2:].any()


class FixedHead(torch.nn.Module):
    """A head that gives the logits and deltas of each RoI from a table, and notes how it was called."""

    def __init__(self, output: HeadOutput) -> None:
        super().__init__()
        self.output = output
        self.calls: list[tuple[bool, bool]] = []

    def predict(self, levels: object, rois: Tensor, roi_levels: Tensor | None = None) -> HeadOutput:
        self.calls.append((self.training, torch.is_grad_enabled()))
        return self.output


@pytest.mark.parametrize("rows", [3, 1, None])
def test_the_loss_of_a_region_is_its_part_of_the_loss(rows: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 1, 2, 0, 2])
    sampled = SampledRoIs(
        rois=torch.zeros(5, 5), labels=labels, box_targets=torch.randn(5, 4, generator=generator)
    )
    deltas = None if rows is None else torch.randn(5, rows, 4, generator=generator)
    output, loss = HeadOutput(torch.randn(5, 3, generator=generator), deltas), DetectionLoss(2.0, 0.5)
    for row, found in enumerate(loss.per_region(output, sampled)):
        one = SampledRoIs(
            rois=torch.zeros(1, 5), labels=labels[[row]], box_targets=sampled.box_targets[[row]]
        )
        own = HeadOutput(output.class_logits[[row]], None if deltas is None else deltas[[row]])
        assert found.item() == pytest.approx(sum(part.item() for part in loss(own, one).values()))


def test_chooses_in_each_image_and_keeps_levels_and_the_mode() -> None:
    logits = torch.tensor([[3.0, 0], [0, 3.0], [1.0, 0], [0, 2.0], [0, 1.0]])
    places = torch.arange(5.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    sampled = SampledRoIs(
        rois=torch.cat((torch.tensor([[0.0], [0], [0], [1], [1]]), places), dim=1),
        labels=torch.zeros(5, dtype=torch.int64),
        box_targets=torch.zeros(5, 4),
        roi_levels=torch.tensor([4, 4, 4, 7, 7]),
        counts=(3, 2),
    )
    head = FixedHead(HeadOutput(logits, None)).train()
    mining = HardExamples(2, DetectionLoss())
    chosen = mining(head, [], sampled)
    assert torch.equal(chosen.rois, sampled.rois[[1, 2, 3, 4]])  # the highest losses of each image first
    assert chosen.counts == mining.counts(sampled) == (2, 2)
    assert chosen.roi_levels is not None
    assert chosen.roi_levels.tolist() == [4, 4, 7, 7]
    assert head.calls == [(False, False)]
    assert head.training
