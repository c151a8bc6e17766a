"""Ridge regression of boxes, one a class, on pooled features (R-CNN, appendix C; SPP-net, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor, nn

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RidgeSettings:
    """Constants of SPP-net's release."""

    penalty: float = 4000.0
    """Lambda, for the bias too."""
    whitening: float = 1e-3
    """Added to the eigenvalues of the targets' covariance before it is inverted."""


class Whitened(NamedTuple):
    """Targets (n, 4) of unit covariance, and how to go back: ``values @ back + mean``."""

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
    blocks: Iterable[Tensor], targets: Tensor, width: int, factor: float, settings: RidgeSettings
) -> tuple[Tensor, Tensor]:
    """Return weights (4, D) and bias (4,), float32, from pooled features to box deltas.

    ``blocks`` yields the features of the n rows in order, some rows (m, D) at a time, D = ``width``;
    ``targets`` (n, 4) are the rows' box deltas. Features are multiplied by ``factor`` for the fit, and the
    result is for features as they come. Never holds more than a square of the smaller of n and D + 1, and
    with fewer rows than columns the rows: the dual form then needs the n x n matrix alone.
    """
    white = whiten(targets, settings.whitening)
    if len(targets) <= width:
        solution = _dual(blocks, white.values, factor, settings.penalty)
    else:
        solution = _primal(blocks, white.values, width, factor, settings.penalty)
    weights = (solution[:-1] @ white.back).T * factor
    bias = solution[-1] @ white.back + white.mean
    return torch.from_numpy(weights).float(), torch.from_numpy(bias).float()


def fold_ridge(
    layer: nn.Linear, fits: dict[int, tuple[Tensor, Tensor]], means: Tensor, deviations: Tensor
) -> None:
    """Put the regressions of some labels into ``bbox_pred`` (4 (K + 1), D); other labels leave boxes alone.

    ``means`` and ``deviations`` (K+1, 4) are the box coder's: what the layer says is multiplied and shifted
    by them afterwards, so they are taken out here. The regressions are on the CPU; the layer and the coder
    may be on another device, where the division is done.
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
    return np.asarray(cho_solve(cho_factor(gram, overwrite_a=True), moment))


def _dual(blocks: Iterable[Tensor], targets: Matrix, factor: float, penalty: float) -> Matrix:
    rows = np.concatenate([_design(block, factor) for block in blocks])
    kernel = rows @ rows.T + penalty * np.eye(len(rows))
    return np.asarray(rows.T @ cho_solve(cho_factor(kernel, overwrite_a=True), targets))
