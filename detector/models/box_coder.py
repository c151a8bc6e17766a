"""Box regression targets: from a proposal and an object to four numbers, and back.

(dx, dy, dw, dh) are defined as in R-CNN (Girshick et al. 2014, appendix C): the shift of the centre in
units of the proposal's size, and the logarithm of the ratio of sizes. They are then standardised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX_LOG_RATIO = math.log(1000.0 / 16)
"""Upper limit of dw and dh in decoding, so that extreme outputs cannot overflow (Detectron's constant)."""


def box_deltas(proposals: Tensor, boxes: Tensor) -> Tensor:
    """Return the (dx, dy, dw, dh), (R, 4), from ``proposals`` (R, 4) to ``boxes`` (R, 4), not standardised.

    Both are in the same pixels; the result does not depend on their scale.
    """
    size = proposals[:, 2:] - proposals[:, :2]
    target_size = boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] - proposals[:, :2] + (target_size - size) / 2) / size  # exactly 0 for equal boxes
    return torch.cat((shift, torch.log(target_size / size)), dim=1)


class BoxCoder(nn.Module):
    """Encodes and decodes box targets, standardised by ``means`` and standard ``deviations``, (K+1, 4) each.

    Both are buffers: they are saved with the checkpoint and never folded into ``bbox_pred``, which would make
    an exact resume impossible. Row 0 belongs to the background and is not used.
    """

    means: Tensor
    deviations: Tensor

    def __init__(self, means: Tensor, deviations: Tensor) -> None:
        super().__init__()
        if means.shape != deviations.shape or means.dim() != 2 or means.shape[1] != 4:
            raise ValueError("means and deviations must both have shape (K+1, 4)")
        self.register_buffer("means", means.clone())
        self.register_buffer("deviations", deviations.clone())

    def encode(self, proposals: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Return standardised targets (R, 4) from ``proposals`` (R, 4) to ``boxes`` (R, 4).

        Rows whose label (R,) is 0 are zero.
        """
        means, deviations = self.means.to(proposals.device), self.deviations.to(proposals.device)
        targets = (box_deltas(proposals, boxes) - means[labels]) / deviations[labels]
        # An index by a mask would wait for a GPU.
        return torch.where(labels[:, None] > 0, targets, torch.zeros_like(targets))

    @property
    def num_classes(self) -> int:
        """K, without the background."""
        return len(self.means) - 1

    def encode_sets(self, proposals: Tensor, boxes: Tensor, label_sets: Tensor) -> Tensor:
        """Return the targets (R, K+1, 4) for every label that ``label_sets`` (R, K+1) bool gives each row.

        They differ between labels in the constants only. Elsewhere, and so in column 0, they are zero.
        """
        means, deviations = self.means.to(proposals.device), self.deviations.to(proposals.device)
        targets = (box_deltas(proposals, boxes)[:, None] - means) / deviations
        return torch.where(label_sets[..., None], targets, torch.zeros_like(targets))

    def decode(self, deltas: Tensor, proposals: Tensor) -> Tensor:
        """Return the boxes (R, K+1, 4) of the network's output ``deltas``, in the pixels of the proposals.

        ``deltas`` has shape (R, K+1, 4), or (R, 1, 4) if class-agnostic; then the boxes have that shape too.
        """
        rows = deltas.shape[1]
        means = self.means.to(deltas.device)[-rows:]
        deviations = self.deviations.to(deltas.device)[-rows:]
        plain = deltas.float() * deviations + means
        size = (proposals[:, 2:] - proposals[:, :2])[:, None]
        centre = proposals[:, None, :2] + size / 2 + plain[..., :2] * size
        half = torch.exp(plain[..., 2:].clamp(max=MAX_LOG_RATIO)) * size / 2
        return torch.cat((centre - half, centre + half), dim=-1)


def fixed_coder(num_classes: int, means: Iterable[float], deviations: Iterable[float]) -> BoxCoder:
    """Return a coder with the same four means and standard deviations for all classes."""
    constants = torch.tensor([list(means), list(deviations)], dtype=torch.float32)
    rows = constants[:, None].repeat(1, num_classes + 1, 1)
    return BoxCoder(rows[0], rows[1])


@dataclass(frozen=True)
class TargetSums:
    """Sums over the box targets of a training set by class, from which `measured_coder` makes a coder.

    ``count`` (K+1,), ``total`` (K+1, 4) and ``squares`` (K+1, 4) are float64 and grow with each `add`. Row 0
    stays 0.
    """

    count: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, num_classes: int) -> TargetSums:
        rows = num_classes + 1
        return cls(*(torch.zeros(rows, *more, dtype=torch.float64) for more in ((), (4,), (4,))))

    def add(self, proposals: Tensor, boxes: Tensor, labels: Tensor) -> None:
        """Add the targets from ``proposals`` (R, 4) to the objects ``boxes`` (R, 4) of ``labels`` (R,).

        Targets that are not finite, those of boxes without extent, are left out.
        """
        deltas = box_deltas(proposals, boxes)
        finite = torch.isfinite(deltas).all(dim=1)
        rows, chosen = deltas[finite].double(), labels[finite]
        self.count.index_add_(0, chosen, self.count.new_ones(len(chosen)))
        self.total.index_add_(0, chosen, rows)
        self.squares.index_add_(0, chosen, rows.square_())


def measured_coder(sums: TargetSums, *, class_agnostic: bool = False) -> BoxCoder:
    """Return a coder with means and standard deviations per class, measured as in Fast R-CNN's release.

    ``sums`` are over every proposal of a training set whose best IoU reaches the foreground threshold, and
    over the objects themselves. Mirrored images count too, so the mean of dx is zero. A class without such
    proposals takes the constants over all classes; with ``class_agnostic`` every class does, since one
    regressor can have only one scale.
    """
    count = sums.count[:, None]
    total = sums.total * sums.total.new_tensor((0.0, 1.0, 1.0, 1.0))
    everything = count.sum()
    if everything == 0:
        raise ValueError("no proposal reaches the foreground threshold; box targets cannot be measured")
    seen = (count > 0) & (not class_agnostic)
    means = torch.where(seen, total / count.clamp(min=1), total.sum(0) / everything)
    moments = torch.where(seen, sums.squares / count.clamp(min=1), sums.squares.sum(0) / everything)
    deviations = (moments - means**2).clamp(min=0).sqrt().clamp(min=1e-3)
    return BoxCoder(means.float(), deviations.float())
