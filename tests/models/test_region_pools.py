"""Region pools: the pyramid over regions, over one level and over several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detector.models.region_pools import LevelPool, PyramidPooling, RoIPooling
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
    assert 0 < equal.sum() < len(rois) - 1
    assert len(windows) == len(rois) - int(equal.sum())
    assert torch.equal(pooled[1:][equal], pooled[:-1][equal])
