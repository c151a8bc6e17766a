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
from detector.staged.feature_cache import open_cache
from detector.tasks.detection import RegionTask


@dataclass(frozen=True)
class CachedBatch:
    """Sampled regions of some images, and the features they are pooled from: a level per image and scale."""

    levels: list[Tensor]
    sampled: SampledRoIs
    metas: list[ImageMeta]


class FineTuningTask(RegionTask[CachedBatch]):
    """Detection with fixed convolutions: batches are cached features and sampled regions.

    In training each region is pooled at a scale drawn at random, as in SPP-net's release; in evaluation, at
    the scale that ``test.scale_rule`` chooses.
    """

    def __init__(
        self, config: Config, device: str, cache_folder: Path, state: dict[str, Any] | None = None
    ) -> None:
        """Read the data, build the network, and compute the features that the cache lacks."""
        super().__init__(config, device, state)
        self.cache = open_cache(config, self.model, self.records, cache_folder, device)

    def batches(self, start: int) -> Generator[CachedBatch, None, None]:
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
            proposals = self.proposals(record).boxes
            boxes, labels, box_targets = self.roi_sampler.sample_image(proposals, record.targets)
            views = self.cache.views(record.key)
            drawn = torch.randint(len(views), (len(boxes),), generator=self.roi_sampler.generator)
            by_view = torch.stack([view.to_input(boxes) for view in views])
            chosen = by_view[drawn, torch.arange(len(boxes))]
            parts.append((chosen, labels, box_targets, drawn + len(levels)))
            levels += self.cache.levels(record.key, self.device)
            metas.append(views[0])
        rois, labels, box_targets, roi_levels = (torch.cat(rows) for rows in zip(*parts, strict=True))
        rows = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1)  # every level is a batch of one
        sampled = SampledRoIs(rois=rows, labels=labels, box_targets=box_targets, roi_levels=roi_levels)
        return CachedBatch(levels, sampled, metas)
