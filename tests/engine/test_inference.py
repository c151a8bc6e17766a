"""The one predictor, from views to detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from detector.core.cell_masks import CellMasks
from detector.core.structures import (
    Batch,
    Detections,
    Embedded,
    HeadOutput,
    ImageMeta,
    Proposals,
    Targets,
    View,
)
from detector.engine.inference import RegionPredictor, choose_scales, with_weights_in
from tests.conftest import MakeBoxes

SCALES = (480, 576, 688, 864, 1200)
SHORTER = 375
CROSSOVERS = (158.4, 132.4, 107.6, 80.3)
"""Side of a square object, in pixels of an image whose shorter side is 375, where the next scale takes over;
computed from the release's rule, area closest to 224 x 224."""


def squares(sides: Sequence[float]) -> list[Tensor]:
    """Return boxes with these sides in the input pixels of every scale."""
    boxes = torch.tensor([[10.0, 20.0, 10.0 + side, 20.0 + side] for side in sides])
    return [boxes * (scale / SHORTER) for scale in SCALES]


@pytest.mark.parametrize("number", range(4))
def test_scales_change_where_the_releases_rule_says(number: int) -> None:
    _, levels = choose_scales(squares([CROSSOVERS[number] + 0.1, CROSSOVERS[number] - 0.1]))
    assert levels is not None
    assert levels.tolist() == [number, number + 1]


def test_every_proposal_comes_at_its_own_scale() -> None:
    by_scale = squares([300.0, 145.0, 120.0, 95.0, 20.0])
    rois, levels = choose_scales(by_scale)
    assert levels is not None
    assert levels.tolist() == [0, 1, 2, 3, 4]
    for row, level in enumerate(levels.tolist()):
        assert torch.equal(rois[row], by_scale[level][row])


@pytest.mark.parametrize("number", range(4))
def test_the_linear_rule_changes_scales_where_spp_nets_code_does(number: int) -> None:
    """|s - 208 * shorter side / sqrt(area)| is smallest; crossovers at a shorter side of 375 pixels."""
    crossover = (147.7, 123.4, 100.5, 75.6)[number]
    _, levels = choose_scales(squares([crossover + 0.2, crossover - 0.2]), rule="side")
    assert levels is not None
    assert levels.tolist() == [number, number + 1]


def test_areas_count_and_not_sides() -> None:
    wide = [torch.tensor([[0.0, 0.0, 448.0, 112.0]]) * factor for factor in (0.5, 1.0, 2.0)]
    for boxes, expected in ((wide, 1), ([wide[1], wide[1]], 0)):  # of equals the first
        _, level = choose_scales(boxes)
        assert level is not None
        assert level.tolist() == [expected]


def test_one_scale_needs_no_choice(make_boxes: MakeBoxes) -> None:
    boxes = make_boxes(5)
    rois, levels = choose_scales([boxes])
    assert torch.equal(rois, boxes)
    assert levels is None


def view(boxes: Tensor, factor: int) -> Batch:
    size = (60 * factor, 80 * factor)
    meta = ImageMeta(image_id="a", original_size=(60, 80), input_size=size)
    return Batch(
        images=torch.full((1, *size, 3), factor, dtype=torch.uint8),
        proposals=[Proposals(boxes=boxes)],
        rois_per_image=[meta.to_input(boxes)],
        targets=[Targets.empty()],
        metas=[meta],
    )


class Recorder:
    """A network and a decoder that write down what they are given."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor | None]] = []
        self.images: list[float] = []
        self.decoded: list[tuple[str, Tensor]] = []

    def inputs(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        assert images.dtype == torch.uint8
        assert list(sizes) == [tuple(images.shape[1:3])]
        return images.permute(0, 3, 1, 2).float()

    def features(self, images: Tensor) -> list[Tensor]:
        assert torch.is_inference_mode_enabled()
        assert images.dtype == torch.float32  # `inputs` has normalised them
        self.images.append(images[0, 0, 0, 0].item())
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
        assert masks is None
        assert 1 <= len(levels) <= len(self.images)
        self.calls.append((rois, roi_levels))
        return HeadOutput(torch.zeros(len(rois), 2), None)

    def describe(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> tuple[Embedded, HeadOutput]:
        height = levels[0].shape[2]
        rows = torch.full((len(rois), 2), float(height))
        return Embedded(rows, rows), self.predict(levels, rois, roi_levels)

    def regions(self, views: Sequence[View], proposals: Tensor) -> tuple[Tensor, Tensor]:
        self.decoded.append(("regions", proposals))
        return proposals[:, None].repeat(1, 2, 1), torch.full((len(proposals), 2), float(len(views)))

    def __call__(self, views: Sequence[View], proposals: Tensor) -> Detections:
        return self.candidates(views, proposals)

    def candidates(self, views: Sequence[View], proposals: Tensor) -> Detections:
        self.decoded.append(("candidates", proposals))
        return self.found(proposals)

    def refine(self, views: Sequence[View], candidates: Detections) -> Detections:
        self.decoded.append(("refine", candidates.boxes))
        return self.found(candidates.boxes + 1)

    def finish(self, refined: Detections) -> Detections:
        self.decoded.append(("finish", refined.boxes))
        return refined

    @staticmethod
    def found(boxes: Tensor) -> Detections:
        ones = torch.ones(len(boxes))
        return Detections(boxes=boxes, scores=ones, labels=ones.long())


def test_proposals_are_seen_in_input_pixels_and_decoded_in_original_ones(make_boxes: MakeBoxes) -> None:
    boxes, recorder = make_boxes(4, 60.0), Recorder()
    found = RegionPredictor(model=recorder, postprocess=recorder)([view(boxes, 3)])
    ((rois, levels),) = recorder.calls
    assert levels is None
    assert torch.equal(rois, torch.cat((torch.zeros(4, 1), boxes * 3), dim=1))
    assert torch.equal(found.boxes, boxes)


def test_several_scales_are_levels_of_one_prediction(make_boxes: MakeBoxes) -> None:
    boxes, recorder = make_boxes(6, 60.0), Recorder()
    RegionPredictor(model=recorder, postprocess=recorder)([view(boxes, factor) for factor in (1, 4, 8)])
    assert recorder.images == [1.0, 4.0, 8.0]
    ((rois, levels),) = recorder.calls
    assert levels is not None
    factors = torch.tensor([1.0, 4.0, 8.0])[levels]
    assert torch.equal(rois[:, 1:], boxes * factors[:, None])


def test_mirrored_views_and_with_rule_all_every_view_are_predicted_by_themselves(
    make_boxes: MakeBoxes,
) -> None:
    boxes = make_boxes(6, 60.0)
    views = [view(boxes, factor) for factor in (1, 4)]
    views += [mirror(straight) for straight in views]
    by_rule = {}
    for rule in ("area", "all"):
        recorder = Recorder()
        RegionPredictor(model=recorder, postprocess=recorder, scale_rule=rule)(views)
        assert recorder.images == [1.0, 4.0, 1.0, 4.0]  # the backbone sees each view once
        assert [step for step, _ in recorder.decoded] == ["candidates"]  # and all are merged in one go
        by_rule[rule] = recorder.calls
    assert len(by_rule["area"]) == 2
    assert all(levels is not None for _, levels in by_rule["area"])
    (straight, _), (mirrored, _) = by_rule["area"]
    widths = 80 * (straight[:, 3] - straight[:, 1]) / (boxes[:, 2] - boxes[:, 0])
    torch.testing.assert_close(mirrored[:, 1], widths - straight[:, 3])
    assert [levels for _, levels in by_rule["all"]] == [None] * 4
    assert torch.equal(by_rule["all"][1][0][:, 1:], boxes * 4)


def mirror(straight: Batch) -> Batch:
    meta = replace(straight.metas[0], flipped=True)
    return replace(straight, metas=[meta], rois_per_image=[meta.to_input(straight.proposals[0].boxes)])


def test_refinement_looks_again_without_new_features(make_boxes: MakeBoxes) -> None:
    boxes, recorder = make_boxes(4, 60.0), Recorder()
    found = RegionPredictor(model=recorder, postprocess=recorder, refinements=2)([view(boxes, 2)])
    assert recorder.images == [2.0]
    assert [name for name, _ in recorder.decoded] == ["candidates", "refine", "refine", "finish"]
    for number, (rois, _) in enumerate(recorder.calls):
        assert torch.equal(rois[:, 1:], (boxes + max(0, number - 1)) * 2)
    assert torch.equal(found.boxes, boxes + 2)


def test_regions_are_predicted_once_and_their_features_are_those_of_the_first_orientation(
    make_boxes: MakeBoxes,
) -> None:
    boxes, recorder = make_boxes(4, 60.0), Recorder()
    views = [view(boxes, 2), mirror(view(boxes, 2))]
    predictor = RegionPredictor(model=recorder, postprocess=recorder, refinements=3)
    found = predictor.regions(views, features=True)
    assert len(recorder.calls) == 2
    assert [step for step, _ in recorder.decoded] == ["regions"]
    assert torch.equal(recorder.decoded[0][1], boxes)
    assert found.scores.unique().tolist() == [2.0]  # both orientations were merged in one call
    assert found.pooled is not None
    assert found.pooled.unique().tolist() == [120.0]
    assert predictor.regions(views).pooled is None


def test_an_image_without_proposals_has_no_detections() -> None:
    recorder = Recorder()
    assert len(RegionPredictor(model=recorder, postprocess=recorder)([view(torch.zeros(0, 4), 1)])) == 0
    assert recorder.calls == []


def small_network() -> nn.Sequential:
    """Every kind of layer that the networks have, in evaluation mode, one of them frozen."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3)),
        *(nn.Flatten(), nn.Linear(4 * 36, 16), nn.Dropout(), nn.Linear(16, 5)),
    )
    network[0].requires_grad_(False)
    return network.to(memory_format=torch.channels_last).eval()


def under_autocast(network: nn.Module, images: Tensor, device: str = "cpu") -> Tensor:
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
        found: Tensor = network(images)
    return found


def test_weights_cast_beforehand_change_no_bit() -> None:
    network, images = small_network(), torch.randn(2, 3, 10, 10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cast = with_weights_in(network, torch.bfloat16)
    assert torch.equal(under_autocast(cast, images), under_autocast(network, images))
    assert not torch.equal(under_autocast(cast, images).float(), network(images))  # bfloat16 is seen at all
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == before[name].dtype


@pytest.mark.gpu
def test_weights_cast_beforehand_change_no_bit_on_a_gpu() -> None:
    network, images = small_network().cuda(), torch.randn(2, 3, 10, 10).cuda()
    cast = with_weights_in(network, torch.bfloat16)
    assert torch.equal(under_autocast(cast, images, "cuda"), under_autocast(network, images, "cuda"))


def test_only_the_weights_that_autocast_would_cast_are_copied() -> None:
    network = small_network()
    cast = with_weights_in(network, torch.bfloat16)
    dtypes = [parameter.dtype for parameter in cast.parameters()]
    assert dtypes == [torch.bfloat16] * 2 + [torch.float32] * 2 + [torch.bfloat16] * 6
    assert cast[1].weight is network[1].weight
    assert cast[1].running_mean is network[1].running_mean
    assert not any(
        parameter.requires_grad for layer in (0, 3, 5, 7) for parameter in cast[layer].parameters()
    )
    assert with_weights_in(network, torch.float32) is network


def test_cast_weights_are_those_of_the_moment() -> None:
    network, images = small_network(), torch.randn(2, 3, 10, 10)
    first = with_weights_in(network, torch.bfloat16)
    old = under_autocast(first, images)
    with torch.no_grad():
        next(network[-1].parameters()).add_(1)
    assert torch.equal(under_autocast(first, images), old)
    assert not torch.equal(under_autocast(network, images), old)
    renewed = with_weights_in(network, torch.bfloat16)
    assert torch.equal(under_autocast(renewed, images), under_autocast(network, images))
