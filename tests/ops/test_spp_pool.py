"""Spatial pyramid pooling against torch's adaptive pools, roi_pool, the paper's rule and the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from detector.ops import SpatialPyramidPool, roi_pool, spp_pool, whole_map_rois
from tests.ops import reference
from tests.ops.rois import random_rois
from tests.typed import gradient

LEVELS = (6, 3, 2, 1)


def level_by_level(pool: type[nn.Module], features: Tensor, levels: tuple[int, ...]) -> Tensor:
    return torch.cat([pool(n)(features).flatten(1) for n in levels], dim=1)


@pytest.mark.parametrize("levels", [LEVELS, (1, 2, 4), (7,), (3, 5, 1), (4, 4, 2)])
def test_roi_window_is_the_exact_roi_pool_level_by_level(levels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 83, 38, 50, requires_grad=True)
    rois = random_rois(60, 2, (608, 800))
    pooled = spp_pool(features, rois, levels)
    expected = torch.cat([roi_pool(features, rois, n, 1 / 16, "exact").flatten(1) for n in levels], dim=1)
    assert torch.equal(pooled, expected)
    assert torch.equal(spp_pool(features.detach(), rois, levels), expected)
    grad = torch.randn_like(pooled)
    (ours,) = torch.autograd.grad(pooled, features, grad)
    (theirs,) = torch.autograd.grad(expected, features, grad)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reduction", ["max", "avg"])
def test_the_whole_map_in_cells_is_adaptive_pooling(reduction: str) -> None:
    """Every height and width up to 64, and levels 1, 2, 3, 4 and 6."""
    levels = (1, 2, 3, 4, 6)
    adaptive = nn.AdaptiveMaxPool2d if reduction == "max" else nn.AdaptiveAvgPool2d
    torch.manual_seed(1)
    whole = torch.randn(1, 2, 64, 64)
    for height in range(1, 65):
        width = (height * 37) % 64 + 1
        for side in ((height, width), (width, height)):
            features = whole[..., : side[0], : side[1]]
            pooled = spp_pool(features, whole_map_rois([side]), levels, reduction=reduction, window="cells")
            expected = level_by_level(adaptive, features, levels)
            torch.testing.assert_close(pooled, expected, rtol=0 if reduction == "max" else 1e-5, atol=1e-6)


def test_whole_map_rois_leave_the_padding_out() -> None:
    sizes = [(5, 7), (9, 4)]
    padded = torch.full((2, 3, 9, 7), 100.0)
    parts = [torch.randn(1, 3, *size) for size in sizes]
    for image, part, (height, width) in zip(padded, parts, sizes, strict=True):
        image[:, :height, :width] = part[0]
    pooled = spp_pool(padded, whole_map_rois(sizes), window="cells")
    expected = torch.cat([level_by_level(nn.AdaptiveMaxPool2d, part, LEVELS) for part in parts])
    assert torch.equal(pooled, expected)
    assert whole_map_rois([]).shape == (0, 5)


def test_maximum_leaves_negative_numbers_alone() -> None:
    features = -torch.rand(1, 4, 6, 6) - 1
    pooled = spp_pool(features, whole_map_rois([(6, 6)]), window="cells")
    assert pooled.max() < -1


# Boxes half-open in pixels; cells (left, right), both in, on a map of 40 columns at stride 16. Worked out by
# hand from the rule in spp_pool's docstring: `paper` has centre 0 and shrink 8, where it is floor(x / S) + 1
# and ceil(x / S) - 1 on the first and last pixel; `zf5` centre 20 and shrink 6.5; `vgg` centre 7.5, shrink 8.
GOLDEN = {
    # x1, x2: paper, zf5, vgg
    (0, 224): ((1, 13), (0, 12), (0, 13)),
    (16, 48): ((2, 2), (0, 1), (1, 2)),
    (17, 50): ((2, 3), (0, 1), (1, 2)),
    (100, 101): ((6, 6), (5, 5), (5, 5)),
    (96, 104): ((6, 6), (5, 5), (5, 5)),
    (-50, 10): ((0, 0), (0, 0), (0, 0)),
    (600, 700): ((38, 39), (37, 39), (38, 39)),
}


@pytest.mark.parametrize(("center", "shrink", "column"), [(0.0, None, 0), (20.0, 6.5, 1), (7.5, 8.0, 2)])
def test_spp_projection_golden_table(center: float, shrink: float | None, column: int) -> None:
    ramp = torch.arange(40.0).reshape(1, 1, 1, 40)
    for (first, last), expected in GOLDEN.items():
        roi = torch.tensor([[0.0, first, 0, last, 16]])
        options: dict[str, Any] = {"levels": (1,), "window": "spp", "center": (0.0, center)}
        options["shrink"] = None if shrink is None else (8.0, shrink)
        right = spp_pool(ramp, roi, **options).item()
        left = -spp_pool(-ramp, roi, **options).item()
        assert (left, right) == expected[column], (first, last)
        inside = 8.0 if shrink is None else shrink
        assert reference.spp_window(first, last, 16, center, inside, 40) == expected[column]


def test_spp_projection_is_the_papers_rule_at_centre_zero() -> None:
    """floor(x / S) + 1 and ceil(x / S) - 1 for the first and last pixel, wherever they do not cross."""
    ramp = torch.arange(60.0).reshape(1, 1, 1, 60)
    for first in range(0, 300, 7):
        for last in range(first + 40, 800, 31):
            left, right = first // 16 + 1, math.ceil((last - 1) / 16) - 1
            roi = torch.tensor([[0.0, first, 0, last, 16]])
            assert spp_pool(ramp, roi, (1,), window="spp").item() == right
            assert -spp_pool(-ramp, roi, (1,), window="spp").item() == left


@settings(max_examples=120, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 17]), st.integers(1, 12), st.integers(1, 12)),
    levels=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    reduction=st.sampled_from(["max", "avg"]),
    window=st.sampled_from(["roi", "spp", "cells"]),
    center=st.sampled_from([0.0, 7.5, 20.0]),
    shrink=st.sampled_from([None, 6.5]),
    channels_last=st.booleans(),
    count=st.integers(0, 3),
    seed=st.integers(0, 2**20),
)
def test_equals_the_reference(
    shape: tuple[int, int, int, int],
    levels: tuple[int, ...],
    dtype: torch.dtype,
    reduction: str,
    window: str,
    center: float,
    shrink: float | None,
    channels_last: bool,
    count: int,
    seed: int,
) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    index_type = torch.float64 if dtype == torch.float64 else torch.float32
    stride = 1 if window == "cells" else 16
    rois = random_rois(count, shape[0], (shape[2] * stride, shape[3] * stride), seed, index_type).round()
    geometry = (levels, 1 / 16, reduction, window, center, shrink)
    expected = reference.spp_pool(features, rois, *geometry)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    pooled = spp_pool(features.contiguous(memory_format=layout), rois, *geometry)
    if reduction == "max":
        assert torch.equal(pooled, expected)
    else:
        torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("reduction", ["max", "avg"])
@pytest.mark.parametrize("window", ["roi", "spp", "cells"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradient_equals_autograd_through_slices(reduction: str, window: str, dtype: torch.dtype) -> None:
    """The reference is torch's own gradient of a pyramid cut out by hand, in float64."""
    torch.manual_seed(2)
    features = torch.randperm(2 * 19 * 8 * 9).reshape(2, 19, 8, 9).to(torch.float32) / 64
    features = features.to(dtype)
    rois = torch.tensor([[0.0, 1, 2, 7, 8], [1, 0, 0, 9, 8], [1, 3, 3, 4, 4], [0, 2, 1, 8, 5]])
    scaled = rois if window == "cells" else rois * torch.tensor([1.0, 16, 16, 16, 16])

    ours = features.clone().requires_grad_()
    pooled = spp_pool(ours, scaled, (3, 2, 1), reduction=reduction, window=window)
    grad = torch.randn(pooled.shape).to(dtype)
    pooled.backward(grad)

    def spans(first: float, last: float, n: int, axis: int) -> list[tuple[int, int]]:
        if window == "cells":
            return list(reference.cell_bins(first, last, n))
        if window == "roi":
            return list(reference.exact_bins(first, last, 1 / 16, n, float))
        left, right = reference.spp_window(first, last, 16, 0, 8, features.shape[2 + axis])
        return list(reference.exact_cut(left, right - left + 1, n))

    theirs = features.double().requires_grad_()
    parts = []
    for index, x1, y1, x2, y2 in scaled.tolist():
        for n in (3, 2, 1):
            bins = [
                theirs[int(index), :, max(top, 0) : bottom, max(left, 0) : right]
                for top, bottom in spans(y1, y2, n, 0)
                for left, right in spans(x1, x2, n, 1)
            ]
            values = [part.amax((1, 2)) if reduction == "max" else part.mean((1, 2)) for part in bins]
            parts.append(torch.stack(values, dim=1).flatten())
    torch.cat(parts).backward(grad.double().flatten())
    unique = torch.cat([features.flatten()]).unique().numel() == features.numel()
    if reduction == "avg" or unique:  # amax shares the gradient among ties, which narrow types make
        tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(gradient(ours).double(), gradient(theirs), rtol=tolerance, atol=tolerance)


def test_pairs_are_vertical_then_horizontal() -> None:
    torch.manual_seed(3)
    features = torch.randn(1, 2, 20, 10)
    rois = random_rois(20, 1, (160, 160))
    wide = spp_pool(features, rois, (2, 1), spatial_scale=(1 / 8, 1 / 16), window="spp", center=(3.5, 7.5))
    tall = spp_pool(
        features.transpose(2, 3),
        rois[:, [0, 2, 1, 4, 3]],
        (2, 1),
        spatial_scale=(1 / 16, 1 / 8),
        window="spp",
        center=(7.5, 3.5),
    )
    corners = torch.tensor([0, 2, 1, 3, 4])  # transposing a 2 x 2 grid exchanges its second and third bin
    assert torch.equal(wide[:, :4], tall[:, :8].reshape(20, 2, 4)[:, :, corners[:4]].reshape(20, 8)[:, :4])
    assert torch.equal(wide[:, 8:], tall[:, 8:])


def test_module_is_the_function() -> None:
    features, rois = torch.randn(1, 3, 12, 12), random_rois(5, 1, (96, 192))
    module = SpatialPyramidPool(
        (3, 1), (1 / 8, 1 / 16), reduction="avg", window="spp", center=3.0, shrink=2.0
    )
    expected = spp_pool(features, rois, (3, 1), (1 / 8, 1 / 16), "avg", "spp", 3.0, 2.0)
    assert torch.equal(module(features, rois), expected)
    assert "levels=(3, 1), spatial_scale=(0.125, 0.0625), reduction='avg'" in repr(module)


def test_wrong_options_name_the_right_ones() -> None:
    features, rois = torch.randn(1, 1, 4, 4), torch.zeros(1, 5)
    with pytest.raises(ValueError, match="window must be one of roi, spp, cells, not 'pixels'"):
        spp_pool(features, rois, window="pixels")
    with pytest.raises(ValueError, match="reduction must be one of max, avg, not 'sum'"):
        spp_pool(features, rois, reduction="sum")
    with pytest.raises(RuntimeError, match="at least one bin, not 0 x 0"):
        spp_pool(features, rois, levels=(2, 0))
    with pytest.raises(ValueError, match="levels is empty"):
        spp_pool(features, rois, levels=())
    for scale in (0, -1.0, (1 / 16, 0.0)):
        with pytest.raises(ValueError, match="spatial_scale must be positive"):
            spp_pool(features, rois, spatial_scale=scale)
    for name in ("spatial_scale", "center", "shrink"):
        for wrong in (float("nan"), (1.0, float("inf")), (1.0, 2.0, 3.0)):
            given: dict[str, Any] = {name: wrong}
            with pytest.raises(ValueError, match=f"{name} must be one finite number or a pair"):
                spp_pool(features, rois, window="spp", **given)
    with pytest.raises(RuntimeError, match=r"row 0 of rois holds 0.5; with window=\"cells\""):
        spp_pool(features, torch.tensor([[0.0, 0.5, 0, 2, 2]]), window="cells")
