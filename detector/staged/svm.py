"""One linear SVM a class, trained as R-CNN and SPP-net do, and its place in the network."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor, nn

MAX_ITERATIONS = 20_000
"""Passes of the solver over the regions, twenty times liblinear's default. With features of norm 20 and
C = 1e-3 a few dozen do; with a larger C on few features that the classes share no number may be enough."""


@dataclass(frozen=True, kw_only=True)
class SVMSettings:
    """The solver's constants, of SPP-net's release: liblinear with ``-c 1e-3 -w1 2 -B 10`` and hinge loss."""

    c: float = 1e-3
    positive_weight: float = 2.0
    """Factor on ``c`` for positives."""
    bias_multiplier: float = 10.0
    """The bias is the weight of a feature with this constant value, so it is hardly regularised."""
    seed: int = 0


class FittedSVM(NamedTuple):
    """Weights (F,) float32 and bias; ``converged`` is False where the solver ran out of passes."""

    weights: Tensor
    bias: float
    converged: bool


def fit_svm(positives: Tensor, negatives: Tensor, settings: SVMSettings) -> FittedSVM:
    """Return the SVM between ``positives`` (P, F) and ``negatives`` (N, F).

    The solver's own order of visits is seeded, so equal arguments give equal results.
    """
    features = torch.cat((positives, negatives)).double().numpy()
    labels = np.concatenate((np.ones(len(positives)), np.zeros(len(negatives))))
    solver = LinearSVC(
        loss="hinge",
        C=settings.c,
        class_weight={0: 1.0, 1: settings.positive_weight},
        intercept_scaling=settings.bias_multiplier,
        random_state=settings.seed,
        max_iter=MAX_ITERATIONS,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said by the stage, once and with the class
        solver.fit(features, labels)
    weights = torch.from_numpy(solver.coef_[0]).float()
    return FittedSVM(weights, float(solver.intercept_[0]), bool(np.max(solver.n_iter_) < MAX_ITERATIONS))


def fold_svms(layer: nn.Linear, weights: Tensor, biases: Tensor, factor: float) -> None:
    """Put K SVMs into ``cls_score``: rows 1..K, a background row of zeros.

    ``weights`` (K, F) and ``biases`` (K,) are for features multiplied by ``factor``; the layer gets them for
    features as they come out of the network.
    """
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[1:] = weights * factor
        layer.bias[1:] = biases
