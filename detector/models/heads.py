"""The part of the network that works on RoIs: pooling, fc6 and fc7, cls_score and bbox_pred."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.ops import roi_pool
from detector.structures import Embedded


class RoIPooling(nn.Module):
    """RoI max pooling to ``output_size`` x ``output_size`` bins, over one level or several.

    ``center`` is in network-input pixels and is subtracted from RoI coordinates before they are rounded
    to cells; 0 is Caffe's rule. Rows are flattened in the order (channel, row, column), which Caffe's fc6
    weights expect.
    """

    def __init__(self, channels: int, output_size: int, stride: int, center: float = 0.0) -> None:
        super().__init__()
        self.output_size = output_size
        self.stride = stride
        self.center = center
        self.out_features = channels * output_size**2

    def forward(self, levels: Sequence[Tensor], rois: Tensor, roi_levels: Tensor | None = None) -> Tensor:
        """Return (R, C * bins) for RoI rows (R, 5), each in pixels of its own level's input image."""
        if self.center:
            rois = torch.cat((rois[:, :1], rois[:, 1:] - self.center), dim=1)
        if roi_levels is None:
            return self._pool(levels[0], rois)
        pooled = levels[0].new_zeros(len(rois), self.out_features)
        for number, level in enumerate(levels):
            here = torch.nonzero(roi_levels == number)[:, 0]
            pooled = pooled.index_copy(0, here, self._pool(level, rois[here]))
        return pooled

    def _pool(self, features: Tensor, rois: Tensor) -> Tensor:
        size = (self.output_size, self.output_size)
        return roi_pool(features, rois, size, 1.0 / self.stride).flatten(1)


class BoxHead(nn.Module):
    """fc6, fc7, ...: fully connected layers, each with ReLU and dropout."""

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
    """cls_score and bbox_pred on the hidden features.

    Weights start Gaussian with deviation 0.01 and 0.001, biases zero (paper, section 2.3).
    """

    def __init__(self, in_features: int, num_classes: int, class_agnostic: bool = False) -> None:
        super().__init__()
        self.rows = 1 if class_agnostic else num_classes + 1
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, self.rows * 4)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, embedded: Embedded) -> tuple[Tensor, Tensor]:
        """Return class logits (R, K+1) and box deltas (R, K+1, 4) or (R, 1, 4)."""
        deltas = self.bbox_pred(embedded.hidden).view(-1, self.rows, 4)
        return self.cls_score(embedded.hidden), deltas
