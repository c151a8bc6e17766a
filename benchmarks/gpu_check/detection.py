"""Times a test image of ours against torchvision's parts with the same weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.peer import Peer, copy_weights
from benchmarks.gpu_check.result import Result
from detector.config import Config
from detector.core.structures import Batch, stack_rois
from detector.factory.loaders import inference_views
from detector.factory.model import build_predictor

TABLE = "Test image, VGG16"
SPREAD = 3.0
"""Standard deviation of a class's logits over the proposals of an image, about that of a trained network."""
CONFIDENT = 0.1
"""The fraction of proposals for which a trained network has a class above the score threshold."""


def time_test_images(config: Config, task: Any, peer: Peer, device: str, rounds: int, result: Result) -> None:
    """Time both networks with the given weights, for which nothing is suppressed, and with spread scores.

    Leaves the networks in evaluation mode and with the weights of the second case.
    """
    test_set = task.scorer.test_set
    views = inference_views(config, test_set.records, test_set.proposals, device)
    images = list(views)  # each is a list of views
    task.model.eval(), peer.eval()

    def ours(views: list[Batch]) -> int:
        return len(detect(views).scores)

    def theirs(views: list[Batch]) -> int:
        with torch.inference_mode():
            return len(peer(views[0])[0][0]["scores"].cpu())

    for weights in ("untrained", "as if trained"):
        if weights == "as if trained":
            spread_scores(task.model, images[0][0], device, config.test.score_threshold)
        copy_weights(task.model, peer)
        detect = build_predictor(config, task.model, device)
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for name, call in (("ours", ours), ("theirs", theirs)) * 2:
            times[name].append(milliseconds(call, images, rounds, device))
        mine, other = (sum(times[name]) / 2 for name in ("ours", "theirs"))
        result.row(
            TABLE,
            {
                "weights": weights,
                "precision": config.train.precision,
                "ours ms": mine,
                "torchvision's parts ms": other,
                "ratio": other / mine,
                "proposals, mean": sum(len(views[0].proposals[0].boxes) for views in images) / len(images),
                "our detections, mean": sum(map(ours, images)) / len(images),
                "their detections, mean": sum(map(theirs, images)) / len(images),
                "input": " x ".join(map(str, images[0][0].images.shape[1:3])),
                "ours, each": ", ".join(f"{value:.1f}" for value in times["ours"]),
                "theirs, each": ", ".join(f"{value:.1f}" for value in times["theirs"]),
            },
        )


def milliseconds(
    call: Callable[[list[Batch]], int], images: list[list[Batch]], rounds: int, device: str
) -> float:
    """Return the milliseconds per image of ``rounds`` calls after a few warm-up calls."""
    turns = itertools.cycle(images)
    for _ in range(min(5, rounds)):
        call(next(turns))
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(rounds):
        call(next(turns))
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started) / rounds


@torch.no_grad()
def spread_scores(model: Any, view: Batch, device: str, threshold: float) -> None:
    """Scale and shift cls_score so that scores spread over the proposals as a trained network's do.

    Each class's logits get mean 0 and the same standard deviation; then the background's bias is raised until
    only the fraction CONFIDENT of the proposals has another class above ``threshold``.
    """
    logits = predict(model, view, device)
    mean, standard_deviation = logits.mean(0), logits.std(0).clamp(min=1e-12)
    layer = model.predictor.cls_score
    factor = (SPREAD / standard_deviation).to(layer.weight)
    layer.weight.mul_(factor[:, None])
    layer.bias.copy_((layer.bias - mean.to(layer.bias)) * factor)
    spread = (logits - mean) / standard_deviation * SPREAD
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        spread[:, 0] += middle
        seen = float((spread.softmax(1)[:, 1:].amax(1) > threshold).float().mean())
        spread[:, 0] -= middle
        low, high = (middle, high) if seen > CONFIDENT else (low, middle)
    layer.bias[0] += low


def predict(model: Any, view: Batch, device: str) -> Tensor:
    """Return the class logits (P, K+1) of the proposals of one view."""
    images = model.inputs(view.to(device).images, view.sizes)
    output = model.predict(model.features(images), stack_rois(view.rois_per_image).to(device))
    return output.class_logits.double().cpu()
