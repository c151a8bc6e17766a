"""Weakly supervised detection: WSDDN's two streams, its scores, and its loss on the labels of whole images.

Source: Bilen and Vedaldi, "Weakly supervised deep detection networks" (CVPR 2016), sections 3.2 and 3.3. The
spatial regulariser of section 3.4 is not implemented.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from detector.core.structures import Embedded, HeadOutput
from detector.models.heads import BoxPredictor, score_layer

CERTAIN = -1e-6
"""The largest logarithm of an image's score in the loss of an absent class, so that the loss stays finite."""


class TwoStreamPredictor(BoxPredictor):
    """cls_score, the classification stream, and region_score, the detection stream; there is no box layer.

    Both read the hidden features and have K+1 columns, as a detector's cls_score. WSDDN has no background
    class, so column 0 has no meaning, as for a classifier of whole images. Weights start Gaussian with
    standard deviation 0.01, biases at zero, as `BoxPredictor` starts cls_score.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes, box_features=0)
        self.region_score = score_layer(in_features, num_classes + 1, 0.01)

    def forward(self, embedded: Embedded) -> HeadOutput:
        """Return ``class_logits`` and ``region_logits``, (R, K+1) each."""
        return super().forward(embedded)._replace(region_logits=self.region_score(embedded.hidden))


def two_stream_scores(output: HeadOutput) -> Tensor:
    """Return the scores (P, K+1), float32, of the P regions of ONE image, with all their rows (equation 3).

    The score of a region for a class is the product of a softmax over the classes and a softmax over the
    regions. Regions that are equal share the softmax over regions, each with its own part. Column 0, the
    background, is what is left to 1, since the scores of a region add up to at most 1.
    """
    scores = _log_scores(output).exp()
    return torch.cat(((1 - scores.sum(dim=1, keepdim=True)).clamp(min=0), scores), dim=1)


def image_log_scores(output: HeadOutput, counts: Sequence[int]) -> Tensor:
    """Return the logarithms of the image scores (N, K), the sums over each image's regions (equation 4).

    The regions of an image follow each other; ``counts`` has their number for each of the N images. An image
    without regions has the scores 0, whose logarithms are minus infinity.
    """
    assert output.region_logits is not None  # a `TwoStreamPredictor` gives them
    streams = output.class_logits.split(list(counts)), output.region_logits.split(list(counts))
    images = [HeadOutput(classes, None, regions) for classes, regions in zip(*streams, strict=True)]
    return torch.stack([torch.logsumexp(_log_scores(image), dim=0) for image in images])


def image_label_loss(
    output: HeadOutput, counts: Sequence[int], presence: Tensor, count: float | None = None
) -> dict[str, Tensor]:
    """Return ``loss_cls``: -log(y (phi - 1/2) + 1/2) summed over classes, a mean over images (equation 5).

    phi is the image score of a class, y its label: ``presence`` (N, K) is that of ``Targets.presence``, and
    classes with 0 are left out. So are images without regions. ``count`` is the number of images of the whole
    step, if these N are a part of them. The loss of a present class is computed from the logarithm of its
    score, which is exact also where the score is too small for float32.
    """
    log_scores = image_log_scores(output, counts)
    absent_losses = -torch.log(-torch.expm1(log_scores.clamp(max=CERTAIN)))
    losses = torch.where(presence > 0, -log_scores, absent_losses)
    counted = torch.where((presence != 0) & (log_scores != -torch.inf), losses, 0.0)
    return {"loss_cls": counted.sum() / max(len(counts) if count is None else count, 1)}


def _log_scores(output: HeadOutput) -> Tensor:
    """Return the logarithms (P, K) of the scores of the P regions of one image."""
    assert output.region_logits is not None  # a `TwoStreamPredictor` gives them
    of_classes = functional.log_softmax(output.class_logits[:, 1:].float(), dim=1)
    of_regions = functional.log_softmax(output.region_logits[:, 1:].float(), dim=0)
    return of_classes + of_regions
