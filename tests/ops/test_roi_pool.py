"""RoI pooling against torchvision's kernels and against the slow reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.ops import RoIPool, roi_pool
from tests.ops import reference
from tests.ops.rois import random_rois
from tests.typed import gradient

FLOATS = [torch.float32, torch.float64]
HALVES = [torch.float16, torch.bfloat16]
# Where T(p) * (T(h) / T(7)) leaves the window of h cells, for T one of the two types.
OVERSHOOT_HEIGHTS = (29, 57, 58, 114, 116, 121, 123)

ARTICLE_MAP = """
    0.88 0.44 0.14 0.16 0.37 0.77 0.96 0.27  0.19 0.45 0.57 0.16 0.63 0.29 0.71 0.70
    0.66 0.26 0.82 0.64 0.54 0.73 0.59 0.26  0.85 0.34 0.76 0.84 0.29 0.75 0.62 0.25
    0.32 0.74 0.21 0.39 0.34 0.03 0.33 0.48  0.20 0.14 0.16 0.13 0.73 0.65 0.96 0.32
    0.19 0.69 0.09 0.86 0.88 0.07 0.01 0.48  0.83 0.24 0.97 0.04 0.24 0.35 0.50 0.91
"""


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors agree in every bit: 0 is not -0, and a NaN equals itself."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    return torch.equal(first.contiguous().view(integer), second.contiguous().view(integer))


def both(features: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> tuple[Tensor, ...]:
    """Pool and send one gradient back, by us and by torchvision; returns both outputs and both gradients."""
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    pooled = roi_pool(ours, rois, size, scale)
    expected = torchvision.ops.roi_pool(theirs, rois, size, scale)
    grad = torch.randn_like(pooled)
    pooled.backward(grad)
    expected.backward(grad)
    return pooled.detach(), expected.detach(), gradient(ours), gradient(theirs)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("size", "scale"), [((7, 7), 1 / 16), ((6, 3), 1 / 16), ((1, 1), 0.3), ((14, 14), 1.0)]
)
def test_equals_torchvision_bit_for_bit_on_10000_rois(
    dtype: torch.dtype, size: tuple[int, int], scale: float
) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 2, 40, 63, dtype=dtype)
    rois = random_rois(10_000, 3, (round(40 / scale), round(63 / scale)), seed=1, dtype=dtype)
    pooled, expected, grad, grad_expected = both(features, rois, size, scale)
    assert same_bits(pooled, expected)
    assert same_bits(grad, grad_expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [1, 15, 16, 17, 64, 83, 130])
def test_equals_torchvision_for_every_split_of_the_channels(dtype: torch.dtype, channels: int) -> None:
    torch.manual_seed(channels)
    features = torch.randn(2, channels, 9, 13, dtype=dtype)
    rois = random_rois(40, 2, (144, 208), seed=2, dtype=dtype)
    expected = torchvision.ops.roi_pool(features, rois, (3, 5), 1 / 16)
    assert same_bits(roi_pool(features, rois, (3, 5), 1 / 16), expected)
    channels_last = features.contiguous(memory_format=torch.channels_last)
    assert same_bits(roi_pool(channels_last, rois, (3, 5), 1 / 16), expected)
    pooled, expected, grad, grad_expected = both(features, rois, (3, 5), 1 / 16)
    assert same_bits(pooled, expected)
    assert same_bits(grad, grad_expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("height", OVERSHOOT_HEIGHTS)
def test_the_last_bin_overshoots_as_in_torchvision(dtype: torch.dtype, height: int) -> None:
    features = torch.arange(130.0, dtype=dtype).reshape(1, 1, 130, 1).expand(1, 2, 130, 3)
    rois = torch.tensor([[0, 0, 2, 2, 1 + height]], dtype=dtype)
    assert same_bits(roi_pool(features, rois, 7, 1.0), torchvision.ops.roi_pool(features, rois, 7, 1.0))
    exact = roi_pool(features, rois, 7, 1.0, bins="exact")
    assert exact.max() == 1 + height  # the RoI's own last row, whatever the type


def test_overshoot_differs_between_the_types_as_known() -> None:
    ramp = torch.arange(130.0).reshape(1, 1, 130, 1)
    for height, dtype, last in ((57, torch.float32, 57), (57, torch.float64, 56), (29, torch.float64, 29)):
        rois = torch.tensor([[0, 0, 0, 0, height - 1]], dtype=dtype)
        assert roi_pool(ramp.to(dtype), rois, (7, 1), 1.0).max() == last


@pytest.mark.parametrize("dtype", FLOATS)
def test_not_a_number_and_infinity_pool_as_in_torchvision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(1, 5, 12, 12, generator=generator, dtype=dtype)
    for value in (
        float("nan"),
        float("inf"),
        float("-inf"),
        -3.5e38 if dtype == torch.float64 else -3.4e38,
        -0.0,
    ):
        features[torch.rand(features.shape, generator=generator) < 0.3] = value
    features[:, 0] = float("nan")
    rois = random_rois(200, 1, (12, 12), seed=4, dtype=dtype)
    pooled, expected, grad, grad_expected = both(features, rois, (3, 3), 1.0)
    assert same_bits(pooled, expected + 0)  # torchvision's maximum may be -0, ours is 0
    assert same_bits(grad, grad_expected)


def test_a_malformed_roi_gives_its_one_cell_every_gradient() -> None:
    features = torch.zeros(1, 1, 4, 4, requires_grad=True)
    roi_pool(features, torch.tensor([[0.0, 3, 3, 1, 1]]), 7, 1.0).sum().backward()
    expected = torch.zeros(1, 1, 4, 4)
    expected[0, 0, 3, 3] = 49
    assert torch.equal(gradient(features), expected)


def test_partition_gives_the_articles_example() -> None:
    rows = torch.tensor([float(word) for word in ARTICLE_MAP.split()]).reshape(1, 1, 8, 8)
    roi = torch.tensor([[0.0, 0, 3, 7, 8]])
    assert torch.equal(
        roi_pool(rows, roi, 2, 1.0, bins="partition")[0, 0], torch.tensor([[0.85, 0.84], [0.97, 0.96]])
    )
    # The Caffe rule on the same cells (its end is inclusive) overlaps.
    inclusive = torch.tensor([[0.0, 0, 3, 6, 7]])
    assert torch.equal(roi_pool(rows, inclusive, 2, 1.0)[0, 0], torch.tensor([[0.85, 0.96], [0.97, 0.96]]))


def test_a_section_without_a_cell_gives_zero_and_takes_no_gradient() -> None:
    features = torch.full((1, 1, 4, 4), -1.0, requires_grad=True)
    pooled = roi_pool(features, torch.tensor([[0.0, 1, 1, 3, 3]]), 4, 1.0, bins="partition")
    assert torch.equal(pooled[0, 0, 0], torch.tensor([0.0, 0, 0, 0]))  # floor(h / 4) = 0: row 0 has no cell
    assert torch.equal(pooled[0, 0, 1], torch.tensor([0.0, -1, 0, -1]))
    pooled.sum().backward()
    assert gradient(features).sum() == 4


shapes = st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 17]), st.integers(1, 9), st.integers(1, 9))
sizes = st.tuples(st.integers(1, 8), st.integers(1, 8))


@settings(max_examples=120, deadline=None)
@given(
    shape=shapes,
    grid=sizes,
    dtype=st.sampled_from(FLOATS + HALVES),
    bins=st.sampled_from(["caffe", "exact", "partition"]),
    scale=st.sampled_from([1.0, 1 / 16, 0.37]),
    count=st.integers(0, 4),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_equals_the_reference(
    shape: tuple[int, int, int, int],
    grid: tuple[int, int],
    dtype: torch.dtype,
    bins: str,
    scale: float,
    count: int,
    channels_last: bool,
    seed: int,
) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    index_type = torch.float64 if dtype == torch.float64 else torch.float32
    rois = random_rois(count, shape[0], (round(shape[2] / scale), round(shape[3] / scale)), seed, index_type)
    expected, argmax = reference.roi_pool(features, rois, grid, scale, bins)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    assert same_bits(roi_pool(features, rois, grid, scale, bins), expected)

    features.requires_grad_()
    pooled = roi_pool(features, rois, grid, scale, bins)
    assert same_bits(pooled, expected)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    pooled.backward(grad)
    sums = reference.scatter(grad.to(index_type), rois, argmax, shape)
    assert same_bits(gradient(features), sums.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_types_equal_the_widened_op_narrowed(dtype: torch.dtype, channels_last: bool) -> None:
    every_number = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = every_number.reshape(1, 64, 32, 32).contiguous(memory_format=layout)
    rois = random_rois(300, 1, (512, 512), seed=5)
    wide = roi_pool(features.float(), rois, 7, 1 / 16)
    assert same_bits(roi_pool(features, rois, 7, 1 / 16), wide.to(dtype))


def test_float32_rois_serve_float64_features() -> None:
    features = torch.randn(1, 2, 60, 10, dtype=torch.float64)
    rois = random_rois(50, 1, (960, 160), seed=6)
    wide = torchvision.ops.roi_pool(features, rois.double(), 7, 1 / 16)
    assert same_bits(roi_pool(features, rois, 7, 1 / 16), wide)


@pytest.mark.parametrize("layout", ["transposed", "every second channel", "expanded", "offset"])
def test_any_layout(layout: str) -> None:
    torch.manual_seed(7)
    features = {
        "transposed": torch.randn(2, 20, 11, 9).transpose(2, 3),
        "every second channel": torch.randn(2, 40, 9, 11)[:, ::2],
        "expanded": torch.randn(1, 1, 9, 11).expand(2, 20, 9, 11),
        "offset": torch.randn(2, 9, 11, 90).permute(0, 3, 1, 2)[:, 5:70],
    }[layout]
    rois = random_rois(30, 2, (144, 176), seed=8)
    expected = torchvision.ops.roi_pool(features.contiguous(), rois, 7, 1 / 16)
    assert same_bits(roi_pool(features, rois, 7, 1 / 16), expected)
    strided = torch.empty(30, 10).copy_(rois.repeat_interleave(2, dim=1))[:, ::2]
    assert same_bits(roi_pool(features, strided, 7, 1 / 16), expected)


@pytest.mark.parametrize("shape", [(1, 3, 5, 6), (0, 3, 5, 6), (2, 0, 5, 6), (1, 3, 0, 6)])
def test_nothing_to_pool(shape: tuple[int, int, int, int]) -> None:
    features = torch.randn(shape, requires_grad=True)
    pooled = roi_pool(features, torch.zeros(0, 5), 7, 1 / 16)
    assert pooled.shape == (0, shape[1], 7, 7)
    pooled.sum().backward()
    assert gradient(features).shape == shape
    assert not gradient(features).any()


@pytest.mark.parametrize("channels", [2, 16, 64, 83])
def test_a_map_without_cells_gives_zeros(channels: int) -> None:
    features = torch.randn(1, channels, 0, 6, requires_grad=True)
    pooled = roi_pool(features, torch.tensor([[0.0, 0, 0, 5, 5]]), 2, 1.0)
    assert torch.equal(pooled, torch.zeros(1, channels, 2, 2))
    pooled.sum().backward()


def test_coordinates_far_beyond_any_map() -> None:
    features = torch.randn(1, 2, 5, 6)
    far = torch.finfo(torch.float32).max
    rois = torch.tensor([[0, -far, -far, far, far], [0, far, far, far, far], [0.0, -far, -far, -far, -far]])
    pooled = roi_pool(features, rois, 1, 1 / 16)
    assert torch.equal(pooled[0, :, 0, 0], features[0].amax(dim=(1, 2)))
    assert not pooled[1:].any()


def test_elements_beyond_2_to_the_31() -> None:
    """Two images too far apart for 32-bit indices, in memory that is mostly never touched."""
    apart = 2**31
    try:
        memory = torch.empty(apart + 16 * 16)
    except RuntimeError:
        pytest.skip("this machine does not lend 8 GiB of addresses")
    rois = torch.tensor([[1.0, 0, 0, 3, 3], [0, 1, 1, 2, 2]])
    for channels, strides in ((16, (apart, 1, 64, 16)), (3, (apart, 16, 4, 1))):  # read in place; copied
        features = memory.as_strided((2, channels, 4, 4), strides).normal_()
        expected = torchvision.ops.roi_pool(features.clone(), rois, 2, 1.0)
        assert same_bits(roi_pool(features, rois, 2, 1.0), expected)


@pytest.mark.parametrize("size", [[3, 2], torch.Size((3, 2)), np.array([3, 2])])
def test_any_pair_is_a_size(size: Sequence[int]) -> None:
    features, rois = torch.randn(1, 2, 9, 9), random_rois(5, 1, (144, 144))
    assert torch.equal(roi_pool(features, rois, size, 1 / 16), roi_pool(features, rois, (3, 2), 1 / 16))
    one: Any = np.int64(3)
    assert torch.equal(roi_pool(features, rois, one, 1 / 16), roi_pool(features, rois, 3, 1 / 16))


def test_sizes_and_scales_that_cannot_be() -> None:
    features, rois = torch.randn(1, 2, 9, 9), random_rois(5, 1, (144, 144))
    with pytest.raises(ValueError, match=r"one number or \(height, width\), not \(3, 2, 1\)"):
        roi_pool(features, rois, (3, 2, 1), 1 / 16)
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"spatial_scale must be finite, not {scale}"):
            roi_pool(features, rois, 3, scale)
    # 0 x infinity, in float32: NaN counts as far outside, and nothing else is undefined.
    assert roi_pool(features, torch.zeros(1, 5), 3, 1e300).shape == (1, 2, 3, 3)
    for scale in (0.0, -1 / 16):  # torchvision takes them
        expected = torchvision.ops.roi_pool(features, rois, 3, scale)
        assert same_bits(roi_pool(features, rois, 3, scale), expected)


def test_no_argmax_without_gradient() -> None:
    features, rois = torch.randn(1, 2, 5, 6), torch.tensor([[0.0, 0, 0, 5, 5]])
    assert torch.ops.detector.roi_pool(features, rois, 7, 7, 1.0, 0, False)[1].numel() == 0
    features.requires_grad_()
    with torch.no_grad():
        assert not roi_pool(features, rois, 7, 1.0).requires_grad


def test_module_is_the_function() -> None:
    features, rois = torch.randn(1, 2, 9, 9), random_rois(5, 1, (144, 144))
    module = RoIPool((3, 4), 1 / 16, bins="exact")
    assert torch.equal(module(features, rois), roi_pool(features, rois, (3, 4), 1 / 16, "exact"))
    assert repr(module) == "RoIPool(output_size=(3, 4), spatial_scale=0.0625, bins='exact')"
