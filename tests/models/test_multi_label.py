"""The multi-label loss against a sum in plain Python, and what ``difficult`` leaves out of it."""

from __future__ import annotations

import math

import pytest
import torch

from detector.core.structures import HeadOutput
from detector.models.multi_label import class_scores, multi_label_loss


def output(logits: torch.Tensor) -> HeadOutput:
    return HeadOutput(logits, None)


def test_loss_is_the_sum_of_each_classifiers_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 5, generator=generator)
    presence = torch.randint(-1, 2, (6, 4), generator=generator)
    wanted = 0.0
    for row, there in zip(logits.tolist(), presence.tolist(), strict=True):
        for logit, sign in zip(row[1:], there, strict=True):  # column 0 is background
            wanted += math.log1p(math.exp(-sign * logit)) if sign else 0.0
    found = multi_label_loss(output(logits), presence)
    assert found.keys() == {"loss_cls"}
    assert float(found["loss_cls"]) == pytest.approx(wanted / 6, rel=1e-5)


def test_background_and_difficult_get_no_gradient() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    presence = torch.tensor([[1, 0, -1], [0, 0, 0], [-1, 1, 0]])
    (gradient,) = torch.autograd.grad(multi_label_loss(output(logits), presence)["loss_cls"], logits)
    assert not gradient[:, 0].any()
    assert torch.equal(gradient[:, 1:] != 0, presence != 0)
    assert torch.equal(gradient[:, 1:].sign(), -presence.float())


def test_extreme_logits_and_no_images_stay_finite() -> None:
    logits = torch.tensor([[0.0, 1e4, -1e4]], requires_grad=True)
    loss = multi_label_loss(output(logits), torch.tensor([[-1, 1]]))["loss_cls"]
    assert loss.item() == pytest.approx(2e4)
    nothing = multi_label_loss(output(torch.zeros(0, 3)), torch.zeros(0, 2, dtype=torch.int64))
    assert nothing["loss_cls"].item() == 0


def test_scores_are_probabilities_of_the_classes_alone() -> None:
    scores = class_scores(output(torch.tensor([[9.0, 0.0, math.log(3)]])))
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.75]]))
