"""Losses: the multi-task loss of detection, and the multi-label loss of classification."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from detector.core.structures import HeadOutput, SampledRoIs


@dataclass(frozen=True)
class DetectionLoss:
    """Softmax loss over classes and smooth L1 loss on the box of the true class (Fast R-CNN, section 2.3).

    Each is a mean over ALL RoIs of a step: the box loss, a sum over the four coordinates of the foreground
    RoIs, is divided by the number of RoIs, background included, as in the release. ``box_weight`` is the
    paper's lambda, ``beta`` the point where smooth L1 turns from squared to linear.

    Where the RoIs have label sets, the class loss is the binary cross entropy of every class, a sum over the
    columns 1..K, also divided by the number of RoIs: K classifiers trained at the same time, as in
    `multi_label_loss`. The target is 1 for the labels of a RoI and 0 for the other classes, so a background
    RoI has zeros only; column 0 has no loss. The box loss of a RoI is then the sum over its labels if each
    class has a regressor of its own, and is counted once if all share one.
    """

    box_weight: float = 1.0
    beta: float = 1.0

    def __call__(
        self, output: HeadOutput, sampled: SampledRoIs, count: float | None = None
    ) -> dict[str, Tensor]:
        """Return the scalars ``loss_cls`` and, where the network has box deltas, ``loss_box``.

        ``count`` is the number of RoIs of the whole step, if ``sampled`` are a part of them.
        """
        logits = _precise(output.class_logits)
        count = max(len(logits) if count is None else count, 1)  # without RoIs the loss is zero, not NaN
        losses = {"loss_cls": _class_loss(logits, sampled, "sum") / count}
        if output.box_deltas is not None:
            losses["loss_box"] = self._box_loss(output.box_deltas.to(logits.dtype), sampled) / count
        return losses

    def per_region(self, output: HeadOutput, sampled: SampledRoIs) -> Tensor:
        """Return the loss (R,) of each region, class and box together, without a division."""
        logits = _precise(output.class_logits)
        losses = _class_loss(logits, sampled, "none")
        if output.box_deltas is None:
            return losses
        chosen, targets = _compared(output.box_deltas.to(logits.dtype), sampled)
        box_losses = functional.smooth_l1_loss(chosen, targets, beta=self.beta, reduction="none")
        return losses + self.box_weight * box_losses.flatten(1).sum(dim=1)

    def _box_loss(self, deltas: Tensor, sampled: SampledRoIs) -> Tensor:
        """Return the sum over the foreground."""
        chosen, targets = _compared(deltas, sampled)
        loss = functional.smooth_l1_loss(chosen, targets, beta=self.beta, reduction="sum")
        return self.box_weight * loss


def _precise(values: Tensor) -> Tensor:
    """Return values of a half type as float32, and others as they are."""
    return values if values.dtype == torch.float64 else values.float()


def _class_loss(logits: Tensor, sampled: SampledRoIs, reduction: str) -> Tensor:
    """Return the class loss (R,) of each region, or with the ``reduction`` "sum" that of all."""
    if sampled.label_sets is None:
        return functional.cross_entropy(logits, sampled.labels, reduction=reduction)
    wanted = sampled.label_sets[:, 1:].to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits[:, 1:], wanted, reduction="none").sum(dim=1)
    return losses.sum() if reduction == "sum" else losses


def _compared(deltas: Tensor, sampled: SampledRoIs) -> tuple[Tensor, Tensor]:
    """Return the deltas of each region's own class and its targets, (R, 4) each, both zero for background.

    Where regions have label sets and each class has deltas of its own, they are (R, K+1, 4) each, zero for
    the classes that a region does not have.

    They are chosen by masks: an index by a mask would wait for the device. Values that are masked out may be
    infinite or NaN; they add neither to the loss nor to the gradient.
    """
    labels = sampled.labels[:, None]
    foreground = labels > 0
    box_targets = sampled.box_targets
    if sampled.label_sets is not None:
        if deltas.shape[1] > 1:
            own = sampled.label_sets[..., None]
            return torch.where(own, deltas, 0.0), torch.where(own, box_targets, 0.0)
        box_targets = box_targets.gather(1, labels[..., None].expand(-1, 1, 4))[:, 0]
    if deltas.shape[1] > 1:
        own = (labels == torch.arange(deltas.shape[1], device=labels.device)) & foreground
        chosen = torch.where(own[..., None], deltas, 0.0).sum(dim=1)  # exact: all but one are zero
    else:
        chosen = torch.where(foreground, deltas[:, 0], 0.0)
    return chosen, torch.where(foreground, box_targets, 0.0)


def multi_label_loss(output: HeadOutput, presence: Tensor, count: float | None = None) -> dict[str, Tensor]:
    """Return ``loss_cls``, the binary cross entropy over the columns 1..K, a mean over whole images.

    ``count`` is the number of images of the whole step, if these N are a part of them.
    ``presence`` (N, K) is that of ``Targets.presence``: 1 for present, -1 for absent, and 0 for classes that
    are left out of the loss. The loss of an image is the sum over its classes, as for K classifiers that are
    trained at the same time, so that the learning rate does not depend on K. Column 0, background, has no
    meaning for a whole image; it exists because the layer has the same shape as a detector's.
    """
    logits = output.class_logits[:, 1:].float()
    wanted = (presence > 0).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    counted = torch.where(presence != 0, losses, 0.0)
    return {"loss_cls": counted.sum() / max(len(logits) if count is None else count, 1)}
