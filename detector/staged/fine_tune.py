"""Fine-tuning of the fully connected layers on cached features, as SPP-net was published."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detector.config import Config
from detector.core.devices import pins
from detector.core.structures import DrawnRegions, ImageMeta, SampledRoIs
from detector.data.loader import load, on_device
from detector.data.samplers import Part, TrainingBatches
from detector.data.samples import region_stream
from detector.factory.loaders import own_parts
from detector.factory.resources import worker_count
from detector.staged.feature_cache import open_cache
from detector.tasks.detection import RegionTask


@dataclass(frozen=True)
class CachedBatch:
    """Sampled regions of some images, and the features they are pooled from: a level per image and scale."""

    levels: list[Tensor]
    sampled: SampledRoIs
    metas: list[ImageMeta]

    def to(self, device: torch.device | str) -> CachedBatch:
        """Return the batch with its levels and ``sampled`` on ``device``."""
        levels = [level.to(device, non_blocking=True) for level in self.levels]
        return replace(self, levels=levels, sampled=self.sampled.to(device))

    def device_tensors(self) -> list[Tensor]:
        """Return the tensors that `to` moves."""
        return [*self.levels, *self.sampled.device_tensors()]

    def pin_memory(self) -> CachedBatch:
        """Return the batch in page-locked memory, from which a GPU copies without waiting."""
        levels = [level.pin_memory() for level in self.levels]
        return replace(self, levels=levels, sampled=self.sampled.pin_memory())


class FineTuningTask(RegionTask[CachedBatch]):
    """Detection with fixed convolutions: batches are cached features and sampled regions.

    In training each region is pooled at a scale drawn at random, as in SPP-net's release, or with OHEM all
    regions of an image at one scale; in evaluation, at the scale that ``test.scale_rule`` chooses.
    """

    def __init__(
        self, config: Config, device: str, cache_folder: Path, state: dict[str, Any] | None = None
    ) -> None:
        """Read the data, build the network, and compute the features that the cache lacks."""
        super().__init__(config, device, state)
        self.cache = open_cache(config, self.model, self.records, cache_folder, device)

    @property
    def trained(self) -> nn.Module:
        """All but the convolutions, whose output is in the cache."""
        return nn.ModuleList([part for name, part in self.model.named_children() if name != "backbone"])

    def batches(self, start: int) -> Generator[CachedBatch, None, None]:
        order = TrainingBatches(
            len(self.records), self.config.train.images_per_batch, self.config.seed, start_step=start
        )
        own, workers = own_parts(self.config, order), worker_count(self.config, self.device)
        with closing(load(own, self._batch, workers)) as batches:
            yield from on_device(batches, self.device)

    def _sampled(self, batch: CachedBatch) -> SampledRoIs:
        return batch.sampled

    def _levels(self, batch: CachedBatch) -> Sequence[Tensor]:
        return batch.levels

    def _batch(self, part: Part) -> CachedBatch:
        levels: list[Tensor] = []
        metas: list[ImageMeta] = []
        parts: list[tuple[Tensor, Tensor]] = []
        regions: list[DrawnRegions] = []
        for index, draw in part.keys:
            record, rng = self.records[index], region_stream(self.config.seed, draw)
            proposals = self.proposals(record).boxes
            regions.append(self.draw_regions(proposals, record.targets, rng))
            boxes, views = regions[-1].boxes, self.cache.views(record.key)
            drawn = torch.from_numpy(rng.integers(len(views), size=len(boxes)))
            if self.hard_examples is not None:  # it compares the boxes of an image, so they share a scale
                drawn = drawn[:1].expand(len(boxes))
            by_view = torch.stack([view.to_input(boxes) for view in views])
            chosen = by_view[drawn, torch.arange(len(boxes))]
            parts.append((chosen, drawn + len(levels)))
            levels += self.cache.levels(record.key)
            metas.append(views[0])
        rois, roi_levels = (torch.cat(rows) for rows in zip(*parts, strict=True))
        rows = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1)  # every level is a batch of one
        sampled = SampledRoIs.stack(regions)
        sampled = replace(sampled, rois=rows, roi_levels=roi_levels)
        batch = CachedBatch(levels, sampled, metas)
        return batch.pin_memory() if pins(self.device) else batch
