"""Calls that random ones seldom cover: real shapes, sides around 256, many RoIs, big grids, huge strides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.emulator.calls import Call
from tests.ops.rois import random_rois

PYRAMID = [6, 3, 2, 1]


def special_calls(*, slow: bool) -> Iterator[tuple[str, Call]]:
    """Yield (name, call); with ``slow`` also calls that take seconds each."""
    torch.manual_seed(0)
    yield from _narrow_maps()
    yield from _lowest_numbers()
    yield from _grids()
    yield from _wide_maps()
    yield from _many_rois()
    yield from _far_apart()
    yield from _long_sides()
    if slow:
        yield from _real_shapes()
        yield "70,000 RoIs", _roi(torch.randn(1, 1, 3, 3), random_rois(70_000, 1, (48, 48)), (1, 1))


def _roi(
    features: Tensor, rois: Tensor, size: tuple[int, int], scale: float = 1 / 16, bins: str = "caffe"
) -> Call:
    options = {"output_size": size, "spatial_scale": scale, "bins": bins}
    return Call("roi_pool", features, rois, options, grad_seed=1)


def _spp(features: Tensor, rois: Tensor, **options: Any) -> Call:
    return Call("spp_pool", features, rois, {"levels": PYRAMID, **options}, grad_seed=1)


def _narrow_maps() -> Iterator[tuple[str, Call]]:
    sequence = torch.randn(2, 40, 64).permute(0, 2, 1)
    turned = torch.randn(2, 64, 1, 40).contiguous(memory_format=torch.channels_last).transpose(2, 3)
    rois = torch.tensor([[0.0, 0, 0, 0, 39], [1, 0, 5, 0, 30]])
    across = rois[:, [0, 2, 1, 4, 3]]
    yield "a sequence as a map of width 1", _roi(sequence.unsqueeze(-1), rois, (7, 1), 1.0)
    yield "a sequence as a map of height 1", _roi(sequence.unsqueeze(-2), across, (1, 7), 1.0)
    yield "a channels-last map of height 1, turned", _roi(turned, rois, (7, 1), 1.0, "exact")
    yield "no image", _roi(torch.randn(0, 5, 4, 4), torch.zeros(3, 5), (2, 2), 1.0)
    yield "no image, average", _spp(torch.randn(0, 5, 4, 4), torch.zeros(3, 5), reduction="avg")
    yield "no RoI", _roi(torch.randn(2, 5, 4, 4), torch.zeros(0, 5), (2, 2), 1.0)


def _lowest_numbers() -> Iterator[tuple[str, Call]]:
    rois = torch.tensor([[0.0, 0, 0, 5, 5], [0, 1, 1, 1, 4], [0, 2, 0, 5, 1]])
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for lowest in (float("-inf"), float("nan"), torch.finfo(torch.float32).min, torch.finfo(dtype).min):
            features = torch.full((1, 3, 6, 6), lowest, dtype=torch.float64).to(dtype)
            features[0, 1, 2:, 3:] = float("-inf")
            yield f"a map of {lowest} of {dtype}", _roi(features, rois, (2, 2), 1.0)
            yield f"a map of {lowest} of {dtype}, pyramid", _spp(features, rois, spatial_scale=1.0)


def _long_sides() -> Iterator[tuple[str, Call]]:
    for side in (254, 255, 256, 257):
        for shape in ((side, 3), (3, side)):
            features = torch.randn(1, 6, *shape).round()
            height, width = (16.0 * extent for extent in shape)
            rois = torch.tensor([[0.0, 0, 0, width, height], [0, 8, 8, width - 17, height - 17]])
            yield f"a map of {shape}, one bin", _roi(features, rois, (1, 1))
            yield f"a map of {shape}, 2 x 2 bins", _roi(features, rois, (2, 2), bins="partition")
            yield f"a map of {shape}, maximum pyramid", _spp(features, rois)
    features = torch.randn(1, 1, 256, 256)
    features[..., 250:, 250:] = float("-inf")  # no maximum in the bins beside the place of the largest number
    rois = torch.tensor([[0.0, 4000, 4000, 4080, 4080], [0, 0, 0, 4080, 4080]])
    yield "a map of 256 x 256", _roi(features, rois, (2, 2))


def _grids() -> Iterator[tuple[str, Call]]:
    rois = random_rois(6, 2, (304, 400))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        features = torch.randn(2, 35, 19, 25).to(dtype)
        for size in ((20, 20), (33, 1), (1, 33)):
            yield f"a grid of {size} of {dtype}", _roi(features, rois, size)
    yield "a pyramid of one level, 25 x 25", _spp(torch.randn(2, 5, 19, 25), rois, levels=[25])
    yield "16 levels", _spp(torch.randn(2, 5, 19, 25), rois, levels=list(range(1, 17)))
    yield "16 levels, average", _spp(torch.randn(2, 5, 19, 25), rois, levels=[1, 2] * 8, reduction="avg")


def _wide_maps() -> Iterator[tuple[str, Call]]:
    """Maps of several blocks of windows, which the kernels make only for many RoIs."""
    rois = random_rois(40, 2, (80, 1120))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            features = torch.randn(2, 35, 5, 70).to(dtype).contiguous(memory_format=memory_format)
            yield f"a map of 5 x 70 of {dtype}, {memory_format}", _roi(features, rois, (5, 5))


def _many_rois() -> Iterator[tuple[str, Call]]:
    """More RoIs than a block reads at a time and more bins than it lists; the first RoIs are of one image."""
    features, rois = torch.randn(2, 35, 4, 9), random_rois(300, 2, (64, 144))
    rois = rois[rois[:, 0].argsort(stable=True)]
    yield "300 RoIs, image by image", _roi(features, rois, (5, 5))
    for reduction in ("max", "avg"):
        yield f"300 RoIs, image by image, {reduction}", _spp(features, rois, reduction=reduction)


def _far_apart() -> Iterator[tuple[str, Call]]:
    """Images 2^31 elements apart, in memory that is reserved but mostly untouched."""
    apart = 2**31
    switches: Any = torch.utils.deterministic  # torch adds the switch to the module while it runs
    filled, switches.fill_uninitialized_memory = switches.fill_uninitialized_memory, False
    memory = torch.empty(apart + 16 * 16)
    switches.fill_uninitialized_memory = filled
    rois = torch.tensor([[1.0, 0, 0, 3, 3], [0, 1, 1, 2, 2]])
    for channels, strides in ((16, (apart, 1, 64, 16)), (3, (apart, 16, 4, 1))):
        features = memory.as_strided((2, channels, 4, 4), strides).normal_()
        yield f"images 2^31 elements apart, {channels} channels", _roi(features, rois, (2, 2), 1.0)


def _real_shapes() -> Iterator[tuple[str, Call]]:
    rois = random_rois(32, 2, (608, 1008))
    yield "VGG16's map, 32 RoIs", _roi(torch.randn(2, 512, 38, 63), rois, (7, 7))
    yield "half of VGG16's map, pyramid", _spp(torch.randn(2, 256, 38, 63), rois, window="spp")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        wide = random_rois(8, 1, (700 * 4, 900 * 4)).round()
        yield (
            f"a map of 700 x 900 of {dtype}",
            _roi(torch.randn(1, 2, 700, 900).to(dtype), wide, (7, 7), 1 / 4),
        )
        plane = torch.randn(1, 3, 130, 90).to(dtype)
        inside = random_rois(8, 1, (130 * 16, 90 * 16)).round()
        for reduction in ("max", "avg"):
            yield f"a map of 130 x 90 of {dtype}, {reduction}", _spp(plane, inside, reduction=reduction)
