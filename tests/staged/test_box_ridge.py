"""Ridge regression of boxes against a closed form written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from detector.config.schema import RidgeConfig
from detector.staged.box_ridge import fit_ridge, fold_ridge, whiten


def closed_form(features: np.ndarray, targets: np.ndarray, factor: float, penalty: float) -> np.ndarray:
    """The textbook's (X'X + lambda I)^-1 X'Y, unwhitened; returns predictions on the features."""
    mean = targets.mean(axis=0)
    covariance = (targets - mean).T @ (targets - mean) / len(targets)
    values, vectors = np.linalg.eigh(covariance + 1e-3 * np.eye(4))
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    white = (targets - mean) @ np.linalg.inv(root)
    design = np.hstack([features * factor, np.ones((len(features), 1))])
    solution = np.linalg.solve(design.T @ design + penalty * np.eye(design.shape[1]), design.T @ white)
    return design @ solution @ root + mean


@pytest.mark.parametrize(("rows", "width"), [(200, 12), (12, 200), (40, 40)])  # primal, dual, the border
@pytest.mark.parametrize("block", [7, 1000])
def test_equals_the_closed_form(rows: int, width: int, block: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    features = torch.rand(rows, width, generator=generator)
    targets = torch.randn(rows, 4, generator=generator) @ torch.randn(4, 4, generator=generator) * 0.2
    weights, bias = fit_ridge(features.split(block), targets, width, 3.0, RidgeConfig(penalty=5.0))
    found = features @ weights.T + bias
    expected = closed_form(features.double().numpy(), targets.double().numpy(), 3.0, 5.0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_whitened_targets_have_unit_covariance_and_can_be_restored() -> None:
    targets = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 0.5, 3.0])
    white = whiten(targets, 1e-9)
    np.testing.assert_allclose(np.cov(white.values.T, bias=True), np.eye(4), atol=1e-6)
    np.testing.assert_allclose(white.values @ white.back + white.mean, targets.numpy(), atol=1e-5)


def test_the_layer_and_the_coder_give_the_predictions_of_the_regression() -> None:
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(6, 4 * 3)
    means = torch.randn(3, 4, generator=generator)
    deviations = torch.rand(3, 4, generator=generator) + 0.5
    weights, bias = torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)
    fold_ridge(layer, {2: (weights, bias)}, means, deviations)
    features = torch.randn(5, 6, generator=generator)
    deltas = layer(features).view(5, 3, 4) * deviations + means
    torch.testing.assert_close(deltas[:, 2], features @ weights.T + bias)
    torch.testing.assert_close(deltas[:, :2], torch.zeros(5, 2, 4), atol=1e-6, rtol=0)  # boxes stay


def test_the_layer_and_the_coder_may_be_on_another_device_than_the_regressions() -> None:
    """Like a GPU, the meta device refuses to compute with tensors of two devices."""
    layer = nn.Linear(6, 4 * 3, device="meta")
    means, deviations = torch.zeros(3, 4, device="meta"), torch.ones(3, 4, device="meta")
    fold_ridge(layer, {2: (torch.ones(4, 6), torch.ones(4))}, means, deviations)
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(4, 6) / deviations[2][:, None]
