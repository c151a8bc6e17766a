"""Pooling from standard operators gives what the native operators give, for all rules and any RoI."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.ops.portable_pooling import PortablePool
from detector.ops.roi_pool import roi_pool
from detector.ops.spp_pool import spp_pool
from tests.ops.rois import random_rois

SIDES = st.integers(1, 40)
EDGES = st.one_of(
    st.integers(-40, 700).map(float),
    st.sampled_from([0.0, 8.0, 24.0, -8.0, 1e6, -1e6, 1e12, -1e30, 3e38]),
    st.floats(-50, 700, width=32),
)
ROIS = st.lists(st.tuples(EDGES, EDGES, EDGES, EDGES), max_size=6).map(
    lambda rows: torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
)


def feature_map(height: int, width: int, seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, channels, height, width, generator=generator)


def with_image(rois: Tensor) -> Tensor:
    return torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1)


def portable(rule: str, grids: list[int], cells: int, **options: bool) -> PortablePool:
    return PortablePool(rule, grids, [(16, 0.0, 8.0)], cells, **options)


@settings(max_examples=35, deadline=None)
@given(SIDES, SIDES, ROIS, st.sampled_from(["caffe", "exact"]), st.sampled_from([1, 3, 7]))
def test_roi_pooling_of_any_region(height: int, width: int, rois: Tensor, rule: str, bins: int) -> None:
    features = feature_map(height, width)
    expected = roi_pool(features, with_image(rois), bins, 1 / 16, rule).flatten(1)
    found = portable(rule, [bins], max(height, width), anywhere=True)([features], rois)
    assert torch.equal(found, expected)


@settings(max_examples=35, deadline=None)
@given(SIDES, SIDES, ROIS, st.sampled_from([("roi", "exact"), ("spp", "spp")]), st.booleans())
def test_pyramid_pooling_of_any_region(
    height: int, width: int, rois: Tensor, window: tuple[str, str], average: bool
) -> None:
    features, grids = feature_map(height, width), [6, 3, 2, 1]
    reduction = "avg" if average else "max"
    expected = spp_pool(features, with_image(rois), grids, 1 / 16, reduction, window[0])
    pool = portable(window[1], grids, max(height, width), average=average, anywhere=True)
    found = pool([features], rois)
    if average:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("side", [29, 57, 58, 114, 116])
def test_the_edges_that_caffes_rule_rounds_up_are_looked_up_alike(side: int) -> None:
    features = feature_map(side + 3, side + 3, channels=1)
    ends = 16.0 * torch.arange(1, side + 3)
    rois = torch.stack((torch.zeros_like(ends), torch.zeros_like(ends), ends, ends), dim=1)
    expected = roi_pool(features, with_image(rois), 7, 1 / 16).flatten(1)
    assert torch.equal(portable("caffe", [7], side + 3)([features], rois), expected)


@pytest.mark.parametrize("rule", ["caffe", "exact"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 50), (37, 60), (63, 5)])
def test_looked_up_edges_for_regions_on_the_map(rule: str, height: int, width: int) -> None:
    features, rois = feature_map(height, width), random_rois(400, 1, (16 * height, 16 * width), seed=3)
    ends = 16.0 * torch.tensor([width, height, width, height])
    rois[:, 1:] = rois[:, 1:].clamp(min=0).minimum(ends)
    expected = roi_pool(features, rois, 7, 1 / 16, rule).flatten(1)
    assert torch.equal(portable(rule, [7], max(height, width))([features], rois[:, 1:]), expected)


def test_whole_maps_in_cells_and_no_regions() -> None:
    features = feature_map(13, 9)
    whole = torch.tensor([[0.0, 0.0, 9.0, 13.0]])
    for average in (False, True):
        expected = spp_pool(
            features, with_image(whole), [4, 2, 1], reduction="avg" if average else "max", window="cells"
        )
        found = PortablePool("cells", [4, 2, 1], [(1, 0, 0)], 13, average=average)([features], whole)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert portable("caffe", [7], 13)([features], torch.zeros(0, 4)).shape == (0, 3 * 49)


def test_nan_and_infinity_in_the_map() -> None:
    features = feature_map(12, 12)
    features[:, :, ::3] = math.nan
    features[:, :, 1::3, ::2] = -math.inf
    rois = random_rois(100, 1, (192, 192), seed=5)
    expected = roi_pool(features, rois, 5, 1 / 16).flatten(1)
    found = portable("caffe", [5], 12, anywhere=True)([features], rois[:, 1:])
    assert torch.equal(found, expected)


def test_each_region_is_pooled_from_its_level() -> None:
    levels = [feature_map(40, 48, 1), feature_map(20, 24, 2), feature_map(10, 12, 3)]
    rois = random_rois(90, 1, (160, 192), seed=7)[:, 1:].clamp(min=0, max=160)
    numbers = torch.arange(90) % 3
    strides, centers = (4, 8, 16), (1.5, 3.5, 7.5)
    pool = PortablePool("caffe", [3], [(*place, 0.0) for place in zip(strides, centers, strict=True)], 48)
    shrinks = (2.0, 4.0, 6.5)
    spp = PortablePool("spp", [2, 1], list(zip(strides, centers, shrinks, strict=True)), 48)
    found, of_pyramid = pool(levels, rois, numbers), spp(levels, rois, numbers)
    for number, (level, stride, center) in enumerate(zip(levels, strides, centers, strict=True)):
        own, rows = numbers == number, with_image(rois[numbers == number])
        shifted = torch.cat((rows[:, :1], rows[:, 1:] - center), dim=1)
        assert torch.equal(found[own], roi_pool(level, shifted, 3, 1 / stride).flatten(1))
        expected = spp_pool(level, rows, [2, 1], 1 / stride, "max", "spp", center, shrinks[number])
        assert torch.equal(of_pyramid[own], expected)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="rule must be one of caffe"):
        portable("round", [1], 4)
