"""RoI sampling against a slow reference of the rules of Fast R-CNN, section 2.3."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detector.core.boxes import iou
from detector.core.structures import DrawnRegions, SampledRoIs, Targets
from detector.models.box_coder import BoxCoder, fixed_coder
from detector.models.hard_examples import EveryRegion
from detector.models.roi_sampler import RoISampler, match_proposals
from tests.conftest import MakeBoxes
from tests.typed import present

CODER = fixed_coder(3, (0.0, 0.0, 0.0, 0.0), (0.1, 0.1, 0.2, 0.2))


def drawn(sampler: RoISampler, rois: Tensor, targets: Targets, seed: int = 0) -> DrawnRegions:
    return sampler(rois, targets, np.random.default_rng(seed))


def slow_iou(a: list[float], b: list[float]) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def roles(rois: Tensor, targets: Targets) -> tuple[dict[tuple, int], set[tuple]]:
    """Return the boxes that may be foreground, with their labels, and those that may be background."""
    foreground, background = {}, set()
    for box in [*targets.boxes.tolist(), *rois.tolist()]:
        overlaps = [slow_iou(box, one) for one in targets.boxes.tolist()]
        best = max(overlaps)
        if best >= 0.5:
            foreground[tuple(box)] = int(targets.labels[overlaps.index(best)])
        elif best >= 0.1:
            background.add(tuple(box))
    return foreground, background


def crowded_scene(make_boxes: MakeBoxes, seed: int) -> tuple[Tensor, Targets]:
    """Objects, many proposals near them, and many elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    objects = 20 + make_boxes(3, seed=seed) * 0.6
    near = objects.repeat(40, 1) + torch.randn(120, 4, generator=generator) * 4
    near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
    labels = torch.randint(1, 4, (3,), generator=generator)
    return torch.cat((near, make_boxes(200, seed=seed + 50))), Targets.make(objects, labels)


@pytest.mark.parametrize("seed", range(5))
def test_every_drawn_roi_follows_the_rules(make_boxes: MakeBoxes, seed: int) -> None:
    rois, targets = crowded_scene(make_boxes, seed)
    boxes, labels, box_targets, rows, _ = drawn(RoISampler(CODER, rois_per_image=128), rois, targets, seed)
    assert torch.equal(boxes[rows >= 0], rois[rows[rows >= 0]])
    objects = {tuple(box) for box in targets.boxes.tolist()}
    assert all(tuple(box) in objects for box in boxes[rows < 0].tolist())
    foreground, background = roles(rois, targets)
    drawn_foreground = int((labels > 0).sum())
    assert drawn_foreground == min(32, len(foreground))
    assert len(boxes) == drawn_foreground + min(128 - drawn_foreground, len(background))
    for box, label, target in zip(boxes.tolist(), labels.tolist(), box_targets, strict=True):
        if label:
            assert foreground[tuple(box)] == label
            overlaps = [slow_iou(box, one) for one in targets.boxes.tolist()]
            matched = targets.boxes[overlaps.index(max(overlaps))][None]
            expected = CODER.encode(torch.tensor([box]), matched, torch.tensor([label]))
            assert torch.equal(target, expected[0])
        else:
            assert tuple(box) in background
            assert not target.any()
    assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)  # none twice


def test_the_paper_draws_128_rois_of_two_images_at_most_32_foreground(make_boxes: MakeBoxes) -> None:
    scenes = [crowded_scene(make_boxes, seed) for seed in (3, 4)]
    parts = [drawn(RoISampler(CODER), *scene) for scene in scenes]
    sampled = SampledRoIs.stack(parts)
    assert sampled.rois.shape == (128, 5)
    assert sampled.rois[:, 0].tolist() == [0] * 64 + [1] * 64
    assert [int((part > 0).sum()) for part in sampled.labels.split(64)] == [16, 16]


def test_only_the_arguments_decide_what_is_drawn(make_boxes: MakeBoxes) -> None:
    """No call changes what the next one draws; so threads may share a sampler in any order."""
    scenes = [crowded_scene(make_boxes, seed) for seed in range(4)]
    sampler = RoISampler(CODER)
    expected = [drawn(sampler, *scene, seed=7) for scene in scenes]
    again = [drawn(sampler, *scene, seed=7) for scene in reversed(scenes)][::-1]
    for one, other in zip(expected, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
    assert not torch.equal(drawn(sampler, *scenes[0], seed=8).boxes, expected[0].boxes)


def test_neither_the_regions_nor_the_targets_are_changed(make_boxes: MakeBoxes) -> None:
    rois, targets = crowded_scene(make_boxes, 0)
    kept, boxes = rois.clone(), targets.boxes.clone()
    found = drawn(RoISampler(CODER), rois, targets)
    found.boxes.add_(1)
    assert torch.equal(rois, kept)
    assert torch.equal(targets.boxes, boxes)


def test_the_global_generators_are_not_used(make_boxes: MakeBoxes) -> None:
    before, numpys = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    drawn(RoISampler(CODER), *crowded_scene(make_boxes, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(np.random.get_state()) == numpys  # noqa: NPY002


def test_every_candidate_is_drawn_equally_often(make_boxes: MakeBoxes) -> None:
    """16 of the foreground and 48 of the background, over many generators: within five deviations."""
    rois, targets = crowded_scene(make_boxes, 1)
    foreground, background = roles(rois, targets)
    counts = dict.fromkeys([*foreground, *background], 0)
    draws, sampler = 400, RoISampler(CODER)
    for seed in range(draws):
        for box in drawn(sampler, rois, targets, seed).boxes.tolist():
            counts[tuple(box)] += 1
    for group, count in ((foreground, 16), (background, 48)):
        share = count / len(group)
        assert 0.05 < share < 0.8
        deviation = (draws * share * (1 - share)) ** 0.5
        assert all(abs(counts[box] - draws * share) < 5 * deviation for box in group)


def one_object(**flags: bool) -> Targets:
    given = {name: torch.tensor([value]) for name, value in flags.items()}
    return Targets.make(torch.tensor([[10.0, 10.0, 50.0, 50.0]]), torch.tensor([2]), **given)


ON_OBJECT, NEAR, FAR = [10.0, 10.0, 50.0, 48.0], [30.0, 10.0, 70.0, 50.0], [80.0, 80.0, 99.0, 99.0]


def labels_of(sampler: RoISampler, boxes: list[list[float]], targets: Targets) -> dict[tuple, int]:
    found = drawn(sampler, torch.tensor(boxes).reshape(-1, 4), targets)
    return {tuple(box): label for box, label in zip(found.boxes.tolist(), found.labels.tolist(), strict=True)}


def test_overlap_bounds_and_ground_truth_among_the_proposals() -> None:
    found = labels_of(RoISampler(CODER), [ON_OBJECT, NEAR, FAR], one_object())
    assert found == {(10, 10, 50, 50): 2, tuple(ON_OBJECT): 2, tuple(NEAR): 0}  # FAR is below 0.1
    without = RoISampler(CODER, add_targets=False, background_iou=(0.0, 0.5))
    assert labels_of(without, [ON_OBJECT, NEAR, FAR], one_object()) == {
        tuple(ON_OBJECT): 2,
        tuple(NEAR): 0,
        tuple(FAR): 0,
    }


def test_the_bounds_themselves_belong_to_foreground_and_to_background() -> None:
    half, tenth = [10.0, 10.0, 50.0, 30.0], [10.0, 10.0, 50.0, 14.0]
    assert slow_iou(half, [10, 10, 50, 50]) == 0.5
    sampler = RoISampler(CODER, add_targets=False, background_iou=(0.25, 0.5))
    quarter = [10.0, 10.0, 50.0, 20.0]
    assert labels_of(sampler, [half, tenth, quarter], one_object()) == {tuple(half): 2, tuple(quarter): 0}


def test_an_image_without_objects_gives_only_background(make_boxes: MakeBoxes) -> None:
    boxes, labels, targets = drawn(RoISampler(CODER, rois_per_image=8), make_boxes(30), Targets.empty())[:3]
    assert boxes.shape == targets.shape == (8, 4)
    assert not labels.any()
    assert not targets.any()


def test_an_image_without_proposals_gives_its_objects_or_nothing() -> None:
    assert labels_of(RoISampler(CODER), [], one_object()) == {(10, 10, 50, 50): 2}
    assert labels_of(RoISampler(CODER), [], Targets.empty()) == {}
    assert labels_of(RoISampler(CODER, add_targets=False), [], one_object()) == {}


def test_without_foreground_background_fills_the_batch() -> None:
    sampler = RoISampler(CODER, rois_per_image=4, add_targets=False)
    shifted = [[30.0 + step, 10.0, 70.0 + step, 50.0] for step in range(6)]
    found = labels_of(sampler, shifted, one_object())
    assert list(found.values()) == [0] * 4


def test_too_little_background_gives_a_smaller_batch() -> None:
    sampler = RoISampler(CODER, rois_per_image=64, add_targets=False)
    many_on_it = [[10.0, 10.0, 50.0, 48.0 - step / 4] for step in range(40)]
    found = labels_of(sampler, [*many_on_it, NEAR], one_object())
    assert sorted(found.values()) == [0] + [2] * 16


def test_difficult_objects_train_as_in_the_paper_or_do_not_count() -> None:
    difficult = one_object(difficult=True)
    assert labels_of(RoISampler(CODER), [ON_OBJECT], difficult)[tuple(ON_OBJECT)] == 2
    skipping = RoISampler(CODER, use_difficult=False)
    assert labels_of(skipping, [ON_OBJECT, FAR], difficult) == {tuple(ON_OBJECT): 0, tuple(FAR): 0}


def test_a_crowd_is_neither_object_nor_background() -> None:
    crowd = one_object(crowd=True)
    assert labels_of(RoISampler(CODER), [ON_OBJECT, NEAR, FAR], crowd) == {tuple(NEAR): 0, tuple(FAR): 0}
    both = Targets.make(
        torch.tensor([[10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 99.0, 99.0]]),
        torch.tensor([2, 3]),
        crowd=torch.tensor([True, False]),
    )
    wide = RoISampler(CODER, background_iou=(0.0, 0.5), add_targets=False)
    assert labels_of(wide, [ON_OBJECT, NEAR, [62.0, 60.0, 99.0, 99.0]], both) == {
        tuple(NEAR): 0,
        (62.0, 60.0, 99.0, 99.0): 3,
    }


def test_boxes_without_area_are_never_drawn() -> None:
    flat = [[20.0, 20.0, 20.0, 40.0], [40.0, 40.0, 30.0, 45.0], [5.0, 5.0, 5.0, 5.0]]
    assert labels_of(RoISampler(CODER), flat, Targets.empty()) == {}
    _, _, targets = drawn(RoISampler(CODER), torch.tensor([*flat, NEAR]), one_object())[:3]
    assert targets.isfinite().all()


def test_the_first_of_equal_objects_wins() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 2)
    overlap, match = match_proposals(boxes[:1], Targets.make(boxes, torch.tensor([3, 1])))
    assert (overlap.item(), match.item()) == (1.0, 0)
    overlap, match = match_proposals(boxes, Targets.empty())
    assert (overlap.tolist(), match.tolist()) == ([0, 0], [0, 0])


def test_targets_use_the_statistics_of_the_matched_class() -> None:
    deviations = torch.ones(4, 4)
    deviations[2] = 0.5
    sampler = RoISampler(BoxCoder(torch.zeros(4, 4), deviations), add_targets=False)
    _, _, halved = drawn(sampler, torch.tensor([ON_OBJECT]), one_object())[:3]
    plain = RoISampler(BoxCoder(torch.zeros(4, 4), torch.ones(4, 4)), add_targets=False)
    assert torch.equal(halved, 2 * drawn(plain, torch.tensor([ON_OBJECT]), one_object())[2])


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_wanted_share_of_the_background_lies_far_from_objects(
    make_boxes: MakeBoxes, seed: int, fraction: float
) -> None:
    rois, targets = crowded_scene(make_boxes, seed)
    sampler = RoISampler(CODER, rois_per_image=32, far_background_fraction=fraction)
    boxes, labels, _ = drawn(sampler, rois, targets)[:3]
    overlap, _ = match_proposals(boxes[labels == 0], targets)
    count = len(overlap)
    assert count == 24
    assert int((overlap < 0.1).sum()) == round(count * fraction)
    assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)


def test_each_part_of_the_background_fills_what_the_other_lacks(make_boxes: MakeBoxes) -> None:
    rois, targets = crowded_scene(make_boxes, 0)
    overlap, _ = match_proposals(rois, targets)
    for few, others in ((overlap < 0.1, overlap >= 0.1), (overlap >= 0.1, overlap < 0.1)):
        chosen = torch.cat((torch.nonzero(few)[:2, 0], torch.nonzero(others & (overlap < 0.5))[:, 0]))
        sampler = RoISampler(CODER, rois_per_image=16, foreground_fraction=0.0, far_background_fraction=0.5)
        boxes, _, _ = drawn(sampler, rois[chosen], targets)[:3]
        assert len(boxes) == 16


def test_an_image_without_objects_has_background_of_every_kind(make_boxes: MakeBoxes) -> None:
    sampler = RoISampler(CODER, rois_per_image=16, far_background_fraction=0.5)
    boxes, labels, _ = drawn(sampler, make_boxes(40), Targets.empty())[:3]
    assert (len(boxes), int(labels.sum())) == (16, 0)


@given(data=st.data())
def test_matching_equals_the_slow_computation(data: st.DataObject) -> None:
    coordinate = st.integers(-2, 12).map(float)
    corners = st.tuples(coordinate, coordinate, coordinate, coordinate)
    proposals = torch.tensor(data.draw(st.lists(corners, max_size=20))).reshape(-1, 4)
    boxes = torch.tensor(data.draw(st.lists(corners, min_size=1, max_size=6)))
    overlap, match = match_proposals(
        proposals, Targets.make(boxes, torch.ones(len(boxes), dtype=torch.int64))
    )
    if len(proposals):
        expected, first = iou(proposals, boxes).max(dim=1)
        assert torch.equal(overlap, expected)
        assert torch.equal(match, first)
    else:
        assert len(overlap) == len(match) == 0


def with_several_labels(make_boxes: MakeBoxes, seed: int) -> tuple[Tensor, Targets]:
    """A crowded scene in which the first object has two more labels, one of them twice."""
    rois, targets = crowded_scene(make_boxes, seed)
    first = int(targets.labels[0])
    others = [first % 3 + 1, (first + 1) % 3 + 1, first]
    boxes = torch.cat((targets.boxes, targets.boxes[:1].expand(3, 4)))
    return rois, Targets.make(boxes, torch.cat((targets.labels, torch.tensor(others))))


def slow_label_sets(boxes: Tensor, targets: Targets) -> list[set[int]]:
    """The labels of all objects with the box of each region's best object, none below an IoU of 0.5."""
    found = []
    objects, labels = targets.boxes.tolist(), targets.labels.tolist()
    for box in boxes.tolist():
        overlaps = [slow_iou(box, one) for one in objects]
        best = objects[overlaps.index(max(overlaps))]
        same = {label for one, label in zip(objects, labels, strict=True) if one == best}
        found.append(same if max(overlaps) >= 0.5 else set())
    return found


def unequal_coder() -> BoxCoder:
    generator = torch.Generator().manual_seed(0)
    return BoxCoder(torch.randn(4, 4, generator=generator), 0.1 + torch.rand(4, 4, generator=generator))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("every", [False, True], ids=["random", "ohem"])
def test_a_region_has_the_labels_of_all_objects_with_its_box(
    make_boxes: MakeBoxes, seed: int, every: bool
) -> None:
    rois, targets = with_several_labels(make_boxes, seed)
    coder = unequal_coder()
    kind = EveryRegion if every else RoISampler
    found = kind(coder, multi_label=True)(rois, targets, np.random.default_rng(seed))
    sets = present(found.label_sets)
    expected = slow_label_sets(found.boxes, targets)
    assert [set(row.nonzero()[:, 0].tolist()) for row in sets] == expected
    assert {0, 1, 3} <= {len(one) for one in expected}
    assert found.box_targets.shape == (len(rois) + 3 if every else len(found.boxes), 4, 4)
    assert len({tuple(box) for box in found.boxes.tolist()}) == len(found.boxes)  # no object is added twice
    for row, labels in enumerate(expected):
        assert int(found.labels[row]) in (labels or {0})
        overlap = [slow_iou(found.boxes[row].tolist(), one) for one in targets.boxes.tolist()]
        matched = targets.boxes[overlap.index(max(overlap))][None]
        for label in range(4):
            wanted = coder.encode(found.boxes[row, None], matched, torch.tensor([label]))[0]
            own = found.box_targets[row, label]
            torch.testing.assert_close(own, wanted if label in labels else torch.zeros(4))


def test_objects_of_one_label_each_are_drawn_as_without_label_sets(make_boxes: MakeBoxes) -> None:
    rois, targets = crowded_scene(make_boxes, 1)
    one, several = (drawn(RoISampler(CODER, multi_label=each), rois, targets, 7) for each in (False, True))
    assert torch.equal(one.boxes, several.boxes)
    assert torch.equal(one.labels, several.labels)
    assert one.label_sets is None
    assert torch.equal(present(several.label_sets).sum(dim=1), (one.labels > 0).long())
    own = several.box_targets[torch.arange(len(one.labels)), one.labels]
    torch.testing.assert_close(own, one.box_targets)
    none = drawn(RoISampler(CODER, multi_label=True), rois, Targets.empty())
    assert len(none.boxes) > 0
    assert not present(none.label_sets).any()
    assert not none.box_targets.any()


def test_label_sets_follow_their_regions_into_a_batch(make_boxes: MakeBoxes) -> None:
    sampler = RoISampler(CODER, multi_label=True)
    parts = [drawn(sampler, *with_several_labels(make_boxes, seed)) for seed in (0, 1)]
    sampled = SampledRoIs.stack(parts)
    assert torch.equal(present(sampled.label_sets), torch.cat([present(part.label_sets) for part in parts]))
    assert present(sampled.to("cpu").label_sets).any()
    assert len(sampled.device_tensors()) == 4
    with pytest.raises(ValueError, match="box_targets"):
        replace(sampled, box_targets=sampled.box_targets[:, 0])
