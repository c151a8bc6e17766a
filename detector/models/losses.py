"""The multi-task loss (Fast R-CNN, section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from detector.core.structures import HeadOutput, SampledRoIs


class DetectionLoss:
    """Softmax loss over classes and smooth L1 over the true class's box, each a mean over ALL RoIs.

    The box loss sums its four coordinates and is divided by the number of RoIs, background included
    (the release's normaliser). ``box_weight`` is the paper's lambda, ``beta`` the point where smooth L1
    turns from squared to linear.
    """

    def __init__(self, box_weight: float = 1.0, beta: float = 1.0) -> None:
        self.box_weight = box_weight
        self.beta = beta

    def __call__(self, output: HeadOutput, sampled: SampledRoIs) -> dict[str, Tensor]:
        """Return the scalars ``loss_cls`` and, where the network has box deltas, ``loss_box``."""
        logits = output.class_logits.float()
        count = max(len(logits), 1)  # a batch without any RoI has loss zero, not nan
        losses = {"loss_cls": functional.cross_entropy(logits, sampled.labels, reduction="sum") / count}
        if output.box_deltas is not None:
            losses["loss_box"] = self._box_loss(output.box_deltas.float(), sampled) / count
        return losses

    def _box_loss(self, deltas: Tensor, sampled: SampledRoIs) -> Tensor:
        """Return the sum over the foreground, by masks: an index by mask would wait for the device.

        What is masked out may be infinite or NaN; it adds neither to the sum nor to the gradient.
        """
        labels = sampled.labels[:, None]
        foreground = labels > 0
        if deltas.shape[1] > 1:
            own = (labels == torch.arange(deltas.shape[1], device=labels.device)) & foreground
            chosen = torch.where(own[..., None], deltas, 0.0).sum(dim=1)  # exact: all but one are zero
        else:
            chosen = torch.where(foreground, deltas[:, 0], 0.0)
        targets = torch.where(foreground, sampled.box_targets, 0.0)
        loss = functional.smooth_l1_loss(chosen, targets, beta=self.beta, reduction="sum")
        return self.box_weight * loss
