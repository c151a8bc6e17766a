"""WSDDN's scores and loss against the formulas of the paper, written out in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.core.structures import Embedded, HeadOutput, ImageMeta
from detector.models.box_coder import fixed_coder
from detector.models.postprocess import Postprocess
from detector.models.wsddn import (
    TwoStreamPredictor,
    image_label_loss,
    image_log_scores,
    two_stream_scores,
)
from tests.typed import gradient, present

K = 3
META = ImageMeta(image_id="a", original_size=(50, 60), input_size=(50, 60))


def output(count: int, seed: int = 0, spread: float = 2.0, dtype: torch.dtype = torch.float32) -> HeadOutput:
    generator = torch.Generator().manual_seed(seed)
    classes, regions = (
        (torch.randn(count, K + 1, generator=generator, dtype=dtype) * spread).requires_grad_()
        for _ in range(2)
    )
    return HeadOutput(classes, None, regions)


def written_out(classes: Tensor, regions: Tensor) -> np.ndarray:
    """Equation 3: the product of a softmax over the classes and one over the regions, (P, K)."""
    x_c, x_d = (part.detach().double().numpy()[:, 1:] for part in (classes, regions))
    scores = np.zeros_like(x_c)
    for r in range(len(x_c)):
        for c in range(K):
            of_class = math.exp(x_c[r, c]) / sum(math.exp(x_c[r, k]) for k in range(K))
            of_region = math.exp(x_d[r, c]) / sum(math.exp(x_d[q, c]) for q in range(len(x_d)))
            scores[r, c] = of_class * of_region
    return scores


def test_scores_equal_the_formula() -> None:
    found = output(7)
    scores, expected = two_stream_scores(found), written_out(found.class_logits, present(found.region_logits))
    torch.testing.assert_close(scores[:, 1:].double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(7))
    assert scores.dtype == torch.float32
    assert (scores >= 0).all()


def test_the_loss_equals_the_formula_for_images_of_different_numbers_of_regions() -> None:
    counts, presence = (4, 1, 6), torch.tensor([[1, -1, 0], [-1, -1, 1], [1, 1, -1]])
    found = output(sum(counts))
    parts = zip(found.class_logits.split(counts), present(found.region_logits).split(counts), strict=True)
    phi = np.stack([written_out(*part).sum(axis=0) for part in parts])
    expected = 0.0
    for image, labels in enumerate(presence.tolist()):
        for c, y in enumerate(labels):
            expected -= math.log(y * (phi[image, c] - 0.5) + 0.5) if y else 0.0
    loss = image_label_loss(found, counts, presence)["loss_cls"]
    assert loss.item() == pytest.approx(expected / 3, rel=1e-5)
    assert image_label_loss(found, counts, presence, 6)["loss_cls"].item() == pytest.approx(loss.item() / 2)


def test_gradients_are_those_of_finite_differences() -> None:
    counts, presence = [3, 2], torch.tensor([[1, -1, -1], [-1, 1, 0]])
    step = 1e-3
    found = output(5, seed=4)
    image_label_loss(found, counts, presence)["loss_cls"].backward()
    for part in (0, 2):
        logits = present(found[part])
        for place in ((0, 1), (2, 3), (4, 2), (3, 0)):
            losses = []
            for sign in (-1, 1):
                moved = logits.detach().clone()
                moved[place] += sign * step
                changed = found._replace(**{HeadOutput._fields[part]: moved})
                loss = image_label_loss(changed, counts, presence)["loss_cls"]
                losses.append(loss.item())
            numeric = (losses[1] - losses[0]) / (2 * step)
            assert gradient(logits)[place].item() == pytest.approx(numeric, abs=2e-3)


@pytest.mark.parametrize("label", [1, -1])
def test_certain_and_hopeless_scores_have_finite_losses_and_gradients(label: int) -> None:
    """phi is 1 for class 1, and too small for float32 for class 2."""
    classes = torch.tensor([[0.0, 200.0, -200.0, 0.0]]).requires_grad_()
    found = HeadOutput(classes, None, torch.zeros(1, K + 1, requires_grad=True))
    loss = image_label_loss(found, [1], torch.tensor([[label, label, 0]]))["loss_cls"]
    loss.backward()
    assert loss.item() == pytest.approx(400.0 if label > 0 else -math.log(1e-6), rel=1e-3)
    assert torch.isfinite(gradient(classes)).all()
    if label > 0:  # the hopeless class is still learned from
        assert gradient(classes)[0, 2].item() == pytest.approx(-1.0)


def test_images_without_regions_are_left_out_and_faults_are_not() -> None:
    found = output(4)
    presence = torch.tensor([[1, -1, -1], [1, 1, -1]])
    with_empty = image_label_loss(found, [4, 0], presence, 1)["loss_cls"]
    assert with_empty.item() == image_label_loss(found, [4], presence[:1])["loss_cls"].item()
    with_empty.backward()
    assert torch.isfinite(gradient(found.class_logits)).all()
    broken = HeadOutput(torch.full((4, K + 1), torch.nan), None, present(found.region_logits))
    assert image_label_loss(broken, [4], presence[:1])["loss_cls"].isnan()


def test_equal_regions_share_the_softmax_over_regions() -> None:
    """A region that is given twice has half the score each time, and the image score stays the same."""
    one = output(3)
    rows = torch.tensor([0, 1, 2, 2])
    twice = one._replace(
        region_logits=present(one.region_logits) - torch.tensor([[0.0], [0.0], [math.log(2)]])
    )
    scores, doubled = two_stream_scores(one)[:, 1:], two_stream_scores(twice.take(rows))[:, 1:]
    torch.testing.assert_close(doubled[:2], scores[:2])
    torch.testing.assert_close(doubled[2], scores[2] / 2)
    torch.testing.assert_close(doubled[3], scores[2] / 2)


def test_half_types_are_computed_in_float32() -> None:
    found = output(9)
    half = HeadOutput(found.class_logits.bfloat16(), None, present(found.region_logits).bfloat16())
    exact = HeadOutput(half.class_logits.float(), None, present(half.region_logits).float())
    assert torch.equal(two_stream_scores(half), two_stream_scores(exact))
    assert torch.equal(image_log_scores(half, [9]), image_log_scores(exact, [9]))


def test_the_predictor_has_two_streams_and_no_box_layer() -> None:
    torch.manual_seed(0)
    layer = TwoStreamPredictor(5, K)
    hidden = torch.randn(6, 5)
    found = layer(Embedded(torch.zeros(6, 0), hidden))
    assert found.box_deltas is None
    assert torch.equal(found.class_logits, hidden @ layer.cls_score.weight.T + layer.cls_score.bias)
    torch.testing.assert_close(present(found.region_logits), layer.region_score(hidden))
    assert set(layer.state_dict()) == {
        *("cls_score.weight", "cls_score.bias", "region_score.weight", "region_score.bias")
    }


def test_detections_have_the_boxes_of_their_regions_and_the_scores_of_two_streams() -> None:
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 50.0, 45.0]])
    logits = torch.tensor([[0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]])
    found = HeadOutput(logits, None, logits)
    step = Postprocess(fixed_coder(K, (0.0,) * 4, (1.0,) * 4), score_threshold=0.5, scores=two_stream_scores)
    detections = step([(found, META)], boxes)
    assert torch.equal(detections.boxes[detections.labels.argsort()], boxes)
    torch.testing.assert_close(
        detections.scores.double().sort().values,
        torch.from_numpy(np.sort(written_out(logits, logits).max(axis=0)[:2])),
        rtol=1e-5,
        atol=0,
    )
