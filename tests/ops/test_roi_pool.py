"""RoI pooling against torchvision's kernels, which compute as Caffe does."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from detector.ops import roi_pool


def random_rois(count: int, images: int, extent: float, seed: int, dtype: torch.dtype) -> Tensor:
    """Half of the corners lie on multiples of 8, so that many are rounding ties at stride 16."""
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(count, 4, generator=generator, dtype=dtype) * 1.6 - 0.3) * extent
    corners[::2] = (corners[::2] / 8).round() * 8
    batch = torch.randint(images, (count, 1), generator=generator).to(dtype)
    return torch.cat((batch, corners), dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(7, 7), (2, 3), (1, 1)])
def test_equals_torchvision(dtype: torch.dtype, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 4, 60, 63, dtype=dtype)
    rois = random_rois(1000, 3, 1000.0, 1, dtype)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    pooled = roi_pool(ours, rois, size, 1 / 16)
    expected = torchvision.ops.roi_pool(theirs, rois, size, 1 / 16)
    assert torch.equal(pooled, expected)
    grad = torch.randn_like(pooled)
    pooled.backward(grad)
    expected.backward(grad)
    assert torch.equal(ours.grad, theirs.grad)
