"""Post-processing against a slow reference: decode, clip, threshold, suppress, cap."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detector.core.structures import Detections, HeadOutput, ImageMeta
from detector.models.box_coder import BoxCoder, fixed_coder
from detector.models.postprocess import Postprocess, class_scores, margin_scores, softmax_scores
from tests.conftest import MakeBoxes
from tests.typed import present

SIZE = (80, 120)
META = ImageMeta(image_id="a", original_size=SIZE, input_size=(160, 240))
K = 3


def coder() -> BoxCoder:
    torch.manual_seed(2)
    return BoxCoder(torch.randn(K + 1, 4) * 0.05, 0.1 + torch.rand(K + 1, 4) * 0.1)


def random_output(count: int, seed: int, rows: int = K + 1) -> HeadOutput:
    generator = torch.Generator().manual_seed(seed)
    return HeadOutput(
        torch.randn(count, K + 1, generator=generator) * 2, torch.randn(count, rows, 4, generator=generator)
    )


def overlap(a: list[float], b: list[float]) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def reference(boxes: Tensor, scores: Tensor, threshold: float, nms: float, cap: int) -> list[tuple]:
    """Greedy suppression class by class, box by box; earlier proposals and classes win ties."""
    found = []
    for label in range(1, K + 1):
        kept: list[list[float]] = []
        for row in sorted(range(len(scores)), key=lambda row: -scores[row, label].item()):
            score = scores[row, label].item()
            x1, y1, x2, y2 = boxes[row, label if boxes.shape[1] > 1 else 0].tolist()
            box = [min(max(x1, 0), 120), min(max(y1, 0), 80), min(max(x2, 0), 120), min(max(y2, 0), 80)]
            if score <= threshold or box[2] <= box[0] or box[3] <= box[1]:
                continue
            if all(overlap(box, one) <= nms for one in kept):
                kept.append(box)
                found.append((score, label, box))
    return sorted(found, key=lambda item: -item[0])[:cap]


def assert_equal(found: Detections, expected: list[tuple]) -> None:
    assert found.labels.tolist() == [label for _, label, _ in expected]
    assert found.scores.tolist() == [score for score, _, _ in expected]
    assert found.boxes.tolist() == [box for _, _, box in expected]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows", [K + 1, 1])
@pytest.mark.parametrize("cap", [7, 1000])
def test_equals_the_slow_reference(make_boxes: MakeBoxes, seed: int, rows: int, cap: int) -> None:
    constants = coder() if rows > 1 else fixed_coder(K, (0.0,) * 4, (0.1, 0.1, 0.2, 0.2))
    output, proposals = random_output(60, seed, rows), make_boxes(60, 75.0, seed)
    step = Postprocess(constants, score_threshold=0.1, nms_threshold=0.3, max_detections=cap)
    expected = reference(
        constants.decode(present(output.box_deltas), proposals),
        torch.softmax(output.class_logits, 1),
        0.1,
        0.3,
        cap,
    )
    assert len(expected) > 5
    assert_equal(step([(output, META)], proposals), expected)


def certain(scores: list[float]) -> Tensor:
    """Scores (R, K+1), as given; only class 1 has any."""
    return torch.tensor([[0.0, score, 0.0, 0.0] for score in scores])


def plain(**settings: Any) -> Postprocess:
    return Postprocess(
        coder(), scores=lambda output: output.class_logits, **{"score_threshold": 0.05, **settings}
    )


def test_ties_go_to_the_earlier_proposal_and_the_lower_label() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    scores = certain([0.5, 0.5, 0.5])
    scores[2, 3] = 0.5
    found = plain()([(HeadOutput(scores, None), META)], boxes)
    assert found.boxes.tolist() == [boxes[0].tolist(), boxes[2].tolist(), boxes[2].tolist()]
    assert found.labels.tolist() == [1, 1, 3]


def test_thresholds_are_exclusive_and_nms_keeps_an_iou_of_exactly_the_threshold() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 5.0, 10.0, 10.0], [50.0, 0.0, 60.0, 9.0]])
    found = plain(score_threshold=0.25, nms_threshold=0.5)(
        [(HeadOutput(certain([0.75, 0.5, 0.25]), None), META)], boxes
    )
    assert found.scores.tolist() == [0.75, 0.5]  # 0.25 is not above 0.25; IoU 0.5 is not above 0.5


def test_classes_do_not_suppress_one_another() -> None:
    scores = torch.tensor([[0.0, 0.9, 0.8, 0.7]])
    found = plain()([(HeadOutput(scores, None), META)], torch.tensor([[5.0, 5.0, 30.0, 30.0]]))
    assert found.labels.tolist() == [1, 2, 3]


def test_boxes_are_clipped_and_those_outside_dropped() -> None:
    boxes = torch.tensor([[-20.0, -5.0, 30.0, 200.0], [130.0, 10.0, 150.0, 30.0], [9.0, 9.0, 9.0, 20.0]])
    found = plain()([(HeadOutput(certain([0.9, 0.8, 0.7]), None), META)], boxes)
    assert found.boxes.tolist() == [[0.0, 0.0, 30.0, 80.0]]


def test_what_is_not_finite_is_dropped() -> None:
    output, bad = random_output(6, 0), float("nan")
    deltas = present(output.box_deltas)
    deltas[0], deltas[1] = bad, float("inf")
    output.class_logits[2] = bad
    proposals = torch.tensor([[10.0 * step, 10.0, 10.0 * step + 9, 19.0] for step in range(6)])
    found = Postprocess(coder(), score_threshold=0.0, nms_threshold=1.0)([(output, META)], proposals)
    assert found.boxes.isfinite().all()
    assert found.scores.isfinite().all()
    assert len(found) == 3 * K


def test_no_proposals_give_no_detections() -> None:
    output = HeadOutput(torch.zeros(0, K + 1), torch.zeros(0, K + 1, 4))
    assert len(plain()([(output, META)], torch.zeros(0, 4))) == 0


@pytest.mark.parametrize(
    "mirrored",
    [{"flipped": True}, {"flipped_vertically": True}, {"flipped": True, "flipped_vertically": True}],
)
def test_a_flipped_view_gives_the_boxes_of_the_unflipped_one(make_boxes: MakeBoxes, mirrored: dict) -> None:
    """For a mirrored image the network returns mirrored shifts."""
    constants = fixed_coder(K, (0.0,) * 4, (0.1, 0.1, 0.2, 0.2))
    output, proposals = random_output(30, 0), make_boxes(30, 75.0)
    signs = torch.tensor(
        [-1.0 if "flipped" in mirrored else 1.0, -1.0 if "flipped_vertically" in mirrored else 1.0, 1, 1]
    )
    seen = HeadOutput(output.class_logits, present(output.box_deltas) * signs)
    step = Postprocess(constants)
    straight = step.decode(output, proposals, META)
    found = step.decode(seen, proposals, dataclasses.replace(META, **mirrored))
    torch.testing.assert_close(found[0], straight[0], rtol=1e-5, atol=1e-4)
    assert torch.equal(found[1], straight[1])


def test_several_views_are_suppressed_together(make_boxes: MakeBoxes) -> None:
    output, proposals = random_output(40, 0), make_boxes(40, 75.0)
    step = Postprocess(coder(), max_detections=1000)
    view = step.decode(output, proposals, META)
    alone, twice = step.select([view], SIZE), step.select([view, view], SIZE)
    assert_equal(
        twice, list(zip(alone.scores.tolist(), alone.labels.tolist(), alone.boxes.tolist(), strict=True))
    )


def test_views_are_merged_before_suppression(make_boxes: MakeBoxes) -> None:
    """A mirrored view with the same boxes changes nothing; one with more boxes adds them."""
    output, proposals = random_output(40, 0), make_boxes(40, 75.0)
    step = Postprocess(coder(), max_detections=1000)
    alone = step([(output, META)], proposals)
    twice = step([(output, META), (output, META)], proposals)
    assert_equal(
        twice, list(zip(alone.scores.tolist(), alone.labels.tolist(), alone.boxes.tolist(), strict=True))
    )
    other = step([(output, META), (random_output(40, 1), META)], proposals)
    assert other.scores.max() >= alone.scores.max()
    assert len(other) > len(alone)


def test_without_box_regression_detections_are_proposals(make_boxes: MakeBoxes) -> None:
    output, proposals = random_output(40, 0), make_boxes(40, 75.0)
    found = Postprocess(coder(), box_regression=False)([(output, META)], proposals)
    expected = Postprocess(coder())([(output._replace(box_deltas=None), META)], proposals)
    assert len(found) > 0
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)


def test_margins_are_scores_as_they_are() -> None:
    output = HeadOutput(torch.tensor([[0.0, -1.25, 2.0, -3.0]]), None)
    box = torch.tensor([[5.0, 5.0, 30.0, 30.0]])
    found = Postprocess(coder(), score_threshold=-1.5, scores=margin_scores)([(output, META)], box)
    assert (found.scores.tolist(), found.labels.tolist()) == ([2.0, -1.25], [2, 1])


def test_scores_are_probabilities_in_float32() -> None:
    scores = softmax_scores(HeadOutput(torch.randn(5, 4).bfloat16(), None))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(1), torch.ones(5))


def test_refining_takes_the_box_and_score_of_the_candidates_own_class(make_boxes: MakeBoxes) -> None:
    step = Postprocess(coder(), score_threshold=0.1, max_detections=4)
    output, proposals = random_output(60, 0), make_boxes(60, 75.0)
    candidates = step.candidates([(output, META)], proposals)
    boxes, scores = step.decode(output, proposals, META)
    assert_equal(candidates, reference(boxes, scores, 0.1, 0.5, 8))  # loose NMS, twice as many
    second = random_output(len(candidates), 5)
    refined = step.refine([(second, META)], candidates)
    boxes, scores = step.decode(second, candidates.boxes, META)
    assert torch.equal(refined.labels, candidates.labels)
    for row, label in enumerate(candidates.labels.tolist()):
        assert refined.scores[row] == scores[row, label]
        x1, y1, x2, y2 = boxes[row, label].tolist()
        clipped = [min(max(x1, 0), 120), min(max(y1, 0), 80), min(max(x2, 0), 120), min(max(y2, 0), 80)]
        assert refined.boxes[row].tolist() == clipped


def test_finishing_suppresses_and_caps_as_select_does(make_boxes: MakeBoxes) -> None:
    output, proposals = random_output(60, 0), make_boxes(60, 75.0)
    boxes, scores = plain().decode(HeadOutput(output.class_logits, None), proposals, META)
    rows, labels = torch.nonzero(scores[:, 1:] > -9).unbind(1)
    every = Detections(boxes=boxes[rows, 0], scores=scores[rows, labels + 1], labels=labels + 1)
    found = plain(max_detections=9).finish(every)
    assert_equal(found, reference(boxes, scores, 0.05, 0.3, 9))
    assert len(plain().finish(Detections.empty())) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [K + 1, 1])
@pytest.mark.parametrize("threshold", [0.1, -9.0])
def test_a_gpu_gives_the_same_detections(make_boxes: MakeBoxes, rows: int, threshold: float) -> None:
    """Scores are taken as they are, so that nothing but the boxes' last digits may differ."""
    output, proposals = random_output(500, 0, rows), make_boxes(500, 75.0)
    on_gpu = HeadOutput(output.class_logits.cuda(), present(output.box_deltas).cuda())
    step = plain(score_threshold=threshold)
    expected, found = step([(output, META)], proposals), step([(on_gpu, META)], proposals)
    assert found.boxes.device.type == "cpu"
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.scores, expected.scores)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-4)
    bare = [HeadOutput(part.class_logits, None) for part in (output, on_gpu)]
    unmoved = [step([(part, META)], proposals) for part in bare]
    assert torch.equal(unmoved[0].boxes, unmoved[1].boxes)
    second = random_output(len(unmoved[0]), 5)._replace(box_deltas=None)
    looks = (second, HeadOutput(second.class_logits.cuda(), None))
    refined = [step.refine([(look, META)], unmoved[0]) for look in looks]
    assert torch.equal(refined[0].boxes, refined[1].boxes)
    assert torch.equal(refined[0].scores, refined[1].scores)


@pytest.mark.gpu
def test_a_gpu_is_waited_for_at_most_twice_per_image(make_boxes: MakeBoxes) -> None:
    output, proposals = random_output(500, 0), make_boxes(500, 75.0)
    on_gpu = HeadOutput(output.class_logits.cuda(), present(output.box_deltas).cuda())
    step = Postprocess(coder().cuda())
    step([(on_gpu, META)], proposals)  # the first call may wait for other reasons
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as waits:
            step([(on_gpu, META)], proposals)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) <= 2, [str(wait.message) for wait in waits]


def test_class_scores_are_probabilities_of_the_classes_without_the_background() -> None:
    scores = class_scores(HeadOutput(torch.tensor([[9.0, 0.0, math.log(3)]]), None))
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.75]]))
