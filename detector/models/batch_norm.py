"""Batch normalisation over the images of all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.core import distributed


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose training statistics are those of the whole batch, in every process.

    So a batch gives the same losses on any number of processes. (torch's ``SyncBatchNorm`` needs a GPU.) The
    processes must have inputs of equal shape. One process computes exactly as ``nn.BatchNorm2d`` does.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return (N, C, h, w) ``values`` normalised per channel, in their type; sums are float32 or more."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(values)
        given = values.dtype
        values = values.to(torch.promote_types(given, torch.float32))
        mean, variance = _statistics(values.detach())
        self._follow(mean, variance, values.numel() // values.shape[1])
        normalised: Tensor = _Normalise.apply(values, self.weight, self.bias, mean, variance, self.eps)
        return normalised.to(given)

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


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (C,) and the biased variance (C,) of ``values`` (N, C, h, w) over all processes.

    The variance is put together from those of the processes and the differences of their means, so that no
    digits are lost where the mean is large (Chan, Golub and LeVeque, 1983).
    """
    variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
    every = distributed.gathered(torch.stack((mean, variance)))  # (processes, 2, C)
    whole = every[:, 0].mean(dim=0)
    return whole, (every[:, 1] + (every[:, 0] - whole).square()).mean(dim=0)


class _Normalise(torch.autograd.Function):
    """Batch normalisation with given statistics, and its gradient with those of all processes' losses."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(values, weight, mean, torch.rsqrt(variance + eps))
        return functional.batch_norm(values, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the values, and of weight and bias those of this process's images."""
        (gradient,) = gradients
        values, weight, mean, inverse = ctx.saved_tensors
        standard = (values - mean[:, None, None]) * inverse[:, None, None]
        of_bias = gradient.sum(dim=(0, 2, 3))
        of_weight = (gradient * standard).sum(dim=(0, 2, 3))
        count = values.numel() // values.shape[1] * distributed.world_size()
        shift, slope = distributed.summed(torch.stack((of_bias, of_weight))) / count
        of_values = gradient - shift[:, None, None] - standard * slope[:, None, None]
        return of_values * (weight * inverse)[:, None, None], of_weight, of_bias, None, None, None
