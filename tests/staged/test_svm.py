"""SVMs: their constants, their place in the network, and the bookkeeping of hard negatives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from detector.config.schema import RidgeConfig, SVMConfig
from detector.core.errors import InputError
from detector.staged.svm import NEVER_FIRES, HardNegativeMining, fit_svm, fold_svms, note_unconverged

CLASSES = ("cat", "dog")
Image = tuple[Tensor, Tensor, Tensor, Tensor]


def toy(seed: int = 0, images: int = 12) -> tuple[list[Tensor], list[Image]]:
    """Positives of two classes and images of 15 regions, some of them on objects, some repeated."""
    generator = torch.Generator().manual_seed(seed)
    positives = [torch.randn(9, 5, generator=generator) + shift for shift in (1.0, -1.0)]
    given: list[Image] = []
    for _ in range(images):
        features = torch.randn(15, 5, generator=generator)
        overlaps = torch.rand(15, 2, generator=generator)
        corners = torch.rand(15, 2, generator=generator) * 40
        boxes = torch.cat((corners, corners + 20), dim=1)
        windows = torch.arange(15)
        windows[7] = windows[3]
        given.append((features, overlaps, boxes, windows))
    return positives, given


def reference(positives: list[Tensor], images: list[Image], settings: SVMConfig) -> list[np.ndarray]:
    """One class and one region at a time, with lists; returns (weights, bias) of each class."""
    found = []
    for number, objects in enumerate(positives):
        kept: list[Tensor] = []
        fresh, weights, bias = 0, None, 0.0
        for place, (features, overlaps, _, windows) in enumerate(images):
            seen = set()
            for row in range(len(features)):
                if overlaps[row, number] >= settings.negative_iou:
                    continue
                hard = weights is None or float(features[row] @ weights) + bias > settings.hard_score
                if not hard or int(windows[row]) in seen:
                    continue
                seen.add(int(windows[row]))
                kept.append(features[row])
                fresh += 1
            if place == 0 or fresh > settings.retrain_after or place == len(images) - 1:
                weights, bias, _ = fit_svm(objects, torch.stack(kept), settings)
                kept = [one for one in kept if float(one @ weights) + bias >= settings.evict_score]
                fresh = 0
        assert weights is not None
        found.append(np.append(weights.numpy(), bias))
    return found


def mined(positives: list[Tensor], images: list[Image], settings: SVMConfig) -> HardNegativeMining:
    mining = HardNegativeMining(CLASSES, positives, 1.0, settings)
    add(mining, images)
    return mining


def add(mining: HardNegativeMining, images: list[Image]) -> None:
    for number, image in enumerate(images, start=1):
        mining.add_image(*image, last=number == len(images))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("retrain_after", [4, 1000])
def test_bookkeeping_equals_the_slow_reference(seed: int, retrain_after: int) -> None:
    settings = SVMConfig(c=0.1, retrain_after=retrain_after, evict_score=-1.05)
    positives, images = toy(seed)
    expected = reference(positives, images, settings)
    found = mined(positives, images, settings)
    for number in range(len(CLASSES)):
        both = torch.cat((found.weights[number], found.biases[number : number + 1]))
        np.testing.assert_allclose(both.numpy(), expected[number], rtol=1e-5, atol=1e-5)


def test_going_on_from_a_saved_state_equals_going_through() -> None:
    positives, images = toy()
    settings = SVMConfig(c=0.1, retrain_after=4)
    whole = mined(positives, images, settings)
    for stop in (1, 5, 11):
        first = HardNegativeMining(CLASSES, positives, 1.0, settings)
        for image in images[:stop]:
            first.add_image(*image)
        second = HardNegativeMining(CLASSES, positives, 1.0, settings)
        second.load_state_dict(first.state_dict())
        add(second, images[stop:])
        assert torch.equal(second.weights, whole.weights)
        assert torch.equal(second.biases, whole.biases)


def test_overlapping_negatives_are_thinned_where_asked() -> None:
    positives, images = toy(images=1)
    features, overlaps, _, windows = images[0]
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0]]).repeat(15, 1)
    boxes[4] += 100
    settings = SVMConfig(negative_overlap=0.7, evict_score=-1e9)
    mining = HardNegativeMining(CLASSES, positives, 1.0, settings)
    mining.add_image(features, torch.zeros_like(overlaps), boxes, windows)
    assert [len(rows) for rows in mining.negatives] == [2, 2]


def test_the_svm_is_liblinears_with_the_releases_constants() -> None:
    positives, images = toy()
    negatives = images[0][0]
    weights, bias, converged = fit_svm(positives[0], negatives, SVMConfig())
    assert converged
    solver = LinearSVC(
        loss="hinge", C=1e-3, class_weight={0: 1, 1: 2}, intercept_scaling=10, random_state=0, max_iter=20_000
    ).fit(torch.cat((positives[0], negatives)).double().numpy(), [1] * 9 + [0] * 15)
    np.testing.assert_allclose(weights.numpy(), solver.coef_[0], rtol=1e-6)
    assert bias == pytest.approx(solver.intercept_[0])


def test_scores_are_the_same_in_the_network_and_after_saving(tmp_path: Path) -> None:
    weights, biases, factor = torch.randn(2, 5), torch.randn(2), 0.3
    layer = nn.Linear(5, 3)
    fold_svms(layer, weights, biases, factor)
    features = torch.randn(7, 5)
    scores = layer(features)
    torch.testing.assert_close(scores[:, 1:], features * factor @ weights.T + biases)
    assert not scores[:, 0].any()
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    again = nn.Linear(5, 3)
    again.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(again(features), scores)


def test_a_class_without_positives_is_named_or_never_fires() -> None:
    positives, images = toy()
    positives[1] = torch.zeros(0, 5)
    with pytest.raises(InputError, match="the SVM of dog"):
        HardNegativeMining(CLASSES, positives, 1.0, SVMConfig())
    mining = mined(positives, images, SVMConfig(missing_positives="never"))
    assert mining.biases[1] == NEVER_FIRES
    assert not mining.weights[1].any()
    assert mining.weights[0].any()


def test_a_solver_that_runs_out_of_passes_is_noted_by_class_and_not_warned_of(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    positives, images = toy()
    assert mined(positives, images, SVMConfig()).converged == [True, True]
    monkeypatch.setattr("detector.staged.svm.MAX_ITERATIONS", 1)
    mining = mined(positives, images, SVMConfig(missing_positives="never"))
    assert mining.converged == [False, False]
    assert not recwarn.list
    note_unconverged(mining)
    assert "the SVM of cat, dog did not converge" in capsys.readouterr().err


def test_defaults_are_the_releases() -> None:
    """Liblinear with -w1 2 -B 10 -c 1e-3, features of mean norm 20; ridges of at most 20,000 rows."""
    svm, ridge = SVMConfig(), RidgeConfig()
    assert (svm.c, svm.positive_weight, svm.bias_multiplier) == (1e-3, 2.0, 10.0)
    assert (svm.negative_iou, svm.hard_score, svm.evict_score) == (0.3, -1.0001, -1.2)
    assert (svm.retrain_after, svm.feature_norm) == (2000, 20.0)
    assert (ridge.penalty, ridge.whitening, ridge.max_rows, ridge.min_iou) == (4000.0, 1e-3, 20000, 0.5)
