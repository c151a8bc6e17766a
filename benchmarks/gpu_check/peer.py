"""The same network from torchvision's parts: VGG16, RoIHeads, roi_pool, two hidden layers, two predictors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import vgg16
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_pool

from detector.config import Config
from detector.config.schema import SoftmaxHeadConfig
from detector.core.structures import Batch

FROZEN_LAYERS = 10
"""The layers through conv2 and the pooling after it, as with ``freeze: 2`` in the config."""


class Pool(nn.Module):
    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], _sizes: Any) -> Tensor:
        maps = features["0"]  # autocast casts to float32 and back on CUDA by itself, on the CPU it does not
        return roi_pool(maps.float(), boxes, 7, 1 / 16).to(maps.dtype)


class Peer(nn.Module):
    """Returns losses in training mode and detections in evaluation mode, as torchvision does.

    ``inputs`` makes the network's input of a batch's images, their sizes given: ours, for both networks.
    """

    def __init__(
        self, config: Config, num_classes: int, device: str, inputs: Callable[..., Tensor], *, half: bool
    ) -> None:
        super().__init__()
        self.device, self.inputs, self.autocast = device, inputs, half
        self.scale = config.model.backbone.feature_scale
        self.backbone = vgg16(weights=None).features[:-1]
        for layer in list(self.backbone)[:FROZEN_LAYERS]:
            layer.requires_grad_(False)
        head = config.model.head
        assert isinstance(head, SoftmaxHeadConfig)
        hidden = head.hidden[0]
        self.heads = RoIHeads(
            Pool(),
            TwoMLPHead(512 * 49, hidden),
            FastRCNNPredictor(hidden, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.train.sampling.rois_per_image,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=config.test.score_threshold,
            nms_thresh=config.test.nms_threshold,
            detections_per_img=config.test.max_detections,
        )
        self.to(device)

    def forward(self, batch: Batch) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        batch = on_device(batch, self.device)
        targets = [{"boxes": each.boxes, "labels": each.labels} for each in batch.targets]
        images = self.inputs(batch.images, batch.sizes)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.autocast):
            features = {"0": self.backbone(images) * self.scale}
            result: tuple[list[dict[str, Tensor]], dict[str, Tensor]] = self.heads(
                features, batch.rois_per_image, batch.sizes, targets if self.training else None
            )
        return result


def on_device(batch: Batch, device: str) -> Batch:
    """Return a batch with all that the peer needs on the device; what is there already stays as it is."""
    targets = [
        replace(each, boxes=each.boxes.to(device), labels=each.labels.to(device)) for each in batch.targets
    ]
    rois = [each.to(device) for each in batch.rois_per_image]
    return replace(batch.to(device), targets=targets, rois_per_image=rois)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights of ``source`` to ``target``, layer by layer in their order."""
    ours, theirs = layers(source), layers(target)
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} layers with weights cannot be copied into {len(theirs)}")
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            other.weight.copy_(mine.weight)
            if other.bias is not None and mine.bias is not None:
                other.bias.copy_(mine.bias)


def layers(model: nn.Module) -> Sequence[nn.Conv2d | nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
