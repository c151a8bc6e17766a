#!/usr/bin/env python3
"""Read thousands of images in worker processes and count open descriptors and shared memory on the way.

    python -m benchmarks.loader_leaks --images 3000 --workers 2

Training's and evaluation's data paths are read once, image by image, from small generated images. A line of
each path says how many descriptors the main process and its workers have open together, and how many bytes of
/dev/shm are in use, after 100 images and after all. ``--leak`` takes away what keeps both down, copies of the
annotations and boxes that travel as arrays, and shows what happened without them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from detector.core import structures
from detector.core.structures import ImageRecord, Normalization, Proposals, Targets
from detector.data.loader import PREFETCH, TRY_SECONDS, collate_or_error, load, quiet_worker, views_or_error
from detector.data.samples import InferenceDataset, TrainingDataset
from detector.data.transforms import ImageTransform

SIDE = 32
FIRST = 100


class Use(NamedTuple):
    """What the processes hold together."""

    descriptors: int
    shared_bytes: int

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors and {self.shared_bytes / 2**20:.2f} MiB shared"


def main() -> None:
    arguments = parse()
    if arguments.leak:
        del structures._Parcel.__reduce__
        structures.Targets.clone = lambda self: self  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        records = make_records(Path(folder), arguments.images)
        print(f"{arguments.images} images of {SIDE}x{SIDE} pixels, {arguments.workers} workers")
        for name, loader in (("training", training), ("evaluation", evaluation)):
            measure(name, lambda make=loader: load(make(records, arguments.workers)))  # type: ignore[misc]


def measure(name: str, start: Callable[[], Iterable[object]]) -> None:
    """Read everything and print what is held after `FIRST` images and most afterwards."""
    begin, uses = use(), []
    for number, _ in enumerate(start(), 1):
        if number % FIRST == 0:
            uses.append(use())
    print(f"{name}: before, {begin}; after {FIRST} images, {uses[0]}; after {FIRST * len(uses)}, {uses[-1]}")


def use() -> Use:
    """Return what this process and its workers hold now; /dev/shm is that of the whole machine."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes)
    found = os.statvfs("/dev/shm")
    return Use(descriptors, (found.f_blocks - found.f_bfree) * found.f_frsize)


def make_records(folder: Path, count: int) -> list[ImageRecord]:
    """Write one image and return ``count`` records of it, each with annotations of its own."""
    path = folder / "image.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
    boxes = torch.tensor([[1.0, 2.0, 20.0, 24.0]])
    return [
        ImageRecord(
            image_id=str(number),
            path=path,
            height=SIDE,
            width=SIDE,
            targets=Targets.make(boxes.clone(), torch.ones(1, dtype=torch.int64)),
        )
        for number in range(count)
    ]


def proposals(_record: ImageRecord) -> Proposals:
    return Proposals(boxes=torch.rand(100, 4).cumsum(dim=1))


def training(records: list[ImageRecord], workers: int) -> DataLoader:
    return DataLoader(
        TrainingDataset(records, proposals, transform(), seed=0),
        batch_sampler=[[(index, index)] for index in range(len(records))],
        collate_fn=collate_or_error,
        **common(workers),
    )


def evaluation(records: list[ImageRecord], workers: int) -> DataLoader:
    return DataLoader(
        InferenceDataset(records, proposals, [transform()]),
        batch_size=None,
        collate_fn=views_or_error,
        **common(workers),
    )


def common(workers: int) -> dict:
    """Return the settings that the package's own loaders have."""
    return {
        "num_workers": workers,
        "worker_init_fn": quiet_worker,
        "timeout": TRY_SECONDS,
        "prefetch_factor": PREFETCH,
    }


def transform() -> ImageTransform:
    plain = Normalization(mean=(0.0,) * 3, deviation=(1.0,) * 3, maximum=255.0, bgr=False)
    return ImageTransform(normalization=plain, scales=(SIDE,), max_size=2 * SIDE)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=3000, help="images, 100 and more (default 3000)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes, 1 and more (default 2)")
    parser.add_argument("--leak", action="store_true", help="without what keeps descriptors and memory down")
    arguments = parser.parse_args()
    if arguments.images < FIRST or arguments.workers < 1:
        parser.error(f"--images is {FIRST} or more, --workers 1 or more")
    return arguments


if __name__ == "__main__":
    main()
