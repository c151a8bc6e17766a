"""Fully connected layers of low rank: the truncated SVD of fc6 and fc7 (Fast R-CNN, section 3.1).

The weights W (u, v) of a trained layer are approximated by U_t (S_t V_t^T), which keeps the t largest
singular values. One layer multiplies by S_t V_t^T, without bias; a second one multiplies by U_t and adds the
bias of the whole layer. Together they have t (u + v) weights instead of u v.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detector.core.errors import InputError


def largest_rank(in_features: int, out_features: int) -> int:
    """Return the largest rank at which a layer has fewer weights than the whole one; 0 if there is none."""
    return (in_features * out_features - 1) // (in_features + out_features)


def check_rank(name: str, in_features: int, out_features: int, rank: int) -> None:
    """Raise InputError, with the numbers, unless the layer ``name`` has fewer weights with ``rank``."""
    most = largest_rank(in_features, out_features)
    if rank <= most:
        return
    whole, divided = in_features * out_features, rank * (in_features + out_features)
    fix = f"give at most {most}" if most else "leave it whole"
    raise InputError(
        f"{name}: rank {rank} makes the layer no smaller: {rank} x ({in_features} + {out_features}) = "
        f"{divided} weights, and the whole layer has {in_features} x {out_features} = {whole}; {fix}"
    )


class Decomposition(NamedTuple):
    """The SVD of weights W (u, v), float32: W = ``u`` @ ``v``.

    ``u`` (u, n) has the left singular vectors; ``v`` (n, v) the right ones, each multiplied by its singular
    value. ``energy`` (n,) float64 has at t - 1 the share of the squared singular values that the first t
    keep.
    """

    u: Tensor
    v: Tensor
    energy: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Decomposition:
        """Return the SVD of ``weight`` (u, v), computed in float64."""
        u, singular, vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
        squared = singular.square()
        energy = squared.cumsum(0) / squared.sum().clamp_min(torch.finfo(torch.float64).tiny)
        return cls(u.float(), (singular[:, None] * vh).float(), energy.clamp(max=1.0))


@dataclass(frozen=True, eq=False)
class Factors:
    """A layer's ``weight`` (u, v) and ``bias`` (u,), and its SVD, which is computed when it is first needed.

    The SVD of a large layer takes minutes; the sizes of the layer are known without it.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Factors:
        return cls(weight.detach(), bias.detach())

    @cached_property
    def svd(self) -> Decomposition:
        return Decomposition.of(self.weight)

    @property
    def size(self) -> tuple[int, int]:
        """The inputs and the outputs of the layer."""
        return self.weight.shape[1], self.weight.shape[0]

    def weights(self, rank: int | None) -> int:
        """Return how many weights the layer has with ``rank``; None counts those of the whole one."""
        in_features, out_features = self.size
        return in_features * out_features if rank is None else rank * (in_features + out_features)

    def kept(self, rank: int) -> float:
        """Return the share of the squared singular values that ``rank`` keeps."""
        return float(self.svd.energy[min(rank, len(self.svd.energy)) - 1])

    def truncated(self, name: str, rank: int) -> dict[str, Tensor]:
        """Return the tensors of the layers that take the place of the layer ``name``, by their names.

        Raises:
            InputError: they would be no smaller.
        """
        check_rank(name, *self.size, rank)
        return {
            f"{name}_v.weight": self.svd.v[:rank].contiguous(),
            f"{name}_u.weight": self.svd.u[:, :rank].contiguous(),
            f"{name}_u.bias": self.bias,
        }


def whole_layers(head: nn.Sequential) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weights (u, v) and bias (u,) of fc6, fc7 and so on, by name, in order.

    A layer that is divided already is multiplied out.
    """
    layers = {name: layer for name, layer in head.named_children() if isinstance(layer, nn.Linear)}
    whole: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in layers.items():
        if name.endswith("_v"):
            continue
        weight = layer.weight.detach()
        if name.endswith("_u"):
            name = name.removesuffix("_u")
            weight = (weight.double() @ layers[f"{name}_v"].weight.detach().double()).float()
        whole[name] = weight, layer.bias.detach()
    return whole
