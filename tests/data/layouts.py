"""Writes data sets in the layouts of YOLO, LabelMe and Label Studio from one in VOC layout, the oracle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from detector.data.voc.source import VocSource

SPLITS = {"train": "trainval", "test": "test"}
"""The splits of these layouts, and those of the VOC layout that they are made of."""


def voc_objects(voc: Path, split: str) -> list[tuple[Path, tuple[int, int], list[tuple[str, list[float]]]]]:
    """Return the image, the (height, width), and each object's name and box for every image of a split."""
    dataset = VocSource(voc).load(split, VocSource(voc).class_names(split), training=False)
    return [
        (
            record.path,
            (record.height, record.width),
            [
                (dataset.classes[label - 1], box)
                for label, box in zip(
                    record.targets.labels.tolist(), record.targets.boxes.tolist(), strict=True
                )
            ],
        )
        for record in dataset.records
    ]


def class_names(voc: Path) -> tuple[str, ...]:
    return VocSource(voc).class_names(*SPLITS.values())


def write_yolo(voc: Path, root: Path) -> Path:
    """Write images/SPLIT and labels/SPLIT with a data.yaml; images without objects have no file of labels."""
    names = class_names(voc)
    for split, source in SPLITS.items():
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for image, (height, width), objects in voc_objects(voc, source):
            shutil.copy(image, root / "images" / split / image.name)
            lines = [
                f"{names.index(name)} {(x1 + x2) / 2 / width:.9f} {(y1 + y2) / 2 / height:.9f} "
                f"{(x2 - x1) / width:.9f} {(y2 - y1) / height:.9f}\n"
                for name, (x1, y1, x2, y2) in objects
            ]
            if lines:
                (root / "labels" / split / f"{image.stem}.txt").write_text("".join(lines))
    description = {
        "path": "../datasets/mine",
        **{split: f"images/{split}" for split in SPLITS},
        "nc": len(names),
        "names": dict(enumerate(names)),
    }
    (root / "data.yaml").write_text(yaml.safe_dump(description))
    return root


def labelme_shape(label: str, points: Sequence[Sequence[float]], kind: str, **more: Any) -> dict[str, Any]:
    return {
        "label": label,
        "points": [list(point) for point in points],
        "group_id": None,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
        **more,
    }


def write_labelme(voc: Path, root: Path) -> Path:
    """Write a folder per split, each JSON file beside its image; boxes as rectangles and as polygons."""
    for split, source in SPLITS.items():
        (root / split).mkdir(parents=True)
        for image, (height, width), objects in voc_objects(voc, source):
            shutil.copy(image, root / split / image.name)
            shapes = []
            for number, (name, (x1, y1, x2, y2)) in enumerate(objects):
                if number % 2:
                    middle = (x1 + x2) / 2
                    corners = [(middle, y1), (x2, y2), (x1, (y1 + y2) / 2)]
                    shapes.append(labelme_shape(name, corners, "polygon"))
                else:
                    shapes.append(labelme_shape(name, [(x2, y1), (x1, y2)], "rectangle"))
            content = {
                "version": "5.5.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": image.name,
                "imageData": "aGVsbG8=",
                "imageHeight": height,
                "imageWidth": width,
            }
            (root / split / f"{image.stem}.json").write_text(json.dumps(content, indent=2))
    return root


def label_studio_region(
    number: int, labels: Sequence[str], box: Sequence[float], size: tuple[int, int], **value: Any
) -> dict[str, Any]:
    height, width = size
    x1, y1, x2, y2 = box
    return {
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {
            "x": 100 * x1 / width,
            "y": 100 * y1 / height,
            "width": 100 * (x2 - x1) / width,
            "height": 100 * (y2 - y1) / height,
            "rotation": 0,
            "rectanglelabels": list(labels),
            **value,
        },
        "id": f"r{number}",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "origin": "manual",
    }


def label_studio_task(
    number: int, image: str, regions: Sequence[dict[str, Any]], **annotation: Any
) -> dict[str, Any]:
    result = {"id": number, "result": list(regions), "was_cancelled": False, "ground_truth": False}
    return {
        "id": number,
        "annotations": [{**result, "created_at": "2024-05-01T10:00:00Z", **annotation}],
        "drafts": [],
        "predictions": [],
        "data": {"image": image},
        "meta": {},
    }


def write_label_studio(voc: Path, root: Path) -> Path:
    """Write an export per split, and all images into one folder."""
    (root / "images").mkdir(parents=True)
    for split, source in SPLITS.items():
        tasks = []
        for number, (image, size, objects) in enumerate(voc_objects(voc, source)):
            shutil.copy(image, root / "images" / image.name)
            regions = [label_studio_region(row, [name], box, size) for row, (name, box) in enumerate(objects)]
            tasks.append(label_studio_task(number, f"/data/upload/1/0123abcd-{image.name}", regions))
        (root / f"{split}.json").write_text(json.dumps(tasks))
    return root


WRITERS = {"yolo": write_yolo, "labelme": write_labelme, "labelstudio": write_label_studio}
SETTINGS: dict[str, dict[str, Any]] = {
    "yolo": {},
    "labelme": {"annotations": "{split}", "images": "{split}", "splits": None},
    "labelstudio": {"images": "images"},
}
"""The settings of ``data`` with which each layout is read."""
