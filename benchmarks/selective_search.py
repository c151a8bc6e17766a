#!/usr/bin/env python3
"""Compares selective search with OpenCV's: time, memory, and how many objects the proposals cover.

Only opencv-contrib-python has selective search. It installs the same package ``cv2`` as opencv-python, which
this project needs, and each overwrites the other. So OpenCV's runs in a separate environment:

    python3 -m venv /tmp/opencv-contrib
    /tmp/opencv-contrib/bin/pip install opencv-contrib-python numpy

    python benchmarks/selective_search.py speed --opencv /tmp/opencv-contrib/bin/python
    python benchmarks/selective_search.py recall      compare equal numbers of boxes of both on BCCD
    python benchmarks/selective_search.py reference   compare with the authors' boxes for 000004.jpg
    python benchmarks/selective_search.py threads     compare two threads with one
    python benchmarks/selective_search.py memory      measure peak memory by image size

Both programs run on the same core and alternate image by image. Processor time and wall-clock time are
measured; on a busy machine, processor time varies less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
import scipy.io
import torch
from torch import Tensor

from detector.core import boxes as box_ops
from detector.core.structures import ImageRecord
from detector.data.voc.source import VocSource
from detector.ops import selective_search

DATA = Path(__file__).resolve().parents[1] / "data"
COUNTS = (500, 1000, 2000)
SEEDS = range(5)

#: The peer's program: it reads lines "mode path" and answers each with a line of JSON.
PEER = """
import json, sys, time
import cv2
cv2.setNumThreads(1)
for line in sys.stdin:
    mode, path = line.rstrip("\\n").split(" ", 1)
    image = cv2.imread(path)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    wall, own = time.perf_counter(), time.process_time()
    search.setBaseImage(image)
    search.switchToSelectiveSearchFast() if mode == "opencv_fast" else search.switchToSelectiveSearchQuality()
    boxes = search.process()
    print(json.dumps([time.process_time() - own, time.perf_counter() - wall, len(boxes)]), flush=True)
"""


class Seconds(NamedTuple):
    """The time of one search."""

    processor: float
    wall: float


def read_rgb(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None, f"{path} is no image"
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def bccd(count: int | None = None) -> list[Path]:
    paths = sorted((DATA / "bccd" / "JPEGImages").glob("*.jpg"))
    step = 1 if count is None else max(1, len(paths) // count)
    return paths[::step][:count]


def voc() -> list[Path]:
    return sorted((DATA / "voc_demo").glob("*.jpg"))


@contextmanager
def peer(python: str, core: int) -> Iterator[Callable[[str, Path], Seconds]]:
    """Start the peer on ``core``; yield a function from a mode and an image to the seconds of its search."""
    command = [python, "-c", PEER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, {core})
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def ask(mode: str, path: Path) -> Seconds:
            stdin.write(f"{mode} {path}\n")
            stdin.flush()
            return Seconds(*json.loads(stdout.readline())[:2])

        yield ask
        stdin.close()


def own_seconds(mode: str, image: np.ndarray) -> Seconds:
    wall, own = time.perf_counter(), time.process_time()
    selective_search(image, mode)
    return Seconds(time.process_time() - own, time.perf_counter() - wall)


def fastest(turns: Iterable[Seconds]) -> Seconds:
    return Seconds(*(min(column) for column in zip(*turns, strict=True)))


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def milliseconds(times: list[Seconds]) -> str:
    processor, wall = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return f"{processor:.0f}, {wall:.0f}"


def speed(arguments: argparse.Namespace) -> None:
    """Time both on one core, alternating; for every image the best time of each counts."""
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    cases = [
        ("opencv_fast", "VOC", voc()),
        ("opencv_quality", "VOC", voc()),
        ("opencv_fast", "BCCD", bccd(arguments.images)),
    ]
    print("| strategies | images | ours, ms: processor, wall | OpenCV | ratio, processor | ratio, wall |")
    print("|---" * 6 + "|")
    for mode in ("reference_single", "reference_fast", "reference_quality"):
        images = [read_rgb(path) for path in voc()]
        best = [fastest(own_seconds(mode, image) for _ in range(arguments.repeats)) for image in images]
        print(f"| {mode} | VOC, {len(best)} | {milliseconds(best)} | | | |", flush=True)
    with peer(arguments.opencv, core) as ask:
        for mode, name, paths in cases:
            ours, theirs = [], []
            for path in paths:
                image = read_rgb(path)
                turns = [(own_seconds(mode, image), ask(mode, path)) for _ in range(arguments.repeats)]
                ours.append(fastest(turn[0] for turn in turns))
                theirs.append(fastest(turn[1] for turn in turns))
            ratios = [[b / a for a, b in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True)]
            columns = [spread([float(ratio[i]) for ratio in ratios]) for i in (0, 1)]
            print(
                f"| {mode} | {name}, {len(paths)} | {milliseconds(ours)} | {milliseconds(theirs)} "
                f"| {columns[0]} | {columns[1]} |",
                flush=True,
            )


def threads(arguments: argparse.Namespace) -> None:
    """Print how many times faster two threads are than one, by wall-clock time, alternating."""
    for mode in ("fast", "quality"):
        ratios = []
        for path in voc():
            image = read_rgb(path)
            times: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(5 * arguments.repeats):
                for count, seconds in times.items():
                    start = time.perf_counter()
                    selective_search(image, mode, num_threads=count)
                    seconds.append(time.perf_counter() - start)
            ratios.append(min(times[1]) / min(times[2]))
        print(f"{mode}: two threads are {statistics.median(ratios):.2f} times as fast as one ({ratios})")


def memory(arguments: argparse.Namespace) -> None:
    """Print by how much a search raises the peak memory of a new process, for each image size."""
    program = (
        "import sys, cv2, resource\n"
        "from dataclasses import replace\n"
        "from detector.ops import selective_search\n"
        "from detector.ops.selective_search_config import PRESETS\n"
        "size, mode = int(sys.argv[2]), replace(PRESETS[sys.argv[3]], max_pixels=None)\n"
        "image = cv2.resize(cv2.imread(sys.argv[1]), (size, size))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "selective_search(image, mode, num_threads=int(sys.argv[4]))\n"
        "print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))\n"
    )
    print("| strategies | threads | pixels | MiB | limit: 50 bytes per pixel and thread, plus 100 MiB |")
    print("|---" * 5 + "|")
    for size in arguments.sides:
        for mode, count in (("fast", 1), ("fast", 2), ("quality", 1)):
            command = [sys.executable, "-c", program, str(voc()[0]), str(size), mode, str(count)]
            grown = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            limit = 50 * count * size**2 / 2**20 + 100
            print(f"| {mode} | {count} | {size} x {size} | {grown / 2**20:.0f} | {limit:.0f} |", flush=True)


def coverage(best: list[Tensor], labels: list[Tensor], classes: list[str]) -> list[str]:
    """Return the cells of a row: recall at IoU 0.5 and 0.7, MABO, and the mean best IoU of each class."""
    overlaps, label = torch.cat(best), torch.cat(labels)
    means = [float(overlaps[label == i + 1].mean()) for i in range(len(classes))]
    recalls = [float((overlaps >= threshold).float().mean()) for threshold in (0.5, 0.7)]
    return [f"{value:.3f}" for value in (*recalls, sum(means) / len(means), *means)]


def best_overlaps(record: ImageRecord, boxes: Tensor, count: int) -> Tensor:
    return box_ops.iou(record.targets.boxes, boxes[:count]).amax(dim=1)


def recall(arguments: argparse.Namespace) -> None:
    """Print how well the first boxes of both cover BCCD's objects, for five seeds of the order of the boxes.

    OpenCV's boxes have no ranking, so they are shuffled. If one method has fewer boxes for an image than
    asked for, only as many of the other are used.
    """
    records, classes = [], []
    for split in ("trainval", "test"):
        data = VocSource(DATA / "bccd").load(split)
        records += [record for record in data.records if len(record.targets)]
        classes = list(data.classes)
    if arguments.images is not None:
        records = records[:: max(1, len(records) // arguments.images)][: arguments.images]
    given = np.load(DATA / "bccd_opencv_fast_proposals.npz", allow_pickle=False)
    rows: dict[tuple[str, int], tuple[list[Tensor], list[Tensor], list[int]]] = {}
    for record in records:
        image = read_rgb(record.path)
        theirs = torch.from_numpy(given[record.image_id])
        for seed in SEEDS:
            shuffled = theirs[torch.randperm(len(theirs), generator=torch.Generator().manual_seed(seed))]
            own = selective_search(image, "opencv_fast", seed=seed).boxes
            equal = {"OpenCV, shuffled": shuffled, "OpenCV, unshuffled": theirs, "ours, opencv_fast": own}
            lists = [(name, boxes, min(len(theirs), len(own))) for name, boxes in equal.items()]
            lists.append(("ours, fast", selective_search(image, "fast", seed=seed).boxes, max(COUNTS)))
            for name, boxes, limit in lists:
                for count in COUNTS:
                    best, labels, used = rows.setdefault((name, count), ([], [], []))
                    best.append(best_overlaps(record, boxes, min(count, limit)))
                    labels.append(record.targets.labels)
                    used.append(min(count, limit, len(boxes)))
    print("| boxes | at most | used | recall 0.5 | recall 0.7 | MABO | " + " | ".join(classes) + " |")
    print("|---" * (6 + len(classes)) + "|")
    for (name, count), (best, labels, used) in sorted(rows.items(), key=lambda row: row[0][1]):
        print(
            f"| {name} | {count} | {statistics.mean(used):.0f} | "
            + " | ".join(coverage(best, labels, classes))
            + " |"
        )


def objects_of(image_id: str) -> Tensor:
    """Return the boxes (G, 4) of a VOC 2007 test image, half-open."""
    with tarfile.open(DATA / "voc_eval" / "voc2007_test_annotations.tar.xz") as archive:
        member = next(entry for entry in archive if entry.name.endswith(f"/{image_id}.xml"))
        file = archive.extractfile(member)
        assert file is not None, f"{member.name} is no file"
        root = ElementTree.parse(file).getroot()
    corners = [
        [float(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax")]
        for box in root.iter("bndbox")
    ]
    return torch.tensor(corners) - torch.tensor([1.0, 1.0, 0.0, 0.0])


def reference(arguments: argparse.Namespace) -> None:
    """Compare with the boxes for 000004.jpg in Fast R-CNN's demo (from 0, second corner inclusive)."""
    raw = scipy.io.loadmat(DATA / "voc_demo" / "proposals" / "000004_boxes.mat")["boxes"].astype(np.float32)
    given = torch.from_numpy(raw) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    objects = objects_of("000004")
    theirs = box_ops.iou(objects, given).amax(dim=1)
    rounded = [round(v, 2) for v in theirs.tolist()]
    print(f"reference, {len(given)} boxes: mean best IoU {theirs.mean():.3f} {rounded}")
    image = read_rgb(DATA / "voc_demo" / "000004.jpg")
    for mode in ("fast", "quality"):
        for seed in SEEDS:
            boxes = selective_search(image, mode, seed=seed, max_proposals=len(given)).boxes
            ours = box_ops.iou(objects, boxes).amax(dim=1)
            matched = (box_ops.iou(given, boxes).amax(dim=1) >= 0.8).float().mean()
            print(
                f"{mode}, seed {seed}, {len(boxes)} boxes: mean best IoU {ours.mean():.3f} "
                f"{[round(v, 2) for v in ours.tolist()]}; {matched:.0%} of the reference matched at IoU 0.8"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {function.__name__: function for function in (speed, threads, memory, recall, reference)}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--opencv", metavar="PYTHON", help="interpreter with opencv-contrib-python")
    parser.add_argument("--images", type=int, help="number of images of BCCD (default: all 364)")
    parser.add_argument(
        "--sides",
        type=int,
        nargs="+",
        default=[1000, 2000, 4000, 7000],
        help="memory: sides of the square images",
    )
    parser.add_argument("--repeats", type=int, default=3, help="searches per image (default 3)")
    arguments = parser.parse_args()
    if arguments.part == "speed" and arguments.opencv is None:
        parser.error("speed needs --opencv PYTHON; --help shows how to create that environment")
    torch.set_num_threads(1)
    parts[arguments.part](arguments)


if __name__ == "__main__":
    main()
