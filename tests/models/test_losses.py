"""The losses against their formulas, written out in numpy and in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from detector.core.structures import HeadOutput, SampledRoIs
from detector.models.losses import DetectionLoss, multi_label_loss
from tests.typed import gradient, present


def sampled(labels: list[int], seed: int = 0) -> SampledRoIs:
    generator = torch.Generator().manual_seed(seed)
    found = torch.tensor(labels, dtype=torch.int64)
    targets = torch.randn(len(labels), 4, generator=generator) * (found > 0)[:, None]
    return SampledRoIs(rois=torch.zeros(len(labels), 5), labels=found, box_targets=targets)


def output(count: int, num_classes: int, rows: int | None, seed: int = 1) -> HeadOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, num_classes + 1, generator=generator) * 3
    deltas = None if rows is None else torch.randn(count, rows, 4, generator=generator) * 2
    return HeadOutput(logits.requires_grad_(), None if deltas is None else deltas.requires_grad_())


def written_out(found: HeadOutput, wanted: SampledRoIs, weight: float, beta: float) -> tuple[float, float]:
    """L = 1/R sum_i [ -log p_i(u_i) + weight * (u_i > 0) * sum_xywh smooth(t_i - v_i) ]."""
    logits = found.class_logits.detach().numpy().astype(np.float64)
    deltas = present(found.box_deltas).detach().numpy().astype(np.float64)
    classes, boxes = 0.0, 0.0
    for row, label in enumerate(wanted.labels.tolist()):
        shifted = logits[row] - logits[row].max()
        classes -= shifted[label] - np.log(np.exp(shifted).sum())
        if label > 0:
            own = deltas[row, label if deltas.shape[1] > 1 else 0]
            for difference in np.abs(own - wanted.box_targets[row].numpy()):
                boxes += 0.5 * difference**2 / beta if difference < beta else difference - 0.5 * beta
    return classes / len(logits), weight * boxes / len(logits)


@pytest.mark.parametrize("rows", [4, 1])
@pytest.mark.parametrize(("weight", "beta"), [(1.0, 1.0), (2.5, 1 / 9)])
def test_equals_the_formula(rows: int, weight: float, beta: float) -> None:
    wanted, found = sampled([0, 2, 0, 1, 3, 3, 0, 0]), output(8, 3, rows)
    losses = DetectionLoss(weight, beta)(found, wanted)
    classes, boxes = written_out(found, wanted, weight, beta)
    assert losses["loss_cls"].item() == pytest.approx(classes, rel=1e-5)
    assert losses["loss_box"].item() == pytest.approx(boxes, rel=1e-5)


def test_only_the_true_class_of_foreground_is_regressed() -> None:
    wanted, found = sampled([0, 2, 0, 1]), output(4, 3, 4)
    DetectionLoss()(found, wanted)["loss_box"].backward()
    touched = gradient(found.box_deltas).abs().sum(dim=2) > 0
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[1, 2] = expected[3, 1] = True
    assert torch.equal(touched, expected)


def test_a_batch_of_background_has_no_box_loss_but_a_gradient_of_zero() -> None:
    wanted, found = sampled([0, 0]), output(2, 3, 4)
    losses = DetectionLoss()(found, wanted)
    sum(losses.values(), torch.zeros(())).backward()
    assert losses["loss_box"].item() == 0
    assert not gradient(found.box_deltas).any()
    assert gradient(found.class_logits).any()


@pytest.mark.parametrize("rows", [4, 1])
def test_what_is_masked_out_may_be_infinite(rows: int) -> None:
    wanted, found, clean = sampled([0, 2, 0, 1]), output(4, 3, rows), output(4, 3, rows)
    wild = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    deltas = present(found.box_deltas)
    with torch.no_grad():
        wanted.box_targets[0] = deltas[0] = deltas[2] = wild
        if rows > 1:
            deltas[1, 3] = wild  # of a class that is not its own
    loss, expected = (DetectionLoss()(each, wanted)["loss_box"] for each in (found, clean))
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    assert torch.equal(gradient(found.box_deltas), gradient(clean.box_deltas))
    assert gradient(found.box_deltas).isfinite().all()


def test_the_loss_and_its_gradient_are_those_of_the_foreground_only() -> None:
    """The gradient, which trains the network, is equal bit for bit; the sum may add in another order."""
    for rows in (21, 1):
        labels = torch.randint(21, (128,), generator=torch.Generator().manual_seed(0)).tolist()
        wanted, found, again = sampled(labels), output(128, 20, rows), output(128, 20, rows)
        here = torch.nonzero(wanted.labels > 0)[:, 0]
        row = wanted.labels[here] if rows > 1 else torch.zeros_like(here)
        picked = present(again.box_deltas)[here, row]
        plain = functional.smooth_l1_loss(picked, wanted.box_targets[here], reduction="sum") / 128
        loss = DetectionLoss()(found, wanted)["loss_box"]
        torch.testing.assert_close(loss, plain)
        loss.backward()
        plain.backward()
        assert torch.equal(gradient(found.box_deltas), gradient(again.box_deltas))


def test_no_rois_are_no_loss() -> None:
    found = output(0, 3, 4)
    losses = DetectionLoss()(found, sampled([]))
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_cls": 0.0, "loss_box": 0.0}
    sum(losses.values(), torch.zeros(())).backward()


def test_without_box_deltas_there_is_one_loss() -> None:
    assert set(DetectionLoss()(output(3, 2, None), sampled([0, 1, 2]))) == {"loss_cls"}


def test_half_precision_output_is_summed_in_float32() -> None:
    wanted, found = sampled([1, 0, 2] * 40), output(120, 3, 4)
    half = HeadOutput(found.class_logits.bfloat16(), present(found.box_deltas).bfloat16())
    losses, exact = DetectionLoss()(half, wanted), DetectionLoss()(found, wanted)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.02)


def test_the_multi_label_loss_is_the_sum_of_each_classifiers_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 5, generator=generator)
    presence = torch.randint(-1, 2, (6, 4), generator=generator)
    wanted = 0.0
    for row, there in zip(logits.tolist(), presence.tolist(), strict=True):
        for logit, sign in zip(row[1:], there, strict=True):  # column 0 is background
            wanted += math.log1p(math.exp(-sign * logit)) if sign else 0.0
    found = multi_label_loss(HeadOutput(logits, None), presence)
    assert found.keys() == {"loss_cls"}
    assert float(found["loss_cls"]) == pytest.approx(wanted / 6, rel=1e-5)


def test_background_and_difficult_get_no_gradient() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    presence = torch.tensor([[1, 0, -1], [0, 0, 0], [-1, 1, 0]])
    (gradient,) = torch.autograd.grad(
        multi_label_loss(HeadOutput(logits, None), presence)["loss_cls"], logits
    )
    assert not gradient[:, 0].any()
    assert torch.equal(gradient[:, 1:] != 0, presence != 0)
    assert torch.equal(gradient[:, 1:].sign(), -presence.float())


def test_extreme_logits_and_no_images_stay_finite() -> None:
    logits = torch.tensor([[0.0, 1e4, -1e4]], requires_grad=True)
    loss = multi_label_loss(HeadOutput(logits, None), torch.tensor([[-1, 1]]))["loss_cls"]
    assert loss.item() == pytest.approx(2e4)
    nothing = multi_label_loss(HeadOutput(torch.zeros(0, 3), None), torch.zeros(0, 2, dtype=torch.int64))
    assert nothing["loss_cls"].item() == 0


def several(sets: list[list[int]], classes: int, seed: int = 0) -> SampledRoIs:
    """RoIs with the labels of ``sets``, and random box targets for each label."""
    label_sets = torch.zeros(len(sets), classes + 1, dtype=torch.bool)
    for row, labels in enumerate(sets):
        label_sets[row, labels] = True
    targets = torch.randn(len(sets), classes + 1, 4, generator=torch.Generator().manual_seed(seed))
    return SampledRoIs(
        rois=torch.zeros(len(sets), 5),
        labels=torch.tensor([labels[-1] if labels else 0 for labels in sets]),
        box_targets=torch.where(label_sets[..., None], targets, 0.0),
        label_sets=label_sets,
    )


def several_written_out(
    found: HeadOutput, wanted: SampledRoIs, sets: list[list[int]], weight: float, beta: float
) -> list[tuple[float, float]]:
    """The class and box loss of each RoI, number by number."""
    losses = []
    deltas = present(found.box_deltas)
    for row, labels in enumerate(sets):
        class_loss = box_loss = 0.0
        for label in range(1, found.class_logits.shape[1]):
            score = 1 / (1 + math.exp(-found.class_logits[row, label].item()))
            class_loss -= math.log(score if label in labels else 1 - score)
        regressed = labels if deltas.shape[1] > 1 else labels[-1:]
        for label in regressed:
            own = deltas[row, label if deltas.shape[1] > 1 else 0]
            for difference in (own - wanted.box_targets[row, label]).abs().tolist():
                box_loss += difference**2 / (2 * beta) if difference < beta else difference - beta / 2
        losses.append((class_loss, weight * box_loss))
    return losses


@pytest.mark.parametrize("rows", [4, 1], ids=["per class", "class agnostic"])
def test_the_loss_of_several_labels_is_the_sum_written_out(rows: int) -> None:
    sets = [[2], [], [1, 3], [], [1, 2, 3], [3]]
    wanted = several(sets, 3)
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 4, generator=generator).requires_grad_()
    deltas = torch.randn(6, rows, 4, generator=generator).requires_grad_()
    found, loss = HeadOutput(logits, deltas), DetectionLoss(2.0, 0.5)
    expected = several_written_out(found, wanted, sets, 2.0, 0.5)
    losses = loss(found, wanted)
    assert losses["loss_cls"].item() == pytest.approx(sum(one for one, _ in expected) / 6, rel=1e-5)
    assert losses["loss_box"].item() == pytest.approx(sum(one for _, one in expected) / 6, rel=1e-5)
    assert loss.per_region(found, wanted).tolist() == pytest.approx([sum(one) for one in expected], rel=1e-5)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert not present(logits.grad)[:, 0].any()  # column 0 has no loss
    assert bool(present(logits.grad)[:, 1:].all())
    trained = present(deltas.grad).abs().sum(dim=2) > 0
    assert torch.equal(trained, present(wanted.label_sets) if rows > 1 else wanted.labels[:, None] > 0)
    half = loss(found, wanted, count=12)
    assert half["loss_cls"].item() == pytest.approx(losses["loss_cls"].item() / 2)


def test_a_class_that_a_region_does_not_have_may_have_any_deltas() -> None:
    wanted = several([[1], []], 2)
    deltas = torch.zeros(2, 3, 4)
    deltas[0, 2] = deltas[1] = torch.nan
    loss = DetectionLoss()(HeadOutput(torch.zeros(2, 3), deltas), wanted)["loss_box"]
    assert math.isfinite(loss.item())
