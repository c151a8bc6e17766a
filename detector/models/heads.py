"""The layers that work on pooled regions: fc6 and fc7, cls_score and bbox_pred.

cls_score is a linear layer, or compares features with those of examples: `Prototypes`, `NearestExamples`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.core.structures import Embedded, HeadOutput
from detector.models.low_rank import check_rank

PRIOR = 0.01
"""The score that every class of a network with independent scores starts from.

This is pi of "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017), section 4.1. Most targets are
negative: from a score of 0.5, each region would have a loss of 0.69 K in the first steps.
"""
MAX_STORED_EXAMPLES = 1_000_000
"""The most examples that a checkpoint's `NearestExamples` may have."""
NO_VOTE = 1e-6
"""The share of the votes of a class that none of the nearest examples has; its logit must be finite."""


class BoxHead(nn.Module):
    """fc6, fc7, ...: fully connected layers of the ``hidden`` widths, each with ReLU and dropout.

    ``ranks`` has a rank per layer; None leaves the layer whole. A layer of rank t is two, as after a
    truncated SVD: ``fc6_v``, of t outputs without bias, and ``fc6_u``, which reads them.

    Raises:
        InputError: a layer of its rank would have more weights than the whole one, or as many.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        dropout: float = 0.5,
        ranks: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (width, rank) in enumerate(
            zip(hidden, ranks or [None] * len(hidden), strict=True), start=6
        ):
            if rank is not None:
                check_rank(f"fc{number}", in_features, width, rank)
                first = layers[f"fc{number}_v"] = nn.Linear(in_features, rank, bias=False)
                nn.init.kaiming_normal_(first.weight, nonlinearity="linear")
            name = f"fc{number}" if rank is None else f"fc{number}_u"
            linear = nn.Linear(in_features if rank is None else rank, width)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
            layers[name] = linear
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
    the biases of the classes in cls_score start so that each scores `PRIOR`. ``cls_score`` None is a linear
    layer; another module has to turn hidden features (R, F) into logits (R, K+1).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        class_agnostic: bool = False,
        box_features: int | None = None,
        cls_score: Prototypes | NearestExamples | None = None,
        *,
        independent: bool = False,
    ) -> None:
        super().__init__()
        self.rows = 1 if class_agnostic else num_classes + 1
        self.reads_pooled = bool(box_features)
        linear = score_layer(in_features, num_classes + 1, 0.01) if cls_score is None else None
        self.cls_score: Any = cls_score if linear is None else linear
        if independent:
            assert isinstance(self.cls_score, nn.Linear)
            nn.init.constant_(self.cls_score.bias[1:], -math.log((1 - PRIOR) / PRIOR))
        width = in_features if box_features is None else box_features
        self.bbox_pred = score_layer(width, self.rows * 4, 0.001) if width else None

    def forward(self, embedded: Embedded) -> HeadOutput:
        """Return class logits (R, K+1) and box deltas (R, K+1, 4), class-agnostic ones (R, 1, 4), or None."""
        logits = self.cls_score(embedded.hidden)
        if self.bbox_pred is None:
            return HeadOutput(logits, None)
        read = embedded.pooled if self.reads_pooled else embedded.hidden
        return HeadOutput(logits, self.bbox_pred(read).view(-1, self.rows, 4))


class _Similarities(nn.Module):
    """Base of the modules that compare features with stored ones by the cosine.

    Features are centred by ``mean`` (F,), that of the training regions, and scaled to length 1. Without the
    centring, features that are never negative, as after a ReLU, are all similar to each other (SimpleShot,
    Wang et al., 2019).
    """

    mean: Tensor

    def __init__(self, in_features: int, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.temperature = temperature
        self.register_buffer("mean", torch.zeros(in_features))

    def unit(self, features: Tensor) -> Tensor:
        """Return ``features`` (R, F) centred and scaled to length 1, float32."""
        return functional.normalize(features.float() - self.mean, dim=1)

    def fault(self) -> str | None:
        """Return what is wrong with the values of the buffers, which may come from a file, or None."""
        return None


class Prototypes(_Similarities):
    """Class scores from the similarity to one prototype per class, and to several of the background.

    ``classes`` (K, F) and ``background`` (B, F) are of length 1. The logit of a class is its cosine
    similarity divided by ``temperature``; that of the background is the best of its B
    prototypes. A class of zeros was never seen, and its logit is the lowest that a similarity can give.
    """

    classes: Tensor
    background: Tensor

    def __init__(
        self, in_features: int, num_classes: int, *, background: int = 1, temperature: float = 0.1
    ) -> None:
        super().__init__(in_features, num_classes, temperature)
        self.register_buffer("classes", torch.zeros(num_classes, in_features))
        self.register_buffer("background", torch.zeros(background, in_features))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (R, K+1) for hidden features (R, F)."""
        with torch.autocast(hidden.device.type, enabled=False):
            unit = self.unit(hidden)
            of_classes = unit @ self.classes.T
            unseen = ~self.classes.any(dim=1)
            of_classes = torch.where(unseen, -1.0, of_classes)
            of_background = (unit @ self.background.T).amax(dim=1, keepdim=True)
            return torch.cat((of_background, of_classes), dim=1) / self.temperature


class NearestExamples(_Similarities):
    """Class scores from a vote of the ``k`` most similar of E stored examples.

    ``examples`` (E, F) are of length 1, ``labels`` (E,) int64 in 0..K. An example's vote has the weight
    exp(similarity / ``temperature``). The logit of a class is the logarithm of its share of the votes, so a
    softmax gives the shares; a class without a vote has the share `NO_VOTE`.
    """

    examples: Tensor
    labels: Tensor

    def __init__(
        self, in_features: int, num_classes: int, *, examples: int = 1, k: int = 10, temperature: float = 0.1
    ) -> None:
        super().__init__(in_features, num_classes, temperature)
        self.k = k
        self.register_buffer("examples", torch.zeros(examples, in_features))
        self.register_buffer("labels", torch.zeros(examples, dtype=torch.int64))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (R, K+1) for hidden features (R, F)."""
        with torch.autocast(hidden.device.type, enabled=False):
            similarity = self.unit(hidden) @ self.examples.T
            best, nearest = similarity.topk(min(self.k, len(self.examples)), dim=1)
            votes = torch.exp((best - best[:, :1]) / self.temperature)
            shares = votes.new_zeros(len(hidden), self.num_classes + 1)
            shares.scatter_add_(1, self.labels[nearest], votes)
            return torch.log(shares / shares.sum(dim=1, keepdim=True) + NO_VOTE)

    def fault(self) -> str | None:
        """Say whether a label lies outside 0..K, which would be an index outside of the scores."""
        if ((self.labels < 0) | (self.labels > self.num_classes)).any():
            return f"its examples have labels outside 0..{self.num_classes}"
        return None


def score_layer(in_features: int, out_features: int, standard_deviation: float) -> nn.Linear:
    """Return a layer with Gaussian weights of this standard deviation, and biases at zero."""
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=standard_deviation)
    nn.init.zeros_(layer.bias)
    return layer
