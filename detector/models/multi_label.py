"""Several classes an image: logits to scores, and the loss against what is there.

The columns 1..K of ``HeadOutput.class_logits`` are K yes-or-no questions. Column 0, background, has no
meaning for a whole image; it stays, so that a detector's layer has the same shape.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from detector.core.structures import HeadOutput


def class_scores(output: HeadOutput) -> Tensor:
    """Return the probability of each class, (N, K), for the logits of N whole images."""
    return output.class_logits[:, 1:].float().sigmoid()


def multi_label_loss(output: HeadOutput, presence: Tensor) -> dict[str, Tensor]:
    """Return ``loss_cls``, the binary cross entropy over the columns 1..K, a mean over images.

    ``presence`` (N, K) holds, as ``Targets.presence``, 1, -1, or 0 for what counts neither way: it has no
    part in the loss. An image's loss is the sum over its classes, as of K classifiers trained at a time, so
    that the learning rate does not depend on K.
    """
    logits = output.class_logits[:, 1:].float()
    wanted = (presence > 0).to(logits.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    counted = torch.where(presence != 0, losses, 0.0)
    return {"loss_cls": counted.sum() / max(len(logits), 1)}
