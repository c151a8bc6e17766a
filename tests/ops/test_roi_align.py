"""RoIAlign against torchvision's operator, and the gradient that CUDA computes in another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import ops

from detector.ops.roi_align import _WithDeterministicGradient, align_gradient, roi_align
from tests.ops.rois import random_rois
from tests.typed import gradient

SIZES = [(112, 144), (40, 30), (800, 1000)]
ODD = [[0, 3.0, 3, 3, 9], [1, 3, 3, 3, 3], [0, -500, -500, 900, 900], [1, 0, 0, 16, 16]]


def ordered(rois: Tensor) -> Tensor:
    return torch.cat((rois[:, :3], rois[:, 3:].maximum(rois[:, 1:3])), 1)


def sample(size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    features = torch.randn(2, 5, size[0] // 16, size[1] // 16, dtype=dtype)
    rois = torch.cat((random_rois(40, 2, size, dtype=dtype), torch.tensor(ODD, dtype=dtype)))
    return features.requires_grad_(), rois


@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_equals_torchvision_bit_for_bit(size: tuple[int, int], ratio: int) -> None:
    features, rois = sample(size, torch.float32)
    expected = ops.roi_align(features, ordered(rois), 7, 1 / 16, ratio, aligned=True)
    assert torch.equal(roi_align(features, rois, 7, 1 / 16, ratio), expected)
    (theirs,) = torch.autograd.grad(expected.square().sum(), features)
    (ours,) = torch.autograd.grad(roi_align(features, rois, 7, 1 / 16, ratio).square().sum(), features)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_for_cuda_equals_torchvisions(
    size: tuple[int, int], ratio: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.ops.roi_align._NUMBERS", 5000)  # several chunks
    features, rois = sample(size, dtype)
    pooled = ops.roi_align(features, ordered(rois), 7, 1 / 16, ratio, aligned=True)
    grad = torch.randn_like(pooled)
    (expected,) = torch.autograd.grad(pooled, features, grad)
    found = align_gradient(grad, ordered(rois), features.shape, 1 / 16, ratio)  # type: ignore[arg-type]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_gradcheck_of_the_gradient_for_cuda() -> None:
    rois = ordered(random_rois(4, 1, (64, 80), dtype=torch.float64))
    rois[:, 0] = 0
    features = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: _WithDeterministicGradient.apply(x, rois, 3, 1 / 16, 0), (features,)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32_with_float32_rois(dtype: torch.dtype) -> None:
    features, rois = sample(SIZES[0], torch.float32)
    half = features.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = roi_align(half, rois, 3, 1 / 16)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, roi_align(half.float(), rois, 3, 1 / 16).to(dtype))
    pooled.sum().backward()
    assert gradient(half).dtype == dtype


def test_compiles_without_a_graph_break() -> None:
    compiled = torch.compile(
        lambda x, rois: roi_align(x, rois, 3, 1 / 16), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    features, rois = sample(SIZES[0], torch.float32)
    for count in (5, 9):
        assert torch.equal(compiled(features, rois[:count]), roi_align(features, rois[:count], 3, 1 / 16))


@pytest.mark.parametrize(("place", "value"), [((1, 0), 2.0), ((1, 0), -1.0), ((1, 3), float("nan"))])
def test_a_bad_row_is_named(place: tuple[int, int], value: float) -> None:
    features, rois = sample(SIZES[0], torch.float32)
    rois[place] = value
    with pytest.raises(RuntimeError, match="row 1 of rois"):
        roi_align(features, rois, 3, 1 / 16)


@pytest.mark.parametrize(("side", "scale", "ratio"), [(0, 1 / 16, 0), (3, 0.0, 0), (3, 1 / 16, -1)])
def test_bad_settings_are_refused(side: int, scale: float, ratio: int) -> None:
    features, rois = sample(SIZES[0], torch.float32)
    with pytest.raises(ValueError, match="roi_align: "):
        roi_align(features, rois, side, scale, ratio)


@pytest.mark.gpu
@pytest.mark.parametrize("ratio", [0, 2])
def test_the_gradient_on_cuda_is_the_same_on_every_run(ratio: int) -> None:
    features, rois = sample(SIZES[2], torch.float32)
    there = features.detach().cuda().requires_grad_()
    gradients = [
        torch.autograd.grad(roi_align(there, rois.cuda(), 7, 1 / 16, ratio).square().sum(), there)[0]
        for _ in range(3)
    ]
    assert all(torch.equal(one, gradients[0]) for one in gradients)
    (expected,) = torch.autograd.grad(roi_align(features, rois, 7, 1 / 16, ratio).square().sum(), features)
    torch.testing.assert_close(gradients[0].cpu(), expected, rtol=1e-4, atol=1e-4)
