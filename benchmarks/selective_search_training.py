#!/usr/bin/env python3
"""Writes proposals for BCCD by two selective searches, this project's and OpenCV's, to train detectors on.

    python benchmarks/selective_search_training.py --output proposals

writes proposals/ours.npz and proposals/opencv.npz. Each image has the same number of boxes in both files: the
smaller of the counts of the two methods. OpenCV's boxes (fast mode, data/bccd_opencv_fast_proposals.npz) are
not ranked, so a random selection of them is kept; of ours ("fast"), the best ranked are kept. Then train on
each file:

    python tools/train.py --config configs/bccd_squeezenet.yaml --output runs/ours \\
        proposals.file=proposals/ours.npz proposals.format=npz data.train_split=train data.test_split=val \\
        train.steps=400 train.precision=bfloat16
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detector.core.files import atomic_write
from detector.ops import selective_search
from detector.ops.selective_search_config import PRESETS

DATA = Path(__file__).resolve().parents[1] / "data"


def equal_numbers(image_id: str, theirs: np.ndarray, mode: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return our boxes and OpenCV's (``theirs``) for an image of BCCD: both (P, 4) float32."""
    path = DATA / "bccd" / "JPEGImages" / f"{image_id}.jpg"
    image = cv2.imread(str(path))
    assert image is not None, f"{path} is not an image"
    ours = selective_search(image[:, :, ::-1], mode, seed=seed).boxes.numpy()
    count = min(len(ours), len(theirs))
    return ours[:count], np.random.default_rng(seed).permutation(theirs)[:count]


def save(path: Path, boxes: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        np.savez_compressed(file, **boxes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder of the files")
    parser.add_argument("--mode", choices=PRESETS, default="fast", help="our preset (default fast)")
    parser.add_argument("--seed", type=int, default=0, help="seed of both selections (default 0)")
    arguments = parser.parse_args()
    ours, opencv = {}, {}
    with np.load(DATA / "bccd_opencv_fast_proposals.npz", allow_pickle=False) as given:
        for image_id in given.files:
            ours[image_id], opencv[image_id] = equal_numbers(
                image_id, given[image_id], arguments.mode, arguments.seed
            )
    arguments.output.mkdir(parents=True, exist_ok=True)
    save(arguments.output / "ours.npz", ours)
    save(arguments.output / "opencv.npz", opencv)
    counts = [len(boxes) for boxes in ours.values()]
    print(f"{len(counts)} images, {np.mean(counts):.0f} boxes per image ({min(counts)} to {max(counts)})")


if __name__ == "__main__":
    main()
