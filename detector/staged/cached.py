"""Cached features of a config's images: made once, then read by every stage that does not need pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from detector.config import Config
from detector.core.files import file_hash
from detector.core.progress import note, progress_bar
from detector.core.structures import Embedded, ImageMeta, ImageRecord, ProposalSource
from detector.engine.inference import choose_scales
from detector.factory.data import inference_transforms, inference_views, no_proposals
from detector.factory.model import build_normalization
from detector.models.detector import RegionDetector
from detector.staged.cache_plan import CachedImage, CachePlan, weights_digest
from detector.staged.feature_cache import FeatureCache, fill_cache


@dataclass(frozen=True)
class CachedFeatures:
    """The feature levels of each image, one a scale, without its pixels."""

    cache: FeatureCache
    metas: dict[str, list[ImageMeta]]
    device: str

    def __call__(self, record: ImageRecord) -> tuple[list[Tensor], list[ImageMeta]]:
        """Return the levels, (1, C, h, w) float32 each, and the meta data of their scales."""
        levels = [level.to(self.device, non_blocking=True) for level in self.cache.levels(record.key)]
        return levels, self.metas[record.key]


def open_cache(
    config: Config, model: RegionDetector, records: Sequence[ImageRecord], folder: Path, device: str
) -> CachedFeatures:
    """Return the features of ``records`` at every test scale, computing what ``folder`` does not hold yet.

    Each cache lies in a folder named by its key, so other weights or scales make another one.

    Raises:
        InputError: an image that cannot be read, or too little free disk.
    """
    config = config.model_copy(update={"test": config.test.model_copy(update={"flip": False})})
    plan = _plan(config, model, records)
    model.eval()

    def load(numbers: Sequence[int]) -> Iterable[Sequence[Tensor]]:
        missing = [records[number] for number in numbers]
        views = inference_views(config, missing, no_proposals, device) if missing else iter(())
        return ([view.images.to(device, non_blocking=True) for view in image] for image in views)

    @torch.inference_mode()
    def features(image: Tensor) -> Tensor:
        return model.features(image)[0]

    place = folder / plan.key[:16]
    scales = len(config.test.scales)
    note(f"features of {len(records)} images at {scales} scales: {plan.bytes / 2**20:.1f} MiB in {place}")
    with progress_bar("convolutions") as advance:
        cache = fill_cache(place, plan, features, load, advance)
    metas = {image.key: list(image.views) for image in plan.images}
    return CachedFeatures(cache, metas, device)


def _plan(config: Config, model: RegionDetector, records: Sequence[ImageRecord]) -> CachePlan:
    transforms = inference_transforms(config)
    images = [
        CachedImage(
            key=record.key,
            views=tuple(
                ImageMeta(
                    image_id=record.image_id,
                    original_size=(record.height, record.width),
                    input_size=transform.size_of((record.height, record.width)),
                )
                for transform in transforms
            ),
            content=file_hash(record.path),
        )
        for record in records
    ]
    source = {
        "weights": weights_digest(model.backbone),
        "backbone": json.dumps(config.model.backbone.model_dump(mode="json", exclude={"weights", "freeze"})),
        "normalization": repr(build_normalization(config)),
        "scales": json.dumps([list(config.test.scales), config.test.max_size]),
    }
    return CachePlan(
        images,
        source,
        map_size=model.backbone.map_size,
        channels=model.backbone.channels,
        dtype=config.train.cache_dtype,
    )


@torch.inference_mode()
def embed_regions(
    model: RegionDetector, levels: Sequence[Tensor], metas: Sequence[ImageMeta], boxes: Tensor, rule: str
) -> Embedded:
    """Return pooled (P, D) and hidden (P, F) features, on the CPU, of ``boxes`` (P, 4), original pixels.

    Each box is pooled at the scale that ``rule`` chooses, as detection does.
    """
    rois, roi_levels = choose_scales([meta.to_input(boxes) for meta in metas], rule)
    rows = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1).to(levels[0].device, non_blocking=True)
    parts = [
        model.embed(levels, rows[at], None if roi_levels is None else roi_levels[at])
        for at in _chunks(len(rows), model.roi_chunk)
    ]
    return Embedded(
        torch.cat([part.pooled.float().cpu() for part in parts]),
        torch.cat([part.hidden.float().cpu() for part in parts]),
    )


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, max(count, 1), size))


def image_regions(record: ImageRecord, source: ProposalSource, objects: Tensor) -> Tensor:
    """Return the regions of a training image, original pixels: its objects' boxes, then its proposals.

    Boxes without an area are left out, since nothing can be regressed from them.
    """
    proposals = source(record).boxes
    sides = proposals[:, 2:] - proposals[:, :2]
    return torch.cat((objects, proposals[(sides > 0).all(dim=1)]))
