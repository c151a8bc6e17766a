"""The stage ``box_ridge``: class-wise ridge regression of boxes on pooled features (SPP-net, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from detector.config.schema import RidgeConfig, SVMConfig
from detector.core import boxes as box_ops
from detector.core.errors import InputError
from detector.core.progress import track
from detector.core.structures import ImageRecord
from detector.models.box_coder import box_deltas
from detector.staged.box_ridge import RidgeSettings, fit_ridge, fold_ridge
from detector.staged.cached import image_regions
from detector.staged.fitting import LayerFit

BLOCK_ROWS = 2000
"""Rows of pooled features held at a time."""

Rows = list[tuple[ImageRecord, Tensor, Tensor]]
"""Of some images: the record, regions (r, 4) on its objects, and their box deltas (r, 4)."""


class RidgeFit(LayerFit):
    """Fits each class's regression on the regions that lie on its objects."""

    def fit(self, settings: RidgeConfig) -> None:
        """Fit the regressions and put them into ``bbox_pred``; a class without rows leaves boxes alone."""
        layer = self.model.predictor.bbox_pred
        if layer is None or not self.model.predictor.reads_pooled:
            raise InputError("the stage box_ridge needs model.box.regression: ridge")
        factor = SVMConfig().feature_norm / self.mean_norm(pooled=True)
        rows = self._ridge_rows(settings)
        fits: dict[int, tuple[Tensor, Tensor]] = dict(self.state["fits"]) if self.state else {}
        ridge = RidgeSettings(penalty=settings.penalty, whitening=settings.whitening)
        for label in track(range(1, len(self.classes) + 1), len(self.classes), "ridge regression"):
            if label in fits or not rows[label]:
                continue
            targets = torch.cat([deltas for _, _, deltas in rows[label]])
            blocks = self._pooled_blocks([(record, boxes) for record, boxes, _ in rows[label]])
            fits[label] = fit_ridge(blocks, targets, self.model.region_pool.out_features, factor, ridge)
            self.save({"fits": fits})
        coder = self.model.box_coder
        fold_ridge(layer, fits, coder.means, coder.deviations)

    def _ridge_rows(self, settings: RidgeConfig) -> dict[int, Rows]:
        """Return, by label, (record, regions, box deltas) of regions on objects, at most ``max_rows``."""
        found: dict[int, Rows] = {}
        for label in range(1, len(self.classes) + 1):
            mine = []
            for record in self.records:
                objects = self.objects(record)
                objects = objects.select(objects.labels == label)
                if not len(objects):
                    continue
                regions = image_regions(record, self.source, objects.boxes)
                overlap, match = box_ops.iou(regions, objects.boxes).max(dim=1)
                on_object = overlap > settings.min_iou
                deltas = box_deltas(regions[on_object], objects.boxes[match[on_object]])
                mine.append((record, regions[on_object], deltas))
            found[label] = self._thinned(mine, settings.max_rows, label)
        return found

    def _thinned(self, rows: Rows, limit: int, label: int) -> Rows:
        """Keep ``limit`` rows in all, drawn by seed and label."""
        counts = [len(boxes) for _, boxes, _ in rows]
        if sum(counts) <= limit:
            return rows
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + label)
        keep = torch.zeros(sum(counts), dtype=torch.bool)
        keep[torch.randperm(sum(counts), generator=generator)[:limit]] = True
        masks = keep.split(counts)
        return [
            (record, boxes[mask], deltas[mask])
            for (record, boxes, deltas), mask in zip(rows, masks, strict=True)
            if mask.any()
        ]

    def _pooled_blocks(self, rows: list[tuple[ImageRecord, Tensor]]) -> Iterator[Tensor]:
        block: list[Tensor] = []
        for record, boxes in rows:
            block.append(self.embed(record, boxes, pooled=True))
            if sum(map(len, block)) >= BLOCK_ROWS:
                yield torch.cat(block)
                block = []
        if block:
            yield torch.cat(block)
