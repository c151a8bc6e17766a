"""Which images a classifier's page shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch

from detector.core.structures import ImageRecord, Targets
from detector.tasks.classification_report import _extremes


def record(folder: Path, name: str, label: int | None) -> ImageRecord:
    path = folder / f"{name}.png"
    cv2.imwrite(str(path), np.full((20, 30, 3), 90, np.uint8))
    boxes = torch.tensor([[1.0, 1, 15, 15]]) if label else torch.zeros(0, 4)
    targets = Targets.make(boxes, torch.tensor([label] if label else [], dtype=torch.int64))
    return ImageRecord(image_id=name, path=path, height=20, width=30, targets=targets)


def test_the_best_images_show_something(tmp_path: Path) -> None:
    """Low scores of an image without objects fit perfectly, and prove little."""
    records = [record(tmp_path, f"empty{i}", None) for i in range(6)]
    records += [record(tmp_path, f"full{i}", 1 + i % 2) for i in range(6)]
    scores = {one.image_id: torch.tensor([0.01, 0.02]) for one in records[:6]}
    for i, one in enumerate(records[6:]):
        right = 0.9 - 0.1 * i
        scores[one.image_id] = torch.tensor([right, 0.1] if i % 2 == 0 else [0.1, right])
    images = SimpleNamespace(records=records, classes=("a", "b"), split="test")
    best, worst = _extremes(images, SimpleNamespace(scores=scores))  # type: ignore[arg-type]
    assert [shown.presence for shown in best] == [[1, -1], [-1, 1]]
    assert [max(shown.scores) for shown in best] == [np.float32(0.9), np.float32(0.8)]
    assert [round(max(shown.scores), 2) for shown in worst] == [0.4, 0.5, 0.6, 0.7]
