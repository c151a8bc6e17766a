"""Box targets against torchvision's coder and a plain computation of the statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder

from detector.core import boxes as box_ops
from detector.models.box_coder import (
    MAX_LOG_RATIO,
    BoxCoder,
    TargetSums,
    box_deltas,
    fixed_coder,
    measured_coder,
)
from tests.conftest import MakeBoxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)


def random_coder(num_classes: int) -> BoxCoder:
    torch.manual_seed(1)
    return BoxCoder(torch.randn(num_classes + 1, 4) * 0.1, 0.05 + torch.rand(num_classes + 1, 4))


def test_equals_torchvision_with_weights_10_10_5_5(make_boxes: MakeBoxes) -> None:
    proposals, boxes = make_boxes(200, seed=1), make_boxes(200, seed=2)
    theirs = TorchvisionCoder(WEIGHTS, bbox_xform_clip=MAX_LOG_RATIO)
    ours = fixed_coder(1, (0, 0, 0, 0), DEVIATIONS)
    targets = ours.encode(proposals, boxes, torch.ones(200, dtype=torch.int64))
    torch.testing.assert_close(targets, theirs.encode_single(boxes, proposals), rtol=1e-5, atol=1e-5)
    wild = torch.randn(200, 2, 4) * 20  # beyond the cap on dw and dh, too
    expected = theirs.decode_single(wild.flatten(1), proposals).view(200, 2, 4)
    torch.testing.assert_close(ours.decode(wild, proposals), expected, rtol=1e-4, atol=1e-3)


def test_decoding_undoes_encoding_class_by_class(make_boxes: MakeBoxes) -> None:
    proposals, boxes = make_boxes(60, seed=1), make_boxes(60, seed=2)
    labels = torch.randint(1, 4, (60,), generator=torch.Generator().manual_seed(0))
    coder = random_coder(3)
    targets = coder.encode(proposals, boxes, labels)
    deltas = torch.full((60, 4, 4), 9.0)
    deltas[torch.arange(60), labels] = targets
    decoded = coder.decode(deltas, proposals)[torch.arange(60), labels]
    torch.testing.assert_close(decoded, boxes, rtol=1e-4, atol=1e-2)


def test_one_regressor_for_all_classes_decodes_one_row(make_boxes: MakeBoxes) -> None:
    proposals, boxes = make_boxes(20, seed=1), make_boxes(20, seed=2)
    coder = fixed_coder(5, (0.1, 0.0, 0.0, 0.2), DEVIATIONS)
    targets = coder.encode(proposals, boxes, torch.full((20,), 3))
    decoded = coder.decode(targets[:, None], proposals)
    assert decoded.shape == (20, 1, 4)
    torch.testing.assert_close(decoded[:, 0], boxes, rtol=1e-4, atol=1e-2)


def test_background_has_no_targets_whatever_its_match(make_boxes: MakeBoxes) -> None:
    labels = torch.tensor([0, 1, 0])
    targets = random_coder(1).encode(make_boxes(3, seed=1), make_boxes(3, seed=2), labels)
    assert not targets[labels == 0].any()
    assert targets[1].any()


def test_background_without_extent_leaves_no_trace(make_boxes: MakeBoxes) -> None:
    """Background rows are encoded with the others and then set to zero; their 0 / 0 must not remain."""
    proposals, boxes = torch.zeros(2, 4), make_boxes(2)
    proposals[1] = boxes[1]
    targets = random_coder(1).encode(proposals, boxes, torch.tensor([0, 1]))
    assert not targets[0].any()
    assert targets.isfinite().all()


def test_extreme_outputs_cannot_overflow(make_boxes: MakeBoxes) -> None:
    boxes = fixed_coder(1, (0, 0, 0, 0), DEVIATIONS).decode(torch.full((5, 2, 4), 1e6), make_boxes(5))
    assert boxes.isfinite().all()


def test_constants_are_saved_in_the_state_dict() -> None:
    coder, other = random_coder(2), fixed_coder(2, (0, 0, 0, 0), DEVIATIONS)
    other.load_state_dict(coder.state_dict())
    assert torch.equal(other.means, coder.means)
    assert torch.equal(other.deviations, coder.deviations)
    with pytest.raises(ValueError, match=r"shape \(K\+1, 4\)"):
        BoxCoder(torch.zeros(3, 4), torch.ones(2, 4))


Image = tuple[Tensor, Tensor, Tensor]


def images_of(make_boxes: MakeBoxes, count: int, classes: int) -> list[Image]:
    images = []
    for seed in range(count):
        objects = 1 + make_boxes(4, seed=seed) * 0.8
        near = objects.repeat(12, 1) + torch.randn(48, 4, generator=torch.Generator().manual_seed(seed)) * 4
        proposals = torch.cat((near, make_boxes(20, seed=100 + seed)))
        ordered = torch.cat((torch.minimum(proposals[:, :2], proposals[:, 2:] - 1), proposals[:, 2:]), dim=1)
        labels = torch.randint(1, classes + 1, (4,), generator=torch.Generator().manual_seed(seed))
        images.append((ordered, objects, labels))
    return images


def coder_of(images: list[Image], classes: int, threshold: float, class_agnostic: bool = False) -> BoxCoder:
    """Match image by image in torch."""
    sums = TargetSums.empty(classes)
    for proposals, boxes, labels in images:
        if len(boxes):
            candidates = torch.cat((boxes, proposals))
            overlap, match = box_ops.iou(candidates, boxes).max(dim=1)
            keep = overlap >= threshold
            sums.add(candidates[keep], boxes[match[keep]], labels[match[keep]])
    return measured_coder(sums, class_agnostic=class_agnostic)


def numpy_statistics(images: list[Image], label: int, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Two passes over the images and their mirror images of width 100, object by object."""
    rows = []
    for proposals, boxes, labels in images:
        for mirrored in (False, True):
            objects, candidates = (
                boxes.numpy().astype(float),
                torch.cat((boxes, proposals)).numpy().astype(float),
            )
            if mirrored:
                objects = np.stack(
                    (100 - objects[:, 2], objects[:, 1], 100 - objects[:, 0], objects[:, 3]), 1
                )
                candidates = np.stack(
                    (100 - candidates[:, 2], candidates[:, 1], 100 - candidates[:, 0], candidates[:, 3]), 1
                )
            for box in candidates:
                overlaps = [overlap(box, one) for one in objects]
                best = int(np.argmax(overlaps))
                if overlaps[best] >= threshold and labels[best] == label:
                    rows.append(deltas(box, objects[best]))
    return np.mean(rows, axis=0), np.std(rows, axis=0)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def deltas(box: np.ndarray, target: np.ndarray) -> list[float]:
    width, height = box[2] - box[0], box[3] - box[1]
    target_width, target_height = target[2] - target[0], target[3] - target[1]
    dx = ((target[0] + target[2]) / 2 - (box[0] + box[2]) / 2) / width
    dy = ((target[1] + target[3]) / 2 - (box[1] + box[3]) / 2) / height
    return [dx, dy, np.log(target_width / width), np.log(target_height / height)]


def test_measured_statistics_equal_a_plain_computation(make_boxes: MakeBoxes) -> None:
    images = images_of(make_boxes, 6, classes=2)
    coder = coder_of(images, 2, 0.5)
    for label in (1, 2):
        mean, deviation = numpy_statistics(images, label, 0.5)
        np.testing.assert_allclose(coder.means[label].numpy(), mean, atol=2e-5)
        np.testing.assert_allclose(coder.deviations[label].numpy(), deviation, rtol=2e-3)
    assert (coder.means[:, 0] == 0).all()  # mirror images cancel


def test_a_class_without_proposals_takes_the_statistics_of_all(make_boxes: MakeBoxes) -> None:
    images = [
        (proposals, boxes, torch.ones_like(labels))
        for proposals, boxes, labels in images_of(make_boxes, 3, 1)
    ]
    empty = (make_boxes(5), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    coder = coder_of([*images, empty], 3, 0.5)
    assert torch.equal(coder.means[3], coder.means[1])
    assert torch.equal(coder.deviations[2], coder.deviations[1])


def test_one_regressor_for_all_classes_has_one_scale(make_boxes: MakeBoxes) -> None:
    images = images_of(make_boxes, 4, classes=2)
    coder = coder_of(images, 2, 0.5, class_agnostic=True)
    as_one = [(proposals, boxes, torch.ones_like(labels)) for proposals, boxes, labels in images]
    mean, deviation = numpy_statistics(as_one, 1, 0.5)
    for row in range(3):
        np.testing.assert_allclose(coder.means[row].numpy(), mean, atol=2e-5)
        np.testing.assert_allclose(coder.deviations[row].numpy(), deviation, rtol=2e-3)


def test_degenerate_proposals_do_not_spoil_the_statistics(make_boxes: MakeBoxes) -> None:
    proposals, boxes, labels = images_of(make_boxes, 1, 1)[0]
    flat = torch.cat((proposals, torch.tensor([[10.0, 10.0, 10.0, 30.0]])))
    clean = coder_of([(proposals, boxes, labels)], 1, 0.5)
    spoilt = coder_of([(flat, boxes, labels)], 1, 0.5)
    assert torch.equal(clean.deviations, spoilt.deviations)
    with pytest.raises(ValueError, match="cannot be measured"):
        coder_of([(proposals, boxes[:0], labels[:0])], 1, 0.5)


def test_plain_deltas_of_a_box_to_itself_are_zero(make_boxes: MakeBoxes) -> None:
    boxes = make_boxes(10)
    assert not box_deltas(boxes, boxes).any()


def test_every_label_of_a_region_has_targets_in_its_own_units() -> None:
    generator = torch.Generator().manual_seed(0)
    coder = BoxCoder(torch.randn(4, 4, generator=generator), 0.5 + torch.rand(4, 4, generator=generator))
    proposals = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 11.0], [0.0, 0.0, 8.0, 8.0]])
    boxes = torch.tensor([[1.0, 0.0, 12.0, 9.0], [5.0, 4.0, 9.0, 12.0], [0.0, 0.0, 0.0, 0.0]])
    sets = torch.tensor([[False, True, False, True], [False, False, True, False], [False] * 4])
    found = coder.encode_sets(proposals, boxes, sets)
    assert coder.num_classes == 3
    for row, label in sets.nonzero().tolist():
        expected = coder.encode(proposals[row, None], boxes[row, None], torch.tensor([label]))[0]
        assert torch.equal(found[row, label], expected)
    assert not found[~sets].any()
