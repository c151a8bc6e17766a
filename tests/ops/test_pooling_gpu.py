"""CUDA against the CPU kernels, which the other tests hold to torchvision and to the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detector.ops import roi_pool, spp_pool
from tests.ops.rois import random_rois

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
CASES = [
    *(("roi_pool", {"output_size": size, "spatial_scale": 1 / 16, "bins": bins})
      for size in (7, (14, 3)) for bins in ("caffe", "exact", "partition")),
    *(("spp_pool", {"reduction": reduction, "window": window})
      for reduction in ("max", "avg") for window in ("roi", "spp", "cells")),
]  # fmt: skip


def run(name: str, options: dict[str, object], features: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
    operator = {"roi_pool": roi_pool, "spp_pool": spp_pool}[name]
    features = features.detach().requires_grad_()
    pooled = operator(features, rois, **options)
    ramp = torch.linspace(-1, 1, pooled.numel(), device=features.device)
    pooled.backward(ramp.reshape(pooled.shape).to(pooled.dtype))
    return pooled.detach().cpu(), features.grad.cpu()


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 31, 83, 130])
@pytest.mark.parametrize("size", [(38, 50), (150, 170)])
def test_equals_the_cpu(
    name: str, options: dict[str, object], dtype: torch.dtype, channels: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(channels)
    features = torch.randn(2, channels, *size).to(dtype)
    index_type = torch.float64 if dtype == torch.float64 else torch.float32
    rois = random_rois(200, 2, (size[0] * 16, size[1] * 16), dtype=index_type).round()
    pooled, grad = run(name, options, features, rois)
    on_device = run(name, options, features.cuda(), rois.cuda())
    if options.get("reduction") == "avg":  # the CPU adds a bin's gradient in another order than its cells
        torch.testing.assert_close(on_device[0], pooled)
        torch.testing.assert_close(on_device[1], grad)
    else:
        assert torch.equal(on_device[0], pooled)
        assert torch.equal(on_device[1], grad)
    layout = features.cuda().contiguous(memory_format=torch.channels_last)
    assert torch.equal(run(name, options, layout, rois.cuda())[0], on_device[0])


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_same_bits_on_every_run(name: str, options: dict[str, object]) -> None:
    features, rois = torch.randn(2, 64, 38, 50).cuda(), random_rois(500, 2, (608, 800)).round().cuda()
    torch.use_deterministic_algorithms(True)
    try:
        first = run(name, options, features, rois)
        for _ in range(5):
            again = run(name, options, features, rois)
            assert torch.equal(again[0], first[0])
            assert torch.equal(again[1], first[1])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_row_no_kernel_can_use_gives_zeros(name: str, options: dict[str, object]) -> None:
    features = torch.randn(2, 3, 9, 9).cuda() + 10
    rois = torch.tensor([[0.0, 0, 0, 9, 9]]).repeat(6, 1)
    rois[1, 0], rois[2, 0], rois[3, 2], rois[4, 3] = 2, -1, float("nan"), float("inf")
    pooled, grad = run(name, options, features, rois.cuda())
    assert not pooled[1:5].any()
    assert torch.equal(pooled[0], pooled[5])
    assert torch.isfinite(grad).all()
