"""Fitted linear heads against scikit-learn's own pipeline of standardisation and classifier."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from detector.config.schema import LogisticHeadConfig, SVMHeadConfig
from detector.staged.linear_fit import fit_logistic, fit_svms
from detector.staged.region_rows import FitSample
from detector.staged.svm import NEVER_FIRES


def sample(labels: list[int], seed: int = 0) -> FitSample:
    rng = np.random.default_rng(seed)
    numbers = np.repeat(labels, 30)
    centres = rng.normal(size=(5, 8)) * 2 + 5
    features = (centres[numbers] + rng.normal(size=(len(numbers), 8))).astype(np.float32)
    features[:, 3] = 7.0  # never changes
    return FitSample(features * np.arange(1, 9, dtype=np.float32), numbers)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 2], [0, 1, 3]])
def test_logistic_regression_is_scikit_learns_with_the_standardisation_folded_in(labels: list[int]) -> None:
    data = sample(labels)
    found = fit_logistic(data, 3, LogisticHeadConfig(kind="logistic", c=0.1, max_iterations=1000), 0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    expected = pipeline.fit(data.features.astype(np.float64), data.labels).predict_proba(data.features)
    logits = data.features.astype(np.float64) @ found.weights.T + found.biases
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose((odds / odds.sum(axis=1, keepdims=True))[:, labels], expected, atol=2e-3)
    missing = sorted({0, 1, 2, 3} - set(labels))
    assert found.biases[missing].tolist() == [NEVER_FIRES] * len(missing)


def test_a_region_with_several_labels_is_positive_for_each_of_them() -> None:
    data = sample([0, 1, 3])
    sets = np.zeros((len(data.labels), 4), bool)
    sets[data.labels == 1, 1] = sets[data.labels == 3, 1] = sets[data.labels == 3, 3] = True
    settings = LogisticHeadConfig(kind="logistic", c=0.1, max_iterations=1000)
    found = fit_logistic(data._replace(label_sets=sets), 3, settings, 0)
    logits = data.features.astype(np.float64) @ found.weights.T + found.biases
    for label in (1, 3):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        expected = pipeline.fit(data.features.astype(np.float64), sets[:, label]).predict_proba(data.features)
        np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, label])), expected[:, 1], atol=2e-3)
    assert not logits[:, 0].any()
    assert found.biases[2] == NEVER_FIRES


def test_svms_are_scikit_learns_each_against_the_rest() -> None:
    data = sample([0, 1, 3])
    found = fit_svms(data, 3, SVMHeadConfig(kind="svm", c=0.01), 0)
    margins = data.features.astype(np.float64) @ found.weights.T + found.biases
    for label in (1, 3):
        pipeline = make_pipeline(StandardScaler(), LinearSVC(C=0.01, dual=True, random_state=0))
        expected = pipeline.fit(data.features, data.labels == label).decision_function(data.features)
        np.testing.assert_allclose(margins[:, label], expected, atol=2e-3)
    assert not margins[:, 0].any()
    assert found.biases[2] == NEVER_FIRES
