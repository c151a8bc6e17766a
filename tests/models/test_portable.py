"""The network in standard operators gives what the predictor gives, before any exporter sees it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.config import Config
from detector.core.structures import Proposals
from detector.data.images import LoadedImage
from detector.data.samples import collate, make_sample
from detector.engine.inference import RegionPredictor
from detector.export.checks import test_image as image_of
from detector.export.checks import test_regions as regions_of
from detector.factory.export import portable_network, view_of
from detector.factory.model import build_model, build_predictor
from detector.models.box_coder import fixed_coder
from detector.models.feature_pyramid import pyramid_level
from detector.models.portable import LevelChoice, PortablePostprocess, smallest_side
from detector.models.postprocess import Postprocess

Load = Callable[..., Config]
FPN = ("model.backbone.name=resnet18", "model.neck=fpn", "model.fpn.channels=8")
KINDS = {
    "roi": ["model.pool={kind: roi, output_size: 7}"],
    "roi, centres of the network": ["model.pool={kind: roi, output_size: 3, center: network}"],
    "roi_align": ["model.pool={kind: roi_align, output_size: 3}"],
    "roi_align, two samples": [
        "model.pool={kind: roi_align, output_size: 3, sampling_ratio: 2, center: network}"
    ],
    "spp": ["model.pool={kind: spp, levels: [6, 3, 2, 1]}"],
    "spp, average, ridge": [
        "model.pool={kind: spp, levels: [3, 1], reduction: avg, window: roi}",
        "model.box.regression=ridge",
    ],
    "fpn, roi": [*FPN, "model.pool={kind: roi, output_size: 3}"],
    "fpn, roi_align": [*FPN, "model.pool={kind: roi_align, output_size: 3}"],
    "class-agnostic, sigmoid": ["model.head.class_agnostic=true", "model.head.scores=sigmoid"],
    "no boxes": ["model.box.regression=none"],
    "prototypes": ["model.head={kind: prototypes}"],
    "SVMs read as logits": ["model.head={kind: svm, scores: softmax}"],
    "Caffe's pixels": ["model.backbone.convention=caffe"],
    "weak": ["task=weak_detection", "model.box.regression=none"],
}


def case(config: Config, size: tuple[int, int], count: int) -> tuple[Any, list[Tensor], Tensor]:
    """Return the view of a test image, and the inputs of an exported network."""
    from detector.api import record_of

    pixels, regions = image_of(size, 1), regions_of(size, count, 1)
    record = record_of(Path("a"), size)
    meta = view_of(config).plan(size, "a")
    batch = collate([make_sample(record, LoadedImage.of(pixels), Proposals(boxes=regions), meta)])
    inputs = [batch.images[0], regions, torch.tensor(size).float(), torch.tensor(meta.scale)]
    return batch, inputs, regions


@pytest.mark.parametrize("kind", list(KINDS))
def test_scores_and_boxes_are_those_of_the_predictor(tiny: Load, kind: str) -> None:
    config = tiny(*KINDS[kind])
    model = build_model(config, 2).eval()
    with torch.no_grad():
        for name, part in (*model.named_parameters(), *model.named_buffers()):
            if "bbox_pred.weight" in name or "cls_score" in name:
                part.normal_(0, 0.1)
    network = portable_network(config, model, postprocess=False, dense=False)
    predictor = build_predictor(config, model, "cpu")
    assert isinstance(predictor, RegionPredictor)
    for size, count in (((90, 131), 40), ((40, 300), 7), ((128, 128), 0), ((333, 77), 1)):
        view, inputs, _ = case(config, size, count)
        with torch.inference_mode():
            scores, boxes = network(*inputs)
        expected = predictor.regions([view])
        torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes, expected.boxes, rtol=0, atol=2e-4)


@pytest.mark.parametrize("reduction", ["max", "avg"])
def test_a_classifier_of_whole_images(tiny: Load, reduction: str) -> None:
    pool = f"model.pool={{kind: spp, levels: [4, 2, 1], reduction: {reduction}}}"
    config = tiny("task=classification", pool, "proposals.method=null")
    model = build_model(config, 3).eval()
    network, predictor = (
        portable_network(config, model, postprocess=False, dense=False),
        build_predictor(config, model, "cpu"),
    )
    for size in ((90, 131), (40, 300), (64, 64)):
        view, inputs, _ = case(config, size, 0)
        with torch.inference_mode():
            (scores,) = network(inputs[0])
        torch.testing.assert_close(scores, predictor([view]), rtol=0, atol=1e-6)


def test_regions_outside_the_image_and_larger_images_have_no_scores(tiny: Load) -> None:
    config = tiny("test.max_size=120")
    network = portable_network(config, build_model(config, 2).eval(), postprocess=False, dense=False)
    _, inputs, _ = case(config, (96, 120), 3)
    inputs[1][0, 0], inputs[1][1, 2] = math.nan, 121.0
    with torch.inference_mode():
        scores, _ = network(*inputs)
        larger, _ = network(torch.zeros(96, 121, 3, dtype=torch.uint8), *inputs[1:])
    assert scores.isnan().all(dim=1).tolist() == [True, True, False]
    assert larger.isnan().all()


def test_smaller_images_have_no_scores(tiny: Load) -> None:
    """Exported convolutions pad an image of any size, so the limit decides, not an error of the backbone."""
    config = tiny()
    network = portable_network(config, build_model(config, 2).eval(), postprocess=True, dense=True)
    pool = "model.pool={kind: spp, levels: [2, 1]}"
    of_images = tiny("task=classification", pool, "proposals.method=null")
    model = build_model(of_images, 2).eval()
    classifier = portable_network(of_images, model, postprocess=False, dense=True)
    assert network.limits.smallest == classifier.limits.smallest == smallest_side(model)
    for each in (network, classifier):
        each.limits = replace(each.limits, smallest=40)
    for size, large_enough in (((40, 96), True), ((39, 96), False), ((96, 39), False)):
        sides, image = torch.tensor(size).float(), torch.zeros(*size, 3, dtype=torch.uint8)
        region = torch.tensor([[0, 0, size[1], size[0]]]).float()
        with torch.inference_mode():
            *_, labels, scores, _ = network(image, region, sides, torch.ones(2))
            (of_image,) = classifier(image)
        for found in (scores, of_image):
            assert (found.isfinite() if large_enough else found.isnan()).all()
        assert large_enough or len(labels) == 0


def test_levels_are_those_of_the_pyramid() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = torch.rand(20_000, 2, generator=generator).exp2().mul(2.0).pow(6)
    exact = torch.tensor([[56, 56], [112, 112], [224, 224], [448, 448], [28, 448], [0, 0]]).float()
    corners = torch.cat((torch.zeros(20_006, 2), torch.cat((exact, sides))), dim=1)
    for strides in ((4, 8, 16, 32), (8, 16), (4, 16)):
        assert torch.equal(LevelChoice(strides)(corners), pyramid_level(corners, strides))


@pytest.mark.parametrize("dense", [False, True])
def test_detections_are_those_of_the_projects_own_selection(dense: bool) -> None:
    rng = np.random.default_rng(0)
    own = Postprocess(fixed_coder(3, (0,) * 4, (1,) * 4), score_threshold=0.2, max_detections=30)
    select = PortablePostprocess(0.2, 0.3, 30, dense=dense)
    for count in (0, 1, 7, 400):
        # Few different numbers give equal scores, empty boxes and IoUs of exactly 0.3.
        scores = torch.from_numpy(rng.integers(0, 11, (count, 4)) / np.float32(10)).float()
        boxes = torch.from_numpy(rng.integers(0, 14, (count, 4, 4))).float()
        expected = own.select([(boxes, scores)], (20, 20))
        found = select(scores, boxes)
        for part, name in zip(found, ("boxes", "scores", "labels"), strict=True):
            assert torch.equal(part, getattr(expected, name)), name
        fewer = replace(own, max_detections=3).select([(boxes, scores)], (20, 20))
        assert torch.equal(PortablePostprocess(0.2, 0.3, 3, dense=dense)(scores, boxes)[0], fewer.boxes)
