"""Batch normalisation over the images of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detector.core import distributed


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose training statistics are those of the whole batch, in every process.

    So a batch gives the same losses on any number of processes. (torch's ``SyncBatchNorm`` needs a GPU.) The
    processes must have inputs of equal shape. One process computes exactly as ``nn.BatchNorm2d`` does.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return (N, C, h, w) ``values`` normalised per channel, in their type, by sums in float32 or more."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(values)
        given = values.dtype
        values = values.to(torch.promote_types(given, torch.float32))
        mean = distributed.mean(values.mean(dim=(0, 2, 3)))
        centred = values - mean[:, None, None]
        variance = distributed.mean(centred.square().mean(dim=(0, 2, 3)))
        self._follow(mean.detach(), variance.detach(), values.numel() // values.shape[1])
        factor = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * factor[:, None, None] + self.bias[:, None, None]).to(given)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics; ``count`` is the number of values per channel in this process."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        whole = count * distributed.world_size()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = variance * (whole / max(whole - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
