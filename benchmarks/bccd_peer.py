#!/usr/bin/env python3
"""Compares this project with a Fast R-CNN built from torchvision's parts, on blood cells (BCCD).

Both use the splits, weights and proposals of configs/bccd_squeezenet.yaml. The peer is SqueezeNet up to
fire8, whose features are multiplied by 0.01, and torchvision's RoIHeads with roi_pool (7 x 7), TwoMLPHead
(1024) and FastRCNNPredictor. It is trained by SGD for 1752 steps of 2 images x 64 RoIs, with a learning rate
of 0.005, a tenth of that in the last quarter, and with flipped images, which are not resized.

    python benchmarks/bccd_peer.py          train the peer completely and print its mAP on the test split

`benchmarks/train_throughput.py` compares the time of both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import squeezenet1_0
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_pool

from detector.config import load_config
from detector.core.structures import Batch, Detections
from detector.evaluation.voc import VocEvaluator
from detector.factory.loaders import inference_views
from detector.tasks.start import build_task

CONFIG = "configs/bccd_squeezenet.yaml"
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

    def forward(self, batch: PeerBatch) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        features = {"0": self.backbone(batch.images) * 0.01}
        result: tuple[list[dict[str, Tensor]], dict[str, Tensor]] = self.heads(
            features, batch.rois, batch.sizes, batch.targets if self.training else None
        )
        return result


@dataclass(frozen=True)
class PeerBatch:
    """A batch in the form that torchvision takes: images (N, 3, H, W) and a list with an entry per image."""

    images: Tensor
    rois: list[Tensor]
    sizes: list[tuple[int, int]]
    targets: list[dict[str, Tensor]]


def peer_batch(batch: Batch, task: Any) -> PeerBatch:
    """Return what the peer takes of ``batch``, on the device of ``task``, with our normalised images."""
    device = task.device
    return PeerBatch(
        images=task.model.inputs(batch.images.to(device), batch.sizes),
        rois=[boxes.to(device) for boxes in batch.rois_per_image],
        sizes=batch.sizes,
        targets=[{"boxes": t.boxes.to(device), "labels": t.labels.to(device)} for t in batch.targets],
    )


def make_peer(task: Any) -> tuple[Peer, torch.optim.SGD]:
    """Return the peer with the weights that the config of ``task`` names, and its optimizer."""
    torch.manual_seed(0)
    peer = Peer(str(task.config.model.backbone.weights), len(task.classes)).to(task.device)
    return peer, torch.optim.SGD(peer.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)


def total_loss(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def train_peer() -> dict[str, Any]:
    """Train the peer as the module's docstring says, and return its metrics on the test split."""
    task: Any = build_task(load_config(CONFIG), "cpu", None)
    peer, optimizer = make_peer(task)
    peer.train()
    started = time.perf_counter()
    for step, batch in enumerate(itertools.islice(task.batches(0), STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = 0.005 * (0.1 if step >= 0.75 * STEPS else 1.0)
        losses = peer(peer_batch(batch, task))[1]
        optimizer.zero_grad()
        total_loss(losses).backward()
        optimizer.step()
        if step % 100 == 99:
            print(
                f"step {step + 1}: {(time.perf_counter() - started) / (step + 1):.3f} s per step", flush=True
            )
    trained = time.perf_counter() - started
    metrics = test_peer(peer, task)
    tested = time.perf_counter() - started - trained
    images = len(task.scorer.test_set.records)
    return {**metrics, "seconds_per_step": trained / STEPS, "seconds_per_image": tested / images}


@torch.inference_mode()
def test_peer(peer: Peer, task: Any) -> dict[str, Any]:
    """Return the peer's metrics on the test split."""
    test_set = task.scorer.test_set
    peer.eval()
    evaluator = VocEvaluator(test_set.records, test_set.classes)
    for view in inference_views(task.config, test_set.records, test_set.proposals):
        output = peer(peer_batch(view[0], task))[0][0]
        detections = Detections(boxes=output["boxes"], scores=output["scores"], labels=output["labels"])
        evaluator.update([view[0].metas[0].image_id], [detections])
    return evaluator.compute()


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(json.dumps(train_peer(), indent=2))


if __name__ == "__main__":
    main()
