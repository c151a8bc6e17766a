"""The network of a config, and what goes with it."""

from __future__ import annotations

from typing import Any

import torch

from detector.config import Config
from detector.engine.checkpoint import load_model_state
from detector.models import weights
from detector.models.backbones import Backbone
from detector.models.backbones import build_backbone as make_backbone
from detector.models.box_coder import BoxCoder, fixed_coder
from detector.models.detector import RegionDetector
from detector.models.heads import BoxHead, BoxPredictor, RoIPooling
from detector.models.losses import DetectionLoss
from detector.models.postprocess import Postprocess
from detector.models.roi_sampler import RoISampler
from detector.structures import Normalization


def build_backbone(config: Config) -> Backbone:
    """Return the backbone with random weights, cut and frozen as configured."""
    chosen = config.model.backbone
    return make_backbone(
        chosen.name,
        stage=chosen.stage,
        freeze=chosen.freeze,
        feature_scale=chosen.feature_scale,
        reduce_channels=chosen.reduce_channels,
    )


def build_normalization(config: Config) -> Normalization:
    """Return what the configured weights expect of their input."""
    chosen = config.model.backbone
    return weights.normalization(chosen.convention, chosen.pixel_mean)


def build_model(config: Config, num_classes: int, coder: BoxCoder | None = None) -> RegionDetector:
    """Return the network, seeded, with pretrained weights where the config names a file.

    ``coder`` None takes the fixed constants of the config; a checkpoint loaded afterwards brings its own.
    """
    torch.manual_seed(config.seed)
    model = _random_model(config, num_classes, coder)
    chosen = config.model.backbone
    if chosen.weights is not None:
        state = weights.read_state_dict(chosen.weights)
        weights.load_backbone(model.backbone, state, chosen.weights)
        if config.model.head.weights:
            weights.load_head(model.box_head.layers, state, chosen.name, chosen.weights)
    return model


def restore_model(config: Config, checkpoint: dict[str, Any], source: str) -> RegionDetector:
    """Return the network with a checkpoint's weights; no weights file of the config is read."""
    model = _random_model(config, len(checkpoint["classes"]), None)
    load_model_state(model, checkpoint, source)
    return model.eval()


def _random_model(config: Config, num_classes: int, coder: BoxCoder | None) -> RegionDetector:
    settings = config.model
    if coder is None:
        coder = fixed_coder(num_classes, settings.box.means, settings.box.deviations)
    backbone = build_backbone(config)
    # RoI pooling takes cell k for centred at k * stride; +0.5 goes from pixel index to pixel centre.
    center = backbone.center + 0.5 if settings.pool.center == "network" else 0.0
    pool = RoIPooling(backbone.channels, settings.pool.output_size, backbone.stride, center)
    head = BoxHead(pool.out_features, settings.head.hidden, settings.head.dropout)
    predictor = BoxPredictor(head.out_features, num_classes, settings.head.class_agnostic)
    return RegionDetector(backbone, pool, head, predictor, coder, settings.roi_chunk)


def build_roi_sampler(config: Config, coder: BoxCoder) -> RoISampler:
    chosen = config.train.sampling
    return RoISampler(
        coder,
        rois_per_image=chosen.rois_per_image,
        foreground_fraction=chosen.foreground_fraction,
        foreground_iou=chosen.foreground_iou,
        background_iou=chosen.background_iou,
        add_targets=chosen.add_targets,
        use_difficult=config.data.difficult == "train",
        seed=config.seed,
    )


def build_loss(config: Config) -> DetectionLoss:
    return DetectionLoss(config.train.box_loss_weight, config.train.smooth_l1_beta)


def build_postprocess(config: Config, coder: BoxCoder) -> Postprocess:
    return Postprocess(
        coder,
        score_threshold=config.test.score_threshold,
        nms_threshold=config.test.nms_threshold,
        max_detections=config.test.max_detections,
    )
