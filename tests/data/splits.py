"""Data sets whose splits use the same names: COCO's ids, or the file names of VOC folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from detector.data.generated.dataset import generate_voc

SIDE = 96
COCO = {
    "format": "coco",
    "annotations": "{split}/_annotations.coco.json",
    "images": "{split}",
    "train_split": "train",
    "test_split": "valid",
}
VOC = {
    "annotations": "{split}/Annotations",
    "images": "{split}/JPEGImages",
    "train_split": "train",
    "test_split": "valid",
}


def numbered_coco(root: Path, splits: Mapping[str, int]) -> Path:
    """Write one folder per split with that many images, ids from 0 and its own file names, like Roboflow."""
    for place, (split, count) in enumerate(splits.items()):
        rng = np.random.default_rng(place)
        (root / split).mkdir(parents=True)
        data: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
        data["categories"] = [{"id": 0, "name": "card"}]
        for number in range(count):
            name = f"img_{place}{number}_jpg.rf.0a1b.jpg"
            image = rng.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
            x, y = (int(corner) for corner in rng.integers(4, 50, 2))
            image[y : y + 40, x : x + 30] += 150
            cv2.imwrite(str(root / split / name), image)
            data["images"].append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
            data["annotations"].append(
                {"id": number, "image_id": number, "category_id": 0, "bbox": [x, y, 30, 40]}
            )
        (root / split / "_annotations.coco.json").write_text(json.dumps(data))
    return root


def voc_folders(root: Path) -> Path:
    """Write two folders per split, with the same file names but other images in each split."""
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for seed, split in enumerate(("train", "valid")):
        made = root / "made"
        generate_voc(made, train_images=4, test_images=1, image_size=(SIDE, SIDE), seed=seed)
        for kind in ("Annotations", "JPEGImages"):
            shutil.copytree(made / kind, root / split / kind)
        shutil.copy(made / "ImageSets/Main/trainval.txt", root / f"ImageSets/Main/{split}.txt")
        shutil.rmtree(made)
    return root
