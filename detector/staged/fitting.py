"""What the stages share that fit a layer on cached features instead of training it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.config import Config
from detector.core.errors import InputError
from detector.core.structures import ImageRecord, Targets
from detector.factory import data as data_parts
from detector.factory import proposals as proposal_parts
from detector.factory.validation import load_training
from detector.models.detector import RegionDetector
from detector.models.roi_sampler import trained_objects
from detector.staged.cached import CachedFeatures, embed_regions, image_regions, open_cache
from detector.tasks.resume import checked_fingerprint

NORM_IMAGES, NORM_REGIONS = 200, 200
"""Images, and regions of each, on which the mean norm of features is measured (SPP-net's release)."""

Save = Callable[[dict[str, Any]], None]


class LayerFit:
    """What fitting a layer starts from: regions of the training images, and their features.

    ``save`` keeps the state of a fit; ``state`` is what it kept last, or None at the start.
    """

    def __init__(
        self,
        config: Config,
        model: RegionDetector,
        classes: tuple[str, ...],
        cache_folder: Path,
        device: str,
        save: Save,
        state: dict[str, Any] | None,
    ) -> None:
        self.config = config
        self.model = model.to(device).eval()
        self.classes = classes
        self.save = save
        self.state = state
        dataset = load_training(config, classes, training=True)
        split = config.data.train_split
        self.data_fingerprint = checked_fingerprint("training", split, dataset.records, state)
        store = proposal_parts.open_proposals(config, dataset.records, config.data.train_split)
        self.records = proposal_parts.with_proposals(config, dataset.records, store)
        data_parts.require_objects((record.targets for record in self.records), config)
        self.source = proposal_parts.stored_proposals(config, store, training=True)
        self.cached: CachedFeatures = open_cache(config, model, self.records, cache_folder, device)

    def embed(self, record: ImageRecord, boxes: Tensor, pooled: bool) -> Tensor:
        """Return the pooled or hidden features (P, F) of ``boxes`` (P, 4) of an image."""
        levels, metas = self.cached(record)
        embedded = embed_regions(self.model, levels, metas, boxes, self.config.test.scale_rule)
        return embedded.pooled if pooled else embedded.hidden

    def objects(self, record: ImageRecord) -> Targets:
        """Return the objects of an image that training aims at."""
        return trained_objects(record.targets, use_difficult=self.config.data.difficult == "train")

    def mean_norm(self, pooled: bool) -> float:
        """Return the mean L2 norm of the features of regions of some images, drawn by the config's seed."""
        generator = torch.Generator().manual_seed(self.config.seed)
        norms = []
        for index in torch.randperm(len(self.records), generator=generator)[:NORM_IMAGES].tolist():
            record = self.records[index]
            regions = image_regions(record, self.source, self.objects(record).boxes)
            chosen = torch.randperm(len(regions), generator=generator)[:NORM_REGIONS]
            if len(chosen):
                norms.append(self.embed(record, regions[chosen], pooled).norm(dim=1))
        mean = float(torch.cat(norms).mean()) if norms else 0.0
        if not mean > 0:
            raise InputError("the features of all regions are zero or not finite; the network is not trained")
        return mean
