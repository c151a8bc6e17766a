"""Prototypes and nearest examples against loops in NumPy."""

from __future__ import annotations

import numpy as np
import torch

from detector.models.heads import NO_VOTE, NearestExamples, Prototypes
from detector.staged.region_rows import FitSample
from detector.staged.similarity_fit import fill_examples, fill_prototypes


def sample(background: int = 40) -> FitSample:
    rng = np.random.default_rng(3)
    labels = np.array([0] * background + [1] * 6 + [3] * 9)
    centres = rng.normal(size=(4, 10)) * 2
    return FitSample((centres[labels] + rng.normal(size=(len(labels), 10))).astype(np.float32), labels)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_prototypes_are_means_and_their_logits_cosine_similarities() -> None:
    data, module = sample(), Prototypes(10, 3, background=4, temperature=0.2)
    fill_prototypes(module, data, seed=0)
    mean = data.features[data.labels == 0].mean(axis=0)
    points = unit(data.features - mean)
    logits = module(torch.from_numpy(data.features)).numpy()
    for label in (1, 3):
        prototype = unit(points[data.labels == label].mean(axis=0, keepdims=True))[0]
        np.testing.assert_allclose(logits[:, label], points @ prototype / 0.2, atol=1e-4)
    np.testing.assert_allclose(logits[:, 2], -1 / 0.2)  # no example: the lowest
    np.testing.assert_allclose(
        logits[:, 0], (points @ module.background.numpy().T).max(axis=1) / 0.2, atol=1e-4
    )
    assert (logits.argmax(axis=1) == data.labels).mean() > 0.9


def test_few_regions_of_background_are_their_own_prototypes() -> None:
    data, module = sample(background=2), Prototypes(10, 3, background=5)
    fill_prototypes(module, data, seed=0)
    mean = data.features[:2].mean(axis=0)
    points = unit(data.features - mean)
    np.testing.assert_allclose(module.background.numpy(), points[[0, 1, 0, 1, 0]], atol=1e-5)


def test_the_nearest_examples_vote_as_a_search_by_brute_force() -> None:
    data, module = sample(), NearestExamples(10, 3, k=5, temperature=0.3)
    fill_examples(module, data)
    queries = np.random.default_rng(4).normal(size=(20, 10)).astype(np.float32) * 2
    logits = module(torch.from_numpy(queries)).numpy()
    mean = data.features[data.labels == 0].mean(axis=0)
    points, asked = unit(data.features - mean), unit(queries - mean)
    for row, query in zip(logits, asked, strict=True):
        similarity = points @ query
        votes = np.zeros(4)
        for number in np.argsort(-similarity)[:5]:
            votes[data.labels[number]] += np.exp(similarity[number] / 0.3)
        np.testing.assert_allclose(np.exp(row), votes / votes.sum() + NO_VOTE, atol=1e-4)


def test_fewer_examples_than_votes_are_enough() -> None:
    module = NearestExamples(10, 3, k=1000)
    fill_examples(module, sample())
    assert module(torch.zeros(0, 10)).shape == (0, 4)
    assert torch.isfinite(module(torch.zeros(2, 10))).all()
