"""The layers that work on pooled regions: fc6 and fc7, cls_score and bbox_pred."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from detector.core.structures import Embedded, HeadOutput

PRIOR = 0.01
"""The score that every class of a network with independent scores starts from.

This is pi of "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017), section 4.1. Most targets are
negative: from a score of 0.5, each region would have a loss of 0.69 K in the first steps.
"""


class BoxHead(nn.Module):
    """fc6, fc7, ...: fully connected layers of the ``hidden`` widths, each with ReLU and dropout."""

    def __init__(self, in_features: int, hidden: Sequence[int], dropout: float = 0.5) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, width in enumerate(hidden, start=6):
            linear = nn.Linear(in_features, width)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers[f"fc{number}"] = linear
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            if dropout:
                layers[f"drop{number}"] = nn.Dropout(dropout)
            in_features = width
        self.layers = nn.Sequential(layers)
        self.out_features = in_features

    def forward(self, pooled: Tensor) -> Tensor:
        """Return hidden features (R, F) for pooled features (R, D)."""
        hidden: Tensor = self.layers(pooled)
        return hidden


class BoxPredictor(nn.Module):
    """cls_score on the hidden features, and bbox_pred, which reads the hidden or the pooled ones.

    ``box_features`` None lets bbox_pred read the hidden features; a number, the pooled features of that width
    (SPP-net's ridge regression); 0 leaves bbox_pred out. Weights start Gaussian with standard deviations 0.01
    (cls_score) and 0.001 (bbox_pred), biases at zero (Fast R-CNN, section 2.3). With ``independent`` scores
    the biases of the classes in cls_score start so that each scores `PRIOR`.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        class_agnostic: bool = False,
        box_features: int | None = None,
        *,
        independent: bool = False,
    ) -> None:
        super().__init__()
        self.rows = 1 if class_agnostic else num_classes + 1
        self.reads_pooled = bool(box_features)
        self.cls_score = _linear(in_features, num_classes + 1, 0.01)
        if independent:
            nn.init.constant_(self.cls_score.bias[1:], -math.log((1 - PRIOR) / PRIOR))
        width = in_features if box_features is None else box_features
        self.bbox_pred = _linear(width, self.rows * 4, 0.001) if width else None

    def forward(self, embedded: Embedded) -> HeadOutput:
        """Return class logits (R, K+1) and box deltas (R, K+1, 4), class-agnostic ones (R, 1, 4), or None."""
        logits = self.cls_score(embedded.hidden)
        if self.bbox_pred is None:
            return HeadOutput(logits, None)
        read = embedded.pooled if self.reads_pooled else embedded.hidden
        return HeadOutput(logits, self.bbox_pred(read).view(-1, self.rows, 4))


def _linear(in_features: int, out_features: int, standard_deviation: float) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=standard_deviation)
    nn.init.zeros_(layer.bias)
    return layer
