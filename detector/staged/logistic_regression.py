"""Multinomial logistic regression: scikit-learn's objective and solver, with products of matrices in float32.

The objective is that of ``sklearn.linear_model.LogisticRegression``: the mean of the log losses, plus the
squared weights times 1 / (2 C n); biases are not penalised. The solver is SciPy's L-BFGS-B with the options
that scikit-learn gives it. scikit-learn multiplies float32 features by float64 weights, for which NumPy
converts all features again at every evaluation; with 17,000 regions of 864 features that takes four times as
long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

TOLERANCE = 1e-4
"""The fit ends where no derivative is larger: scikit-learn's ``tol``."""
_LINE_SEARCH = 50
_SMALLEST_GAIN = 64 * float(np.finfo(np.float64).eps)


class LogisticFit(NamedTuple):
    """``weights`` (K, D) and ``biases`` (K,), float64; with two classes one row, the logit of the second."""

    weights: NDArray[np.float64]
    biases: NDArray[np.float64]
    iterations: int


def fit_logits(
    features: NDArray[np.float32], classes: NDArray[np.int64], c: float, max_iterations: int
) -> LogisticFit:
    """Fit the logits of ``classes`` (n,), numbers 0..K-1 of which each occurs, to ``features`` (n, D)."""
    count, width = features.shape
    x, of_class = torch.from_numpy(features), functional.one_hot(torch.from_numpy(classes)).T.double()
    targets = of_class[1:].contiguous() if len(of_class) == 2 else of_class.contiguous()
    penalty = 1 / (c * count)

    def objective(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        layer = torch.from_numpy(values).view(len(targets), width + 1)
        weights, biases = layer[:, :-1], layer[:, -1:]
        logits = (weights.float() @ x.T).double() + biases
        whole = logits.logsumexp(0) if len(targets) > 1 else functional.softplus(logits[0])
        loss = (whole.sum() - (logits * targets).sum()) / count + penalty / 2 * weights.square().sum()
        errors = ((logits - whole).exp() - targets) / count
        slope = torch.cat(((errors.float() @ x).double() + penalty * weights, errors.sum(1, True)), dim=1)
        return float(loss), slope.numpy().ravel()

    found = _minimum(objective, len(targets) * (width + 1), max_iterations)
    layer = found.x.reshape(len(targets), width + 1)
    return LogisticFit(layer[:, :-1], layer[:, -1], int(found.nit))


def _minimum(objective: Any, size: int, max_iterations: int) -> Any:
    from scipy.optimize import minimize  # takes a third of a second to import

    options = {
        "maxiter": max_iterations,
        "maxls": _LINE_SEARCH,
        "gtol": TOLERANCE,
        "ftol": _SMALLEST_GAIN,
    }
    return minimize(objective, np.zeros(size), jac=True, method="L-BFGS-B", options=options)
