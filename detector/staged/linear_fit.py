"""Linear heads that scikit-learn fits: logistic regression, and SVMs of each class against the rest.

Both see standardised features. The standardisation is then folded into weights and biases, so the network
applies them to features as it computes them.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.config.schema import LogisticHeadConfig, SVMHeadConfig
from detector.core.progress import note
from detector.staged.region_rows import FitSample
from detector.staged.svm import NEVER_FIRES

if TYPE_CHECKING:  # scikit-learn takes a second to import, and softmax heads do not need it
    from sklearn.linear_model import LogisticRegression

MAX_PASSES = 1000
"""Passes of liblinear over the regions, its default."""


class LinearScores(NamedTuple):
    """``weights`` (K+1, D) and ``biases`` (K+1,) of cls_score, float32."""

    weights: NDArray[np.float32]
    biases: NDArray[np.float32]


class Standardization(NamedTuple):
    """``(features - mean) * factor``, (D,) each; the factor of a feature that never changes is 0."""

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.float32]) -> Standardization:
        """Measure mean and standard deviation of ``features`` (n, D)."""
        mean = features.mean(axis=0, dtype=np.float64)
        deviation = features.std(axis=0, dtype=np.float64)
        changes = deviation > 1e-7 * np.maximum(np.abs(mean), 1e-7)
        return cls(mean, np.where(changes, 1.0 / np.where(changes, deviation, 1.0), 0.0))

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return standardised ``features`` (n, D)."""
        return (features - self.mean.astype(np.float32)) * self.factor.astype(np.float32)

    def fold(self, weights: NDArray[np.float64], biases: NDArray[np.float64]) -> LinearScores:
        """Return a layer for features as they are from one for standardised features, (n, D) and (n,)."""
        folded = weights * self.factor
        return LinearScores(folded.astype(np.float32), (biases - folded @ self.mean).astype(np.float32))


def fit_logistic(
    sample: FitSample, num_classes: int, settings: LogisticHeadConfig, seed: int
) -> LinearScores:
    """Return the logistic regression of 0..K; a class that ``sample`` lacks is never reported.

    Where ``sample`` has label sets, each class has a regression of its own, of the regions that have the
    label against all others, and the row of the background is zero.
    """
    standard = Standardization.of(sample.features)
    features = standard.apply(sample.features)
    if sample.label_sets is not None:
        solvers = [
            (label, _logistic(features, sample.label_sets[:, label], settings, seed))
            for label in range(1, num_classes + 1)
            if sample.label_sets[:, label].any()
        ]
        weights = np.concatenate([solver.coef_ for _, solver in solvers])
        biases = np.concatenate([solver.intercept_ for _, solver in solvers])
        present = np.array([label for label, _ in solvers])
        placed = _placed(standard.fold(weights, biases), present, num_classes)
        placed.biases[0] = 0.0
        return placed
    solver = _logistic(features, sample.labels, settings, seed)
    coefficients, intercepts = solver.coef_, solver.intercept_
    if len(solver.classes_) == 2:  # then scikit-learn gives one row, that of the second class
        coefficients = np.concatenate((-coefficients, coefficients)) / 2
        intercepts = np.concatenate((-intercepts, intercepts)) / 2
    return _placed(standard.fold(coefficients, intercepts), solver.classes_, num_classes)


def _logistic(
    features: NDArray[np.float32], labels: NDArray[Any], settings: LogisticHeadConfig, seed: int
) -> LogisticRegression:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    solver = LogisticRegression(C=settings.c, max_iter=settings.max_iterations, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported below
        # Its weights are float64, so NumPy would convert float32 features at every evaluation.
        solver.fit(features.astype(np.float64), labels)
    if int(np.max(solver.n_iter_)) >= settings.max_iterations:
        note(
            f"the logistic regression stopped after {settings.max_iterations} iterations, close to the best "
            "one; model.head.max_iterations raises the limit, and a smaller model.head.c needs fewer"
        )
    return solver


def fit_svms(sample: FitSample, num_classes: int, settings: SVMHeadConfig, seed: int) -> LinearScores:
    """Return one SVM per class against all other regions; a class that ``sample`` lacks is never reported.

    The row of the background is zero, as in `detector.staged.svm`.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    standard = Standardization.of(sample.features)
    features = standard.apply(sample.features)
    present = [label for label in range(1, num_classes + 1) if (sample.labels == label).any()]
    weights = np.zeros((len(present), features.shape[1]))
    biases = np.zeros(len(present))
    unfinished = []
    for row, label in enumerate(present):
        solver = LinearSVC(C=settings.c, dual=True, random_state=seed, max_iter=MAX_PASSES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # reported below
            solver.fit(features, sample.labels == label)
        weights[row], biases[row] = solver.coef_[0], solver.intercept_[0]
        unfinished += [label] if int(np.max(solver.n_iter_)) >= MAX_PASSES else []
    if unfinished:
        note(
            f"{len(unfinished)} SVMs stopped after {MAX_PASSES} passes, close to the best ones; a smaller "
            "model.head.c needs fewer"
        )
    placed = _placed(standard.fold(weights, biases), np.array(present), num_classes)
    placed.biases[0] = 0.0
    return placed


def _placed(found: LinearScores, labels: NDArray[np.int64], num_classes: int) -> LinearScores:
    """Return the rows of ``labels`` among those of all labels 0..K; the others never fire."""
    weights = np.zeros((num_classes + 1, found.weights.shape[1]), np.float32)
    biases = np.full(num_classes + 1, NEVER_FIRES, np.float32)
    weights[labels], biases[labels] = found.weights, found.biases
    return LinearScores(weights, biases)
