#!/usr/bin/env python3
"""Compares this project with a Fast R-CNN built from torchvision's parts, on blood cells (BCCD).

Both use the splits, weights and proposals of configs/bccd_squeezenet.yaml. The peer is SqueezeNet up to
fire8, whose features are multiplied by 0.01, and torchvision's RoIHeads with roi_pool (7 x 7), TwoMLPHead
(1024) and FastRCNNPredictor. It is trained by SGD for 1752 steps of 2 images x 64 RoIs, with a learning rate
of 0.005, a tenth of that in the last quarter, and with flipped images, which are not resized.

    python benchmarks/bccd_peer.py time     time a training step and a test image of both, alternating
    python benchmarks/bccd_peer.py train    train the peer completely and print its mAP on the test split
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import squeezenet1_0
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_pool

from detector.config import Config, load_config
from detector.core.structures import Batch, Detections
from detector.evaluation.voc import VocEvaluator
from detector.factory import model as model_parts
from detector.factory import proposals as proposal_parts
from detector.factory.data import load_training
from detector.factory.loaders import inference_views, training_batches
from detector.tasks.start import build_scorer

STEPS = 1752


class Pool(nn.Module):
    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], _sizes: Any) -> Tensor:
        return roi_pool(features["0"], boxes, 7, 1 / 8)


class Peer(nn.Module):
    """The peer. As torchvision's networks do, it returns losses in training mode and detections otherwise."""

    def __init__(self, weights: str, num_classes: int) -> None:
        super().__init__()
        network = squeezenet1_0()
        network.load_state_dict(torch.load(weights, weights_only=True))
        self.backbone = network.features[:11]  # through fire8, without the pooling after it
        self.heads = RoIHeads(
            Pool(),
            TwoMLPHead(512 * 49, 1024),
            FastRCNNPredictor(1024, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=64,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=0.05,
            nms_thresh=0.3,
            detections_per_img=100,
        )

    def forward(self, batch: Batch) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        features = {"0": self.backbone(batch.images) * 0.01}
        sizes = [meta.input_size for meta in batch.metas]
        targets = [{"boxes": objects.boxes, "labels": objects.labels} for objects in batch.targets]
        result: tuple[list[dict[str, Tensor]], dict[str, Tensor]] = self.heads(
            features, batch.rois_per_image, sizes, targets if self.training else None
        )
        return result


@dataclass
class Setting:
    config: Config
    train_batches: Iterator[Batch]
    test_set: Any
    source: proposal_parts.StoredProposals


def setting() -> Setting:
    config = load_config("configs/bccd_squeezenet.yaml")
    test_set = build_scorer(config, split=config.data.test_split).test_set
    dataset = load_training(config, test_set.classes, training=True)
    store = proposal_parts.open_proposals(config, dataset.records)
    source = proposal_parts.StoredProposals(store, config.proposals.top_k_test, config.proposals.min_size)
    return Setting(config, training_batches(config, dataset.records, source, 0), test_set, source)


def peer_step(peer: Peer, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    losses = peer(batch)[1]
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()


def make_peer(here: Setting) -> tuple[Peer, torch.optim.SGD]:
    torch.manual_seed(0)
    peer = Peer(str(here.config.model.backbone.weights), len(here.test_set.classes))
    return peer, torch.optim.SGD(peer.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)


def train_peer() -> dict[str, Any]:
    """Train the peer as the module's docstring says, and return its metrics on the test split."""
    here = setting()
    peer, optimizer = make_peer(here)
    peer.train()
    started = time.perf_counter()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.005 * (0.1 if step >= 0.75 * STEPS else 1.0)
        peer_step(peer, optimizer, next(here.train_batches))
        if step % 100 == 99:
            print(
                f"step {step + 1}: {(time.perf_counter() - started) / (step + 1):.3f} s per step", flush=True
            )
    trained = time.perf_counter() - started
    peer.eval()
    evaluator = VocEvaluator(here.test_set.records, here.test_set.classes)
    for view in inference_views(here.config, here.test_set.records, here.source):
        with torch.inference_mode():
            output = peer(view[0])[0][0]
        detections = Detections(boxes=output["boxes"], scores=output["scores"], labels=output["labels"])
        evaluator.update([view[0].metas[0].image_id], [detections])
    tested = time.perf_counter() - started - trained
    return {
        **evaluator.compute(),
        "seconds_per_step": trained / STEPS,
        "seconds_per_image": tested / len(here.test_set.records),
    }


def compare(rounds: int) -> dict[str, Any]:
    """Return the seconds of a training step and of a test image of both networks, and their ratios."""
    here = setting()
    peer, peer_optimizer = make_peer(here)
    config = here.config
    ours = model_parts.build_model(config, len(here.test_set.classes))
    sampler = model_parts.build_roi_sampler(config, ours.box_coder)
    loss = model_parts.build_loss(config)
    limit = config.train.clip_gradient_norm
    optimizer = model_parts.build_optimizer(config, ours)

    def our_step(batch: Batch) -> None:
        sampled = sampler(batch)
        losses = loss(ours(batch.images, sampled.rois), sampled)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        if limit is not None:
            nn.utils.clip_grad_norm_(ours.parameters(), limit)
        optimizer.step()

    views = [view for view, _ in zip(image_views(here), range(rounds), strict=False)]
    batches = [next(here.train_batches) for _ in range(rounds)]
    peer.train(), ours.train()
    steps = in_turns(batches, our_step, lambda batch: peer_step(peer, peer_optimizer, batch))
    peer.eval(), ours.eval()
    our_test = model_parts.build_predictor(config, ours, "cpu")

    def peer_test(view: list[Batch]) -> None:
        with torch.inference_mode():
            peer(view[0])

    tests = in_turns(views, our_test, peer_test)
    return {"training step": steps, "test image": tests, "threads": torch.get_num_threads()}


def image_views(here: Setting) -> Iterator[list[Batch]]:
    return inference_views(here.config, here.test_set.records, here.source)


def in_turns(items: list[Any], ours: Callable[[Any], Any], peer: Callable[[Any], Any]) -> dict[str, float]:
    """Time both functions on every item, each one first in turn; the first item is a warm-up."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for number, item in enumerate(items):
        order = [("ours", ours), ("peer", peer)]
        for name, call in order if number % 2 else reversed(order):
            started = time.perf_counter()
            call(item)
            seconds[name].append(time.perf_counter() - started)
    ratios = [peer / our for our, peer in zip(seconds["ours"][1:], seconds["peer"][1:], strict=True)]
    return {
        "ours_median_s": statistics.median(seconds["ours"][1:]),
        "peer_median_s": statistics.median(seconds["peer"][1:]),
        "peer_over_ours_median": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("time", "train"))
    parser.add_argument("--rounds", type=int, default=25, help="steps and images that are timed (default 25)")
    arguments = parser.parse_args()
    results = train_peer() if arguments.what == "train" else compare(arguments.rounds)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
