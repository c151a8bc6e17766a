"""Region pools: the pyramid over regions, over one level and over several."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torchvision.ops import poolers, roi_align

from detector.core.structures import stack_rois
from detector.models.region_pools import LevelPool, PyramidPooling, RoIAlignPooling, RoIPooling
from detector.ops import spp_pool
from tests.conftest import MakeBoxes


def rows(boxes: Tensor) -> Tensor:
    return torch.cat((torch.zeros(len(boxes), 1), boxes), dim=1)


@pytest.mark.parametrize("window", ["spp", "roi"])
@pytest.mark.parametrize("reduction", ["max", "avg"])
def test_pools_the_windows_of_its_stride_and_centre(
    make_boxes: MakeBoxes, window: str, reduction: str
) -> None:
    features, rois = torch.randn(1, 4, 12, 14), rows(make_boxes(20, 90.0))
    pool = PyramidPooling(4, (3, 1), 8, reduction=reduction, window=window, center=3.5, shrink=2.0)
    expected = spp_pool(features, rois, (3, 1), 1 / 8, reduction, window, 3.5, 2.0)
    assert torch.equal(pool([features], rois), expected)
    assert pool.out_features == expected.shape[1] == 40


def test_several_levels_equal_calls_of_their_own_and_pass_gradients(make_boxes: MakeBoxes) -> None:
    pool = PyramidPooling(4, (2, 1), 8)
    levels = [torch.randn(1, 4, 6 + 5 * number, 9, requires_grad=True) for number in range(2)]
    rois, roi_levels = rows(make_boxes(9, 60.0)), torch.arange(9) % 2
    found = pool(levels, rois, roi_levels)
    for number, level in enumerate(levels):
        mine = roi_levels == number
        assert torch.equal(found[mine], pool([level], rois[mine]))
    found.sum().backward()
    assert all(level.grad is not None and level.grad.any() for level in levels)


def test_a_region_smaller_than_a_cell_is_pooled_from_one() -> None:
    features = torch.randn(1, 3, 10, 10)
    pooled = PyramidPooling(3, (2, 1), 8)([features], torch.tensor([[0.0, 33.0, 41.0, 34.0, 42.0]]))
    values = torch.cat((pooled[0, :12].view(3, 4), pooled[0, 12:, None]), 1)
    assert (values == values[:, :1]).all()  # every bin repeats the one cell


@pytest.mark.parametrize(
    "pool",
    [
        RoIPooling(3, 3, 8),
        RoIPooling(3, 3, 8, center=3.5),
        RoIAlignPooling(3, 3, 8),
        PyramidPooling(3, (2, 1), 8, window="roi", center=2.0),
        PyramidPooling(3, (2, 1), 8, center=3.5),
        PyramidPooling(3, (2, 1), 12, center=3.5, shrink=2.0),
    ],
    ids=lambda pool: f"{type(pool).__name__}-{pool.extra_repr()}",
)
def test_regions_with_equal_windows_pool_to_the_same_bits(make_boxes: MakeBoxes, pool: LevelPool) -> None:
    features, rois = torch.randn(1, 3, 12, 12), rows(make_boxes(400, 90.0)).mul(2).round().div(2)
    windows, places = pool.windows(rois).unique(dim=0, return_inverse=True)
    order = torch.sort(places, stable=True).indices
    pooled = pool([features], rois)[order]
    equal = places[order][1:] == places[order][:-1]
    assert 0 < equal.sum() < len(rois) - 1 or isinstance(pool, RoIAlignPooling)
    assert len(windows) == len(rois) - int(equal.sum())
    assert torch.equal(pooled[1:][equal], pooled[:-1][equal])


PYRAMID = (4, 8, 16, 32)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_over_a_feature_pyramid_equals_torchvisions(
    make_boxes: MakeBoxes, ratio: int, aligned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torchvision's module always takes aligned=False: it puts cell k at k * stride, and takes smaller regions
    # for one cell wide.
    torch.manual_seed(0)
    center = None if aligned else 0.0
    monkeypatch.setattr(poolers, "roi_align", partial(roi_align, aligned=aligned))
    levels = [torch.randn(2, 3, 512 // stride, 448 // stride, requires_grad=True) for stride in PYRAMID]
    boxes = [make_boxes(60, 440.0, seed) for seed in range(2)]
    boxes = [rows[(rows[:, 2:] - rows[:, :2]).amin(1) > (1 if aligned else 33)] for rows in boxes]
    theirs = poolers.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, ratio or -1, canonical_scale=112)
    named = {str(number): level for number, level in enumerate(levels)}
    expected = theirs(named, boxes, [(512, 448)] * 2).flatten(1)
    assert theirs.map_levels is not None
    roi_levels = theirs.map_levels(boxes)
    assert len(roi_levels.unique()) >= 3

    pool = RoIAlignPooling(3, 7, PYRAMID, center, sampling_ratio=ratio)
    found = pool(levels, stack_rois(boxes), roi_levels)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), levels, allow_unused=True)
    others = torch.autograd.grad((expected * weights).sum(), levels, allow_unused=True)
    for mine, other in [(found, expected), *zip(ours, others, strict=True)]:
        assert (mine is None) == (other is None)
        if mine is not None and aligned:
            assert torch.equal(mine, other)
        elif mine is not None:
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def test_roi_align_with_the_networks_centre_moves_the_boxes(make_boxes: MakeBoxes) -> None:
    features, rois = torch.randn(1, 3, 12, 12), rows(make_boxes(20, 90.0))
    shifted = rois - torch.tensor([0.0, 1.5, 1.5, 1.5, 1.5])
    found = RoIAlignPooling(3, 2, 8, center=5.5)([features], rois)
    assert torch.equal(found, RoIAlignPooling(3, 2, 8)([features], shifted))
    assert RoIAlignPooling(3, 2, 8, center=4.0)([features], rois).equal(
        RoIAlignPooling(3, 2, 8)([features], rois)
    )


@pytest.mark.parametrize(
    ("many", "each"),
    [
        (RoIPooling(3, 3, (8, 16), (1.5, 2.5)), [RoIPooling(3, 3, 8, 1.5), RoIPooling(3, 3, 16, 2.5)]),
        (RoIAlignPooling(3, 3, (8, 16)), [RoIAlignPooling(3, 3, 8), RoIAlignPooling(3, 3, 16)]),
        (
            PyramidPooling(3, (2, 1), (8, 16), center=3.5),
            [PyramidPooling(3, (2, 1), 8, center=3.5), PyramidPooling(3, (2, 1), 16, center=3.5)],
        ),
    ],
    ids=["roi", "roi_align", "spp"],
)
def test_each_level_has_its_own_stride_and_centre(
    make_boxes: MakeBoxes, many: LevelPool, each: list[LevelPool]
) -> None:
    levels = [torch.randn(1, 3, side, side) for side in (12, 6, 16, 8)]  # two scales of a pyramid of two
    rois, roi_levels = rows(make_boxes(40, 90.0)), torch.arange(40) % 4
    found, windows = many(levels, rois, roi_levels), many.windows(rois, roi_levels)
    for number, level in enumerate(levels):
        mine = roi_levels == number
        assert torch.equal(found[mine], each[number % 2]([level], rois[mine]))
        assert torch.equal(windows[mine], each[number % 2].windows(rois[mine]))


def test_strides_and_centres_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 strides but 3 centers"):
        RoIPooling(3, 3, (8, 16), (0.0, 1.0, 2.0))
