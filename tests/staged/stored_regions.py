"""Stored region features in memory, for tests of what learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detector.config.schema import RandomSamplingConfig
from detector.core.structures import ImageRecord, Targets
from detector.staged.region_rows import RegionRows, label_regions


class FakeFeatures:
    """What `RegionFeatures` offers, of arrays: boxes (P_i, 4) per image and all features (T, D)."""

    folder = Path("stored")

    def __init__(
        self, records: Sequence[ImageRecord], boxes: Sequence[NDArray[Any]], features: NDArray[Any]
    ) -> None:
        self.images = tuple(record.key for record in records)
        self._boxes = dict(zip(self.images, boxes, strict=True))
        self.offsets = np.cumsum([0, *map(len, boxes)], dtype=np.int64)
        self.all_features = features.astype(np.float16)
        self.width = features.shape[1]
        self.manifest = {"images": [{"key": r.key, "height": r.height, "width": r.width} for r in records]}

    def boxes(self, key: str) -> NDArray[np.float32]:
        return self._boxes[key].astype(np.float32)


SAMPLING = RandomSamplingConfig(background_iou=(0.1, 0.5), rois_per_image=16)


def record(name: str, boxes: Sequence[Sequence[float]], labels: Sequence[int], **flags: Any) -> ImageRecord:
    targets = Targets.make(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        **flags,
    )
    return ImageRecord(image_id=name, path=Path(name), height=100, width=100, targets=targets)


def synthetic(
    images: int = 6, classes: int = 3, width: int = 12, seed: int = 0
) -> tuple[list[ImageRecord], Any, NDArray[np.float32]]:
    """Return records, their stored regions, and the centre (classes + 1, width) of each class's features.

    Each image has an object per class, with four regions close to it, and regions far from all of them.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes + 1, width)).astype(np.float32) * 2
    records, boxes, features = [], [], []
    for number in range(images):
        objects = np.array([[30.0 * k, 10, 30.0 * k + 20, 40] for k in range(classes)])
        regions, labels = [], []
        for label, box in enumerate(objects, start=1):
            regions += [box + rng.uniform(-1.5, 1.5, 4) for _ in range(4)]
            regions.append(box + np.array([6, 12, 6, 12]))  # IoU 0.27: background near the object
            labels += [label] * 4 + [0]
        regions += [np.array([x, 60, x + 15, 80]) for x in range(0, 80, 10)]  # IoU 0
        labels += [0] * 8
        records.append(record(f"image{number}", objects.tolist(), list(range(1, classes + 1))))
        boxes.append(np.stack(regions))
        features.append(centres[labels] + rng.normal(size=(len(labels), width)))
    return records, FakeFeatures(records, boxes, np.concatenate(features)), centres


def rows_of(records: Sequence[ImageRecord], features: Any, **changes: Any) -> RegionRows:
    sampling = SAMPLING.model_copy(update=changes)
    return label_regions(features, records, sampling, use_difficult=True, lowest_iou=0.5)
