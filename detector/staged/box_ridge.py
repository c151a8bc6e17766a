"""The stage ``box_ridge``: ridge regression of boxes per class on pooled features.

The method is that of R-CNN (appendix C) and SPP-net (section 4.1). The regressions take the place of
``bbox_pred``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detector.config.schema import RidgeConfig, SVMConfig
from detector.core import boxes as box_ops
from detector.core.errors import InputError
from detector.core.progress import track
from detector.core.structures import ImageRecord
from detector.models.box_coder import box_deltas
from detector.staged.layer_fit import LayerFit, feature_width, is_finite_float

BLOCK_ROWS = 2000
"""The solver gets the pooled features in blocks of at least this many rows."""

Matrix = NDArray[np.float64]
Regression = tuple[Tensor, Tensor]
"""Weights (4, D) and bias (4,), float32, from pooled features to box deltas."""


class ImageRows(NamedTuple):
    """The rows of a class from one image: regions (r, 4) on its objects, and their box deltas (r, 4)."""

    record: ImageRecord
    regions: Tensor
    deltas: Tensor


class RidgeFit(LayerFit[RidgeConfig]):
    """Fits the regression of each class on the regions that lie on its objects."""

    def fit(self, settings: RidgeConfig) -> None:
        """Fit the regressions and put them into ``bbox_pred``; a class without rows leaves boxes as they are.

        Raises:
            InputError: a network without a box layer that reads pooled features.
        """
        layer = self.model.predictor.bbox_pred
        if layer is None or not self.model.predictor.reads_pooled:
            raise InputError("the stage box_ridge needs model.box.regression: ridge")
        factor = SVMConfig().feature_norm / self.mean_norm(pooled=True)  # the release's norm for both stages
        rows_by_label = self._rows(settings)
        width = feature_width(self.model, pooled=True)
        fits: dict[int, Regression] = dict(self.state["fits"]) if self.state else {}
        for label in track(range(1, len(self.classes) + 1), len(self.classes), "ridge regression"):
            rows = rows_by_label[label]
            if label in fits or not rows:
                continue
            targets = torch.cat([image.deltas for image in rows])
            fits[label] = fit_ridge(self._pooled_blocks(rows), targets, width, factor, settings)
            self.save({"fits": fits})
        coder = self.model.box_coder
        fold_ridge(layer, fits, coder.means, coder.deviations)

    @staticmethod
    def reads_pooled(settings: RidgeConfig) -> bool:
        return True

    @staticmethod
    def find_fault(state: dict[str, Any], num_classes: int, width: int) -> str | None:
        fits = state.get("fits")
        if not isinstance(fits, dict):
            return "fits is missing"
        for label, fit in fits.items():
            if isinstance(label, bool) or not isinstance(label, int) or not 1 <= label <= num_classes:
                return f"fits has the label {label!r:.40}"
            if not isinstance(fit, list | tuple) or len(fit) != 2:
                return "fits holds other values than pairs"
            if not (is_finite_float(fit[0], (4, width)) and is_finite_float(fit[1], (4,))):
                return f"fits holds other values than weights of {width} features and biases"
        return None

    def _rows(self, settings: RidgeConfig) -> dict[int, list[ImageRows]]:
        """Return the rows of each label, at most ``settings.max_rows`` of them."""
        rows_by_label: dict[int, list[ImageRows]] = {}
        for label in range(1, len(self.classes) + 1):
            rows = []
            for record in self.records:
                objects = self.objects(record)
                objects = objects.select(objects.labels == label)
                if not len(objects):
                    continue
                regions = torch.cat((objects.boxes, self.proposals(record)))
                overlap, match = box_ops.iou(regions, objects.boxes).max(dim=1)
                on_object = overlap > settings.min_iou
                deltas = box_deltas(regions[on_object], objects.boxes[match[on_object]])
                rows.append(ImageRows(record, regions[on_object], deltas))
            rows_by_label[label] = self._thinned(rows, settings.max_rows, label)
        return rows_by_label

    def _thinned(self, rows: list[ImageRows], limit: int, label: int) -> list[ImageRows]:
        """Return at most ``limit`` rows in all, drawn by the seed and the label."""
        counts = [len(image.regions) for image in rows]
        if sum(counts) <= limit:
            return rows
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + label)
        keep = torch.zeros(sum(counts), dtype=torch.bool)
        keep[torch.randperm(sum(counts), generator=generator)[:limit]] = True
        return [
            ImageRows(image.record, image.regions[mask], image.deltas[mask])
            for image, mask in zip(rows, keep.split(counts), strict=True)
            if mask.any()
        ]

    def _pooled_blocks(self, rows: list[ImageRows]) -> Iterator[Tensor]:
        block: list[Tensor] = []
        for image in rows:
            block.append(self.embed(image.record, image.regions).pooled)
            if sum(map(len, block)) >= BLOCK_ROWS:
                yield torch.cat(block)
                block = []
        if block:
            yield torch.cat(block)


class Whitened(NamedTuple):
    """Targets (n, 4) of unit covariance; ``values @ back + mean`` gives the original ones."""

    values: Matrix
    mean: Matrix
    back: Matrix


def whiten(targets: Tensor, whitening: float) -> Whitened:
    """Return ``targets`` (n, 4) minus their mean, times (covariance + ``whitening``) ** (-1/2)."""
    values = targets.double().numpy()
    mean = values.mean(axis=0)
    centred = values - mean
    eigenvalues, vectors = np.linalg.eigh(centred.T @ centred / len(values))
    root = np.sqrt(np.maximum(eigenvalues, 0) + whitening)
    return Whitened(centred @ (vectors / root) @ vectors.T, mean, (vectors * root) @ vectors.T)


def fit_ridge(
    blocks: Iterable[Tensor], targets: Tensor, width: int, factor: float, settings: RidgeConfig
) -> Regression:
    """Return the regression from pooled features to ``targets`` (n, 4), the box deltas of n rows.

    ``blocks`` yields the features of the rows in order, some rows (m, D) at a time, D = ``width``. Features
    are multiplied by ``factor`` for the fit, and the result is for features without the factor. At most one
    square matrix is in memory, whose side is the smaller of n and D + 1. With fewer rows than columns (the
    dual form) the features of all rows are in memory too.
    """
    white = whiten(targets, settings.whitening)
    if len(targets) <= width:
        solution = _dual(blocks, white.values, factor, settings.penalty)
    else:
        solution = _primal(blocks, white.values, width, factor, settings.penalty)
    weights = (solution[:-1] @ white.back).T * factor
    bias = solution[-1] @ white.back + white.mean
    return torch.from_numpy(weights).float(), torch.from_numpy(bias).float()


def fold_ridge(layer: nn.Linear, fits: dict[int, Regression], means: Tensor, deviations: Tensor) -> None:
    """Put the regressions of some labels into ``bbox_pred`` (4 (K + 1), D); other labels keep their boxes.

    ``means`` and ``deviations`` (standard deviations), (K+1, 4) each, are the box coder's. It applies them to
    the layer's outputs, so the layer gets the inverse. The regressions are on the CPU; the layer and the
    coder may be on another device, where the division is done.
    """
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_((-means / deviations).flatten())
        for label, (weights, bias) in fits.items():
            rows = slice(4 * label, 4 * label + 4)
            layer.weight[rows] = weights.to(means.device) / deviations[label][:, None]
            layer.bias[rows] = (bias.to(means.device) - means[label]) / deviations[label]


def _design(block: Tensor, factor: float) -> Matrix:
    """Return the features of some rows, scaled, with a last column of ones for the bias."""
    features = block.double().numpy() * factor
    return np.concatenate((features, np.ones((len(features), 1))), axis=1)


def _primal(blocks: Iterable[Tensor], targets: Matrix, width: int, factor: float, penalty: float) -> Matrix:
    gram = penalty * np.eye(width + 1)
    moment = np.zeros((width + 1, targets.shape[1]))
    start = 0
    for block in blocks:
        rows = _design(block, factor)
        gram += rows.T @ rows
        moment += rows.T @ targets[start : start + len(rows)]
        start += len(rows)
    from scipy.linalg import cho_factor, cho_solve

    return np.asarray(cho_solve(cho_factor(gram, overwrite_a=True), moment))


def _dual(blocks: Iterable[Tensor], targets: Matrix, factor: float, penalty: float) -> Matrix:
    rows = np.concatenate([_design(block, factor) for block in blocks])
    kernel = rows @ rows.T + penalty * np.eye(len(rows))
    from scipy.linalg import cho_factor, cho_solve

    return np.asarray(rows.T @ cho_solve(cho_factor(kernel, overwrite_a=True), targets))
