"""Writes the same proposals in every format, each as the program it is named after does."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from numpy.typing import NDArray

from detector.core.structures import ImageRecord, Targets
from tests.typed import float32

FloatArray = NDArray[np.float32]
SIZES = [(300, 500), (375, 420), (333, 500)]


def make_records(ids: list[str]) -> list[ImageRecord]:
    records = []
    for i, image_id in enumerate(ids):
        height, width = SIZES[i % len(SIZES)]
        box = torch.tensor([[0.0, 0.0, width, height], [10, 20, 10 + 60 + i, 20 + 30]])
        targets = Targets.make(box, torch.ones(2, dtype=torch.int64))
        records.append(
            ImageRecord(image_id=image_id, path=Path(image_id), height=height, width=width, targets=targets)
        )
    return records


def make_boxes(records: list[ImageRecord], count: int = 40) -> dict[str, FloatArray]:
    """Whole-numbered boxes (P, 5), score last, that include each image's border and objects."""
    rng = np.random.default_rng(0)
    found = {}
    for record in records:
        x = np.sort(rng.integers(0, record.width + 1, (count, 2)), axis=1)
        y = np.sort(rng.integers(0, record.height + 1, (count, 2)), axis=1)
        x[:, 1] += x[:, 0] == x[:, 1]
        y[:, 1] += y[:, 0] == y[:, 1]
        boxes = np.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), axis=1).clip(
            0, [record.width, record.height] * 2
        )
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        boxes = np.concatenate((record.targets.boxes.numpy(), boxes))
        scores = rng.permutation(len(boxes)).astype(np.float32)
        found[record.image_id] = np.column_stack((boxes, scores)).astype(np.float32)
    return found


def write_npz(path: Path, boxes: dict[str, FloatArray]) -> Path:
    named: dict[str, Any] = dict(boxes)
    np.savez_compressed(path / "boxes.npz", **named)
    return path / "boxes.npz"


def write_npy(path: Path, boxes: dict[str, FloatArray]) -> Path:
    (path / "npy").mkdir()
    for key, rows in boxes.items():
        np.save(path / "npy" / key, rows)
    return path / "npy"


def write_text(path: Path, boxes: dict[str, FloatArray]) -> Path:
    (path / "text").mkdir()
    for key, rows in boxes.items():
        lines = ["# x1, y1, x2, y2, score", "", *(", ".join(f"{value:g}" for value in row) for row in rows)]
        (path / f"text/{key}.txt").write_text("\r\n".join(lines))
    return path / "text"


def write_coco(path: Path, boxes: dict[str, FloatArray]) -> Path:
    results = [
        {"image_id": int(key), "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for key, rows in boxes.items()
        for x1, y1, x2, y2, score in rows.tolist()
    ]
    (path / "results.json").write_text(json.dumps(results, indent=1))
    return path / "results.json"


def write_detectron(path: Path, boxes: dict[str, FloatArray], protocol: int = 2) -> Path:
    content = {
        "boxes": [rows[:, :4] - float32([0, 0, 1, 1]) for rows in boxes.values()],
        "scores": [rows[:, 4] for rows in boxes.values()],
        "indexes": [int(key) for key in boxes],
    }
    (path / "detectron.pkl").write_bytes(pickle.dumps(content, protocol))
    return path / "detectron.pkl"


def write_detectron2(path: Path, boxes: dict[str, FloatArray], protocol: int = 4) -> Path:
    content = {
        "ids": list(boxes),
        "boxes": [rows[:, :4] for rows in boxes.values()],
        "objectness_logits": [rows[:, 4] for rows in boxes.values()],
        "bbox_mode": 0,
    }
    (path / "detectron2.pkl").write_bytes(pickle.dumps(content, protocol))
    return path / "detectron2.pkl"


def write_mmdetection(path: Path, boxes: dict[str, FloatArray], protocol: int = 2) -> Path:
    (path / "mmdetection.pkl").write_bytes(pickle.dumps(list(boxes.values()), protocol))
    return path / "mmdetection.pkl"


def write_mmdetection3(path: Path, boxes: dict[str, FloatArray], protocol: int = 5) -> Path:
    content = {
        f"data/VOC2007/JPEGImages/{key}.jpg": {"bboxes": rows[:, :4], "scores": rows[:, 4]}
        for key, rows in boxes.items()
    }
    (path / "mmdetection3.pkl").write_bytes(pickle.dumps(content, protocol))
    return path / "mmdetection3.pkl"


def write_mat(path: Path, boxes: dict[str, FloatArray], names: bool = True) -> Path:
    """The layout of voc_2007_trainval.mat: (y1, x1, y2, x2), from 1, the last pixel inside."""
    cells = np.empty((1, len(boxes)), object)
    images = np.empty((len(boxes), 1), object)
    for i, (key, rows) in enumerate(boxes.items()):
        cells[0, i] = rows[:, [1, 0, 3, 2]].astype(np.float64) + np.array([1, 1, 0, 0])
        images[i, 0] = key
    content = {"boxes": cells, "images": images} if names else {"boxes": cells}
    scipy.io.savemat(path / "boxes.mat", content, do_compression=True)
    return path / "boxes.mat"


Writer = Callable[[Path, dict[str, FloatArray]], Path]
SCORED: list[tuple[str, Writer]] = [
    ("npz", write_npz),
    ("npy", write_npy),
    ("text", write_text),
    ("coco", write_coco),
    ("detectron", write_detectron),
    ("detectron2", write_detectron2),
    ("mmdetection", write_mmdetection),
    ("mmdetection", write_mmdetection3),
]
