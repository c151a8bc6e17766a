"""A small data set in which every object has two labels: a colour and a pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 220), "red": (220, 60, 40)}
PATTERNS = ("plain", "striped")
CLASSES = ("blue", "plain", "red", "striped")
"""The class names in the order of their labels 1..4: sorted, as they are read from VOC's files."""
SIZE = 72
CONFIG: dict[str, Any] = {
    "seed": 1,
    "data": {"train_split": "trainval", "test_split": "test", "workers": 1, "split_ratio": None},
    "proposals": {"method": "dense", "top_k_train": 300, "top_k_test": 300},
    "model": {
        "backbone": {"name": "small"},
        "pool": {"output_size": 4},
        "head": {"hidden": [32], "dropout": 0.0, "scores": "sigmoid"},
    },
    "train": {
        "steps": 6,
        "images_per_batch": 2,
        "scales": [SIZE],
        "max_size": SIZE,
        "sampling": {"rois_per_image": 32, "background_iou": [0.0, 0.5]},
        "learning_rate": 0.02,
        "log_every": 1,
        "checkpoint_every": 1000,
        "draw_images": 1,
        "validation_fraction": 0.0,
    },
    "test": {"scales": [SIZE], "max_size": SIZE, "score_threshold": 0.01},
}


def write_voc(root: Path, train_images: int, test_images: int, seed: int = 0) -> None:
    """Write the data set in VOC's layout: each object twice, with the same box and one of its labels each."""
    rng = np.random.default_rng(seed)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    names = [f"{number:03}" for number in range(train_images + test_images)]
    (root / "ImageSets/Main/trainval.txt").write_text("\n".join(names[:train_images]) + "\n")
    (root / "ImageSets/Main/test.txt").write_text("\n".join(names[train_images:]) + "\n")
    for name in names:
        image = rng.integers(90, 150, (SIZE, SIZE, 3)).astype(np.uint8)
        objects = []
        for left in (2, 38):  # one in each half
            side, (x, y) = int(rng.integers(24, 32)), rng.integers(0, 3, 2) * 2
            colour, pattern = rng.choice(list(COLOURS)), rng.choice(PATTERNS)
            box = (left + x, 4 + y * 3, left + x + side, 4 + y * 3 + side)
            part = image[box[1] : box[3], box[0] : box[2]]
            part[:] = COLOURS[colour]
            if pattern == "striped":
                part[(np.arange(side) // 4) % 2 == 1] = 255
            objects += [_object(label, box) for label in (colour, pattern)]
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        size = f"<size><width>{SIZE}</width><height>{SIZE}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.jpg</filename>{size}{''.join(objects)}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)


def _object(label: str, box: tuple[int, int, int, int]) -> str:
    x1, y1, x2, y2 = box[0] + 1, box[1] + 1, box[2], box[3]  # VOC counts from 1 and includes the last pixel
    corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>"
