#!/usr/bin/env python3
"""Proposals of ours and of OpenCV's selective search for BCCD, in files of equal numbers, to train on.

    python benchmarks/selective_search_training.py --output proposals

writes proposals/ours.npz and proposals/opencv.npz. Every image has as many boxes in one as in the other: the
smaller of the two methods' counts. OpenCV's boxes (its fast mode, data/bccd_opencv_fast_proposals.npz) come
in no order of merit and are shuffled with a seed before they are cut; ours ("fast") are the best ranked.
Then, for either file:

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
    """Return our boxes and OpenCV's ``theirs`` for an image of BCCD, (P, 4) float32 each with the same P."""
    path = DATA / "bccd" / "JPEGImages" / f"{image_id}.jpg"
    image = cv2.imread(str(path))
    assert image is not None, f"{path} is no image"
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
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument("--mode", choices=PRESETS, default="fast", help="our preset (default fast)")
    parser.add_argument("--seed", type=int, default=0, help="of our ranking and of their shuffle (default 0)")
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
    print(f"{len(counts)} images, {np.mean(counts):.0f} boxes an image ({min(counts)} to {max(counts)})")


if __name__ == "__main__":
    main()
