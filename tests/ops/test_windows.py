"""Windows in cells against the pooling operators, which compute their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detector.ops import roi_pool, spp_pool
from detector.ops.windows import distinct_rows, projected_windows, rounded_windows


def close_rois(seed: int, count: int = 600) -> Tensor:
    """Return RoIs of two images, many of which round to the same cells, some exactly between two cells."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(-40, 200, (count, 4), generator=generator) / 4  # quarters: many halves of cells
    whole[::3] += torch.rand(len(whole[::3]), 4, generator=generator)
    return torch.cat((torch.arange(count)[:, None] % 2, whole.sort(dim=1).values), dim=1)


def assert_equal_windows_pool_equally(windows: Tensor, pooled: Tensor) -> None:
    chosen, places = distinct_rows(windows)
    assert 10 < len(chosen) < len(windows)  # some are equal, and not all
    assert torch.equal(windows[chosen][places], windows)
    assert torch.equal(pooled[chosen][places], pooled)


@pytest.mark.parametrize("scale", [1 / 16, 1 / 8, 1 / 12, 1.0])
@pytest.mark.parametrize("bins", ["caffe", "exact", "partition"])
def test_rois_of_equal_rounded_windows_pool_the_same_bits(scale: float, bins: str) -> None:
    features, rois = torch.randn(2, 3, 9, 11), close_rois(seed=1)
    if scale == 1.0:
        rois[:, 1:] /= 12
    pooled = roi_pool(features, rois, 3, scale, bins)
    assert_equal_windows_pool_equally(rounded_windows(rois, scale), pooled)


@pytest.mark.parametrize(("center", "shrink"), [(0.0, 8.0), (20.0, 6.5), (3.5, 4.0)])
@pytest.mark.parametrize("stride", [16, 12])
def test_rois_of_equal_projected_windows_pool_the_same_bits(
    center: float, shrink: float, stride: int
) -> None:
    features, rois = torch.randn(2, 3, 9, 11), close_rois(seed=2)
    pooled = spp_pool(features, rois, (3, 1), 1 / stride, "max", "spp", center, shrink)
    assert_equal_windows_pool_equally(projected_windows(rois, 1 / stride, center, shrink), pooled)


def test_halves_are_rounded_away_from_zero_and_images_lose_their_fraction() -> None:
    numbers = [-2.5, -1.5, -0.5, -0.49999997, 0.49999997, 0.5, 1.5, 2.5]
    expected = [-3.0, -2.0, -1.0, 0.0, 0.0, 1.0, 2.0, 3.0]
    rois = torch.tensor([[1.9, *numbers[:4]], [0.0, *numbers[4:]]])
    assert rounded_windows(rois, 1.0).tolist() == [[1.0, *expected[:4]], [0.0, *expected[4:]]]


def test_the_first_of_equal_rows_is_chosen() -> None:
    chosen, places = distinct_rows(torch.tensor([[5.0, 1], [2, 0], [5, 1], [0, 9], [2, 0]]))
    assert chosen.tolist() == [3, 1, 0]
    assert places.tolist() == [2, 1, 2, 0, 1]
    assert [len(part) for part in distinct_rows(torch.zeros(0, 5))] == [0, 0]
