#!/usr/bin/env python3
"""Reads thousands of images in worker processes, and measures their file descriptors and shared memory.

    python -m benchmarks.loader_leaks --images 3000 --workers 2

The loaders of training and of evaluation each read all images once. For both, one line tells how many
descriptors the main process and its workers have open together, and how many bytes of /dev/shm are in use:
before, after 100 images, and after all. With ``--leak``, the two measures against leaks are turned off
(copies of the annotations, and boxes that are sent between processes as arrays), to show what they prevent.
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
    """What the main process and its workers have in use together."""

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
    """Read all images; print what was in use before, after `FIRST` images, and at the end."""
    begin, uses = use(), []
    for number, _ in enumerate(start(), 1):
        if number % FIRST == 0:
            uses.append(use())
    print(f"{name}: before, {begin}; after {FIRST} images, {uses[0]}; after {FIRST * len(uses)}, {uses[-1]}")


def use() -> Use:
    """Return what is in use now. /dev/shm is counted for the whole machine."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes)
    memory = os.statvfs("/dev/shm")
    return Use(descriptors, (memory.f_blocks - memory.f_bfree) * memory.f_frsize)


def make_records(folder: Path, count: int) -> list[ImageRecord]:
    """Write one image and return ``count`` records that name it, each with its own annotations."""
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
    """Return the settings that the loaders of the package have, too."""
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
    parser.add_argument(
        "--images", type=int, default=3000, help="number of images, at least 100 (default 3000)"
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes, at least 1 (default 2)")
    parser.add_argument("--leak", action="store_true", help="turn off the measures against leaks")
    arguments = parser.parse_args()
    if arguments.images < FIRST or arguments.workers < 1:
        parser.error(f"--images must be at least {FIRST}, and --workers at least 1")
    return arguments


if __name__ == "__main__":
    main()
