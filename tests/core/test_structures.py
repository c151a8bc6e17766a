"""The containers check what they are given and carry boxes from one frame to the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from detector.core.structures import (
    Batch,
    Detections,
    DrawnRegions,
    HeadOutput,
    ImageMeta,
    Proposals,
    Sample,
    SampledRoIs,
    Targets,
    stack_rois,
)
from tests.conftest import MakeBoxes
from tests.typed import present

META = ImageMeta(image_id="a", original_size=(100, 50), input_size=(200, 150))


def test_wrong_shapes_and_types_are_named(make_boxes: MakeBoxes) -> None:
    boxes = make_boxes(3)
    with pytest.raises(TypeError, match=r"Proposals\.boxes must be torch\.float32, not torch\.float64"):
        Proposals(boxes=boxes.double())
    with pytest.raises(ValueError, match=r"Proposals\.boxes must have shape \(None, 4\), not \(4, 3\)"):
        Proposals(boxes=boxes.T)
    with pytest.raises(ValueError, match=r"Proposals\.scores"):
        Proposals(boxes=boxes, scores=torch.zeros(2))
    with pytest.raises(TypeError, match=r"Targets\.labels must be torch\.int64"):
        Targets.make(boxes, torch.zeros(3))
    with pytest.raises(ValueError, match=r"Targets\.difficult"):
        Targets.make(boxes, torch.ones(3, dtype=torch.int64), difficult=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"Detections\.labels"):
        Detections(boxes=boxes, scores=torch.zeros(3), labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"SampledRoIs\.rois"):
        SampledRoIs(rois=boxes, labels=torch.zeros(3, dtype=torch.int64), box_targets=boxes)


def test_a_sample_fits_its_meta_data(make_boxes: MakeBoxes) -> None:
    boxes = make_boxes(2)
    parts: dict[str, Any] = {"proposals": Proposals(boxes=boxes), "targets": Targets.empty(), "meta": META}
    Sample(image=torch.zeros(200, 150, 3, dtype=torch.uint8), rois=boxes, **parts)
    with pytest.raises(ValueError, match=r"Sample\.image must have shape \(200, 150, 3\)"):
        Sample(image=torch.zeros(150, 200, 3, dtype=torch.uint8), rois=boxes, **parts)
    with pytest.raises(TypeError, match=r"Sample\.image must be torch\.uint8"):
        Sample(image=torch.zeros(200, 150, 3), rois=boxes, **parts)
    with pytest.raises(ValueError, match=r"Sample\.rois"):
        Sample(image=torch.zeros(200, 150, 3, dtype=torch.uint8), rois=boxes[:1], **parts)


def test_containers_are_frozen(make_boxes: MakeBoxes) -> None:
    proposals = Proposals(boxes=make_boxes(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        proposals.boxes = make_boxes(2)  # type: ignore[misc]


def test_nothing_is_a_container_of_length_zero() -> None:
    assert len(Targets.empty()) == len(Detections.empty()) == len(Proposals(boxes=torch.zeros(0, 4))) == 0
    assert stack_rois([]).shape == (0, 5)
    assert stack_rois([torch.zeros(0, 4)] * 2).shape == (0, 5)


def test_targets_are_selected_whole(make_boxes: MakeBoxes) -> None:
    labels, flags = torch.tensor([3, 1, 2]), torch.tensor([True, False, True])
    targets = Targets.make(make_boxes(3), labels, difficult=flags, crowd=~flags)
    chosen = targets.select(torch.tensor([2, 0]))
    assert torch.equal(chosen.boxes, targets.boxes[[2, 0]])
    assert chosen.labels.tolist() == [2, 3]
    assert chosen.difficult.tolist() == [True, True]
    assert chosen.crowd.tolist() == [False, False]
    moved = chosen.with_boxes(chosen.boxes * 2)
    assert torch.equal(moved.area, targets.area[[2, 0]])  # the annotated one


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("upside_down", [False, True])
def test_boxes_go_to_input_pixels_corner_by_corner(flipped: bool, upside_down: bool) -> None:
    meta = dataclasses.replace(META, flipped=flipped, flipped_vertically=upside_down)
    assert meta.scale == (2.0, 3.0)
    x1, y1, x2, y2 = 10.0, 30.0, 20.0, 70.0
    left, right = sorted(150 - x * 3 if flipped else x * 3 for x in (x1, x2))
    top, bottom = sorted(200 - y * 2 if upside_down else y * 2 for y in (y1, y2))
    found = meta.to_input(torch.tensor([[x1, y1, x2, y2]]))
    assert found.tolist() == [[left, top, right, bottom]]
    assert torch.equal(meta.mirror(meta.mirror(found, meta.input_size), meta.input_size), found)


def batch_of(boxes: list[torch.Tensor], sampled: SampledRoIs | None = None) -> Batch:
    return Batch(
        images=torch.zeros(len(boxes), 8, 6, 3, dtype=torch.uint8),
        proposals=[Proposals(boxes=each) for each in boxes],
        rois_per_image=boxes,
        targets=[Targets.empty()] * len(boxes),
        metas=[META] * len(boxes),
        sampled=sampled,
    )


def test_a_batch_checks_its_images_and_knows_their_sizes(make_boxes: MakeBoxes) -> None:
    batch = batch_of([make_boxes(2), torch.zeros(0, 4), make_boxes(1, seed=1)])
    assert len(batch) == 3
    assert batch.sizes == [(200, 150)] * 3
    assert batch.to("cpu").images.device.type == "cpu"
    with pytest.raises(ValueError, match=r"Batch\.images"):
        dataclasses.replace(batch, images=batch.images[:2])
    with pytest.raises(ValueError, match=r"Batch\.images"):
        dataclasses.replace(batch, images=batch.images.permute(0, 3, 1, 2))
    with pytest.raises(TypeError, match=r"Batch\.images must be torch\.uint8, not torch\.float32"):
        dataclasses.replace(batch, images=batch.images.float())


def test_sampled_regions_are_stacked_image_after_image(make_boxes: MakeBoxes) -> None:
    boxes = [make_boxes(2), torch.zeros(0, 4), make_boxes(1, seed=1)]
    labels = [torch.tensor([3, 0]), torch.zeros(0, dtype=torch.int64), torch.tensor([1])]
    sampled = SampledRoIs.stack(
        [
            DrawnRegions(one, names, 2 * one, torch.arange(len(one)))
            for one, names in zip(boxes, labels, strict=True)
        ]
    )
    assert sampled.rois[:, 0].tolist() == [0, 0, 2]
    assert torch.equal(sampled.rois[:, 1:], torch.cat(boxes))
    assert torch.equal(sampled.rois, stack_rois(boxes))
    assert sampled.labels.tolist() == [3, 0, 1]
    assert torch.equal(sampled.box_targets, 2 * torch.cat(boxes))
    assert sampled.roi_levels is None


@pytest.mark.parametrize("levels", [False, True])
def test_what_a_device_needs_goes_there_and_the_rest_stays(make_boxes: MakeBoxes, levels: bool) -> None:
    """On the meta device, which holds no values, every tensor shows whether it was moved."""
    boxes = [make_boxes(2), make_boxes(1, seed=1)]
    labels = [torch.ones(len(each), dtype=torch.int64) for each in boxes]
    sampled = SampledRoIs.stack(
        [
            DrawnRegions(one, names, one, torch.arange(len(one)))
            for one, names in zip(boxes, labels, strict=True)
        ]
    )
    if levels:
        sampled = dataclasses.replace(sampled, roi_levels=torch.tensor([0, 1, 0]))
    batch = batch_of(boxes, sampled)
    moved = batch.to("meta")
    assert [tensor.shape for tensor in moved.device_tensors()] == [(2, 8, 6, 3), (3, 5), (3,), (3, 4)]
    assert {tensor.device.type for tensor in moved.device_tensors()} == {"meta"}
    assert moved.sampled is not None
    if moved.sampled.roi_levels is not None:
        assert moved.sampled.roi_levels.device.type == "cpu"
    for kept in (*moved.rois_per_image, moved.proposals[0].boxes, moved.targets[0].boxes):
        assert kept.device.type == "cpu"
    assert moved.metas == batch.metas
    assert {tensor.device.type for tensor in batch.device_tensors()} == {"cpu"}
    assert len(batch_of(boxes).to("meta").device_tensors()) == 1


@pytest.mark.parametrize(("boxes", "regions"), [(True, True), (False, True), (False, False)])
def test_outputs_are_joined_and_taken_apart_by_rows(boxes: bool, regions: bool) -> None:
    deltas, logits = torch.randn(6, 3, 4) if boxes else None, torch.randn(6, 3) if regions else None
    whole = HeadOutput(torch.randn(6, 3), deltas, logits)
    parts = [whole.take(torch.tensor(rows)) for rows in ([0, 1], [2], [3, 4, 5])]
    for outputs in (parts, [whole]):
        for found, expected in zip(HeadOutput.join(outputs), whole, strict=True):
            assert (found is None) == (expected is None)
            assert found is None or torch.equal(found, present(expected))
    assert torch.equal(parts[2].class_logits, whole.class_logits[3:])
