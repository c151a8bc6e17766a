"""Fine-tuning of the fully connected layers on cached features, as SPP-net was published."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.config import Config
from detector.core.structures import HeadOutput, ImageMeta, ImageRecord, SampledRoIs
from detector.data.samplers import TrainingBatches
from detector.staged.cached import image_regions, open_cache
from detector.tasks.detection import RegionTask


@dataclass(frozen=True)
class CachedBatch:
    """Sampled regions of some images with the features they are pooled from: a level an image and scale."""

    levels: list[Tensor]
    sampled: SampledRoIs
    metas: list[ImageMeta]


class FineTuningTask(RegionTask[CachedBatch]):
    """Detection whose convolutions stand still: batches are cached features and sampled regions.

    Each region is pooled at a scale drawn at random, as SPP-net's release trains; at test at its best one.
    """

    def __init__(
        self, config: Config, device: str, cache_folder: Path, state: dict[str, Any] | None = None
    ) -> None:
        """Read the data, build the network, and make the cache where it is missing."""
        super().__init__(config, device, state)
        self.cached = open_cache(config, self.model, self.records, cache_folder, device)

    def batches(self, start: int) -> Generator[CachedBatch, None, None]:
        """Return the endless training batches from step ``start`` on."""
        order = TrainingBatches(
            len(self.records), self.config.train.images_per_batch, self.config.seed, start_step=start
        )
        return (self._batch([self.records[index] for index, _ in drawn]) for drawn in order)

    def _output(self, batch: CachedBatch) -> tuple[HeadOutput, SampledRoIs]:
        sampled = batch.sampled.to(self.device)
        with self.autocast():
            return self.model.predict(batch.levels, sampled.rois, sampled.roi_levels), sampled

    def _batch(self, records: list[ImageRecord]) -> CachedBatch:
        levels: list[Tensor] = []
        metas: list[ImageMeta] = []
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for record in records:
            regions = image_regions(record, self.proposals, torch.zeros(0, 4))
            boxes, labels, box_targets = self.roi_sampler.sample_image(regions, record.targets)
            maps, scales = self.cached(record)
            drawn = torch.randint(len(scales), (len(boxes),), generator=self.roi_sampler.generator)
            by_scale = torch.stack([meta.to_input(boxes) for meta in scales])
            chosen = by_scale[drawn, torch.arange(len(boxes))]
            parts.append((chosen, labels, box_targets, drawn + len(levels)))
            levels += maps
            metas.append(scales[0])
        rois, labels, box_targets, roi_levels = (torch.cat(rows) for rows in zip(*parts, strict=True))
        rows = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1)  # every level is a batch of one
        sampled = SampledRoIs(rois=rows, labels=labels, box_targets=box_targets, roi_levels=roi_levels)
        return CachedBatch(levels, sampled, metas)
