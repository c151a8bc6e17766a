"""Iterative localisation: detections are pooled and classified again from their own boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from detector.core import boxes as box_ops
from detector.core.cell_masks import CellMasks
from detector.core.structures import Batch, HeadOutput, ImageMeta, Proposals, Targets
from detector.engine.inference import RegionPredictor
from detector.models.box_coder import box_deltas, fixed_coder
from detector.models.postprocess import Postprocess

TARGET = torch.tensor([[30.0, 20.0, 70.0, 90.0]])


class HalfWay:
    """A network that moves each RoI half of the way to the object and scores it by their overlap."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.feature_calls = 0

    def inputs(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        return images.permute(0, 3, 1, 2).float()

    def features(self, images: Tensor) -> list[Tensor]:
        self.feature_calls += 1
        return [images]

    def place(self, rois: Tensor, roi_levels: Tensor | None) -> Tensor | None:
        return roi_levels

    def cover(self, *_: object) -> NoReturn:
        raise AssertionError("the proposals are boxes")

    def predict(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> HeadOutput:
        boxes = rois[:, 1:]
        self.calls.append(len(boxes))
        deltas = box_deltas(boxes, (boxes + TARGET) / 2)
        overlap = box_ops.iou(boxes, TARGET)[:, 0].clamp(0.01, 0.99)
        logits = torch.stack((torch.zeros_like(overlap), torch.logit(overlap)), dim=1)
        return HeadOutput(logits, deltas[:, None, :])

    def describe(self, *_: object) -> NoReturn:
        raise AssertionError("detections need no hidden outputs")


def make_view(boxes: Tensor) -> Batch:
    meta = ImageMeta(image_id="a", original_size=(100, 100), input_size=(100, 100))
    return Batch(
        images=torch.zeros(1, 100, 100, 3, dtype=torch.uint8),
        proposals=[Proposals(boxes=boxes)],
        rois_per_image=[boxes],
        targets=[Targets.empty()],
        metas=[meta],
    )


@pytest.mark.parametrize("refinements", [0, 1, 2, 3])
def test_each_refinement_halves_the_error_and_scores_the_box_it_pools(refinements: int) -> None:
    start = torch.tensor([[40.0, 30.0, 86.0, 98.0]])
    network = HalfWay()
    postprocess = Postprocess(fixed_coder(1, [0, 0, 0, 0], [1, 1, 1, 1]), score_threshold=0.0)
    found = RegionPredictor(model=network, postprocess=postprocess, refinements=refinements)(
        [make_view(start)]
    )
    seen, box = start, (start + TARGET) / 2
    for _ in range(refinements):
        seen, box = box, (box + TARGET) / 2
    torch.testing.assert_close(found.boxes, box)
    torch.testing.assert_close(found.scores, box_ops.iou(seen, TARGET)[0].clamp(0.01, 0.99))
    assert network.feature_calls == 1
    assert network.calls == [1] * (refinements + 1)


def test_refined_candidates_are_thinned_and_capped_at_the_end() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(60, 2, generator=generator) * 50
    boxes = torch.cat((corner, corner + 20 + torch.rand(60, 2, generator=generator) * 30), dim=1)
    postprocess = Postprocess(
        fixed_coder(1, [0, 0, 0, 0], [1, 1, 1, 1]), score_threshold=0.0, nms_threshold=0.3, max_detections=2
    )
    network = HalfWay()
    found = RegionPredictor(model=network, postprocess=postprocess, refinements=1)([make_view(boxes)])
    assert len(found) <= 2
    assert network.calls[1] <= 4  # twice max_detections
    overlaps = box_ops.iou(found.boxes, found.boxes).fill_diagonal_(0)
    assert float(overlaps.max()) <= 0.3


def test_no_candidates_give_no_detections() -> None:
    postprocess = Postprocess(fixed_coder(1, [0, 0, 0, 0], [1, 1, 1, 1]), score_threshold=0.999)
    boxes = torch.tensor([[1.0, 1.0, 9.0, 9.0]])
    assert (
        len(RegionPredictor(model=HalfWay(), postprocess=postprocess, refinements=2)([make_view(boxes)])) == 0
    )
