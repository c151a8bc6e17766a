"""How a proposal store behaves with many images, beside a pickle of the same boxes.

    python benchmarks/proposal_store.py                        100,000 images x 2000 boxes, 3.2 GB on the disk
    python benchmarks/proposal_store.py --images 2000          a quick run

Prints the store's size, the time to open it, the speed and the memory of workers that read images at random,
and the same for a pickle (detectron2's layout, every worker loads it) at a size that fits the memory, as
ratios to a store of that size. The folder is removed at the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from detector.core.structures import Proposals
from detector.proposals.store import Entry, ProposalStore

_SEGMENT_IMAGES = 256
Reader = Callable[[str], int]


class Reading(NamedTuple):
    """What one worker found: seconds to open, boxes a second, and growth of its memory in MiB."""

    open_seconds: float
    boxes_per_second: float
    private_mib: float
    shared_mib: float


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "store"
        seconds = write_store(path, arguments.images, arguments.boxes)
        size = sum(file.stat().st_size for file in path.iterdir())
        boxes = arguments.images * arguments.boxes
        print(f"{arguments.images} images x {arguments.boxes} boxes")
        index = (path / "index.npy").stat().st_size
        print(f"  store {size / 1e9:.3f} GB, {size / boxes:.2f} bytes a box, its index {index / 1e6:.1f} MB")
        print(f"  {boxes / seconds:.3g} boxes/s written, on the disk")
        report("store", measure(open_store, path, arguments))
        compare(Path(folder), arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=2000, help="of each image")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--reads", type=int, default=20_000, help="images that each worker reads")
    parser.add_argument("--pickle-images", type=int, default=5000, help="images in the pickle")
    parser.add_argument("--folder", default=None, help="where to write (default: the system's)")
    return parser.parse_args()


def fake_boxes(images: int, boxes: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return boxes (images, boxes, 4) in images of 500 x 375 pixels."""
    corners = np.random.default_rng(seed).random((images, boxes, 2, 2), np.float32)
    return np.sort(corners, axis=2).reshape(images, boxes, 4) * np.float32([500, 375, 500, 375])


def write_store(path: Path, images: int, boxes: int) -> float:
    """Write the store as a job does and return the seconds that took, without those to draw the boxes."""
    store = ProposalStore.create(path, generator="fake", parameters={})
    seconds = 0.0
    for first in range(0, images, _SEGMENT_IMAGES):
        drawn = torch.from_numpy(fake_boxes(min(_SEGMENT_IMAGES, images - first), boxes, first))
        entries = {image_id(first + i): Entry(Proposals(boxes=rows)) for i, rows in enumerate(drawn)}
        start = time.perf_counter()
        store.append(entries)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    store.compact()
    return seconds + time.perf_counter() - start


def write_pickle(path: Path, images: int, boxes: int) -> None:
    drawn = fake_boxes(images, boxes, 0)
    content = {"ids": [image_id(i) for i in range(images)], "boxes": list(drawn)}
    with path.open("wb") as file:
        pickle.dump(content, file, pickle.HIGHEST_PROTOCOL)


def image_id(number: int) -> str:
    return f"{number:012d}"


def open_store(path: Path) -> Reader:
    store = ProposalStore.open(path)
    return lambda key: len(store[key])


def open_pickle(path: Path) -> Reader:
    with path.open("rb") as file:
        content = pickle.load(file)
    places = {key: place for place, key in enumerate(content["ids"])}
    return lambda key: len(torch.from_numpy(content["boxes"][places[key]].copy()))


def measure(
    open_reader: Callable[[Path], Reader],
    path: Path,
    arguments: argparse.Namespace,
    images: int | None = None,
) -> list[Reading]:
    """Let the workers read at random, all at once, each in a fresh process as a DataLoader's."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(arguments.workers)
    answers = context.Queue()
    work = (open_reader, path, images or arguments.images, arguments.reads, barrier, answers)
    processes = [
        context.Process(target=read_at_random, args=(seed, *work)) for seed in range(arguments.workers)
    ]
    for process in processes:
        process.start()
    readings = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return readings


def read_at_random(
    seed: int,
    open_reader: Callable[[Path], Reader],
    path: Path,
    images: int,
    reads: int,
    barrier: Any,
    answers: Any,
) -> None:
    torch.set_num_threads(1)
    keys = [image_id(number) for number in np.random.default_rng(seed).integers(0, images, reads)]
    private, shared = memory()
    start = time.perf_counter()
    read = open_reader(path)
    opened = time.perf_counter() - start
    barrier.wait()
    start = time.perf_counter()
    boxes = sum(read(key) for key in keys)
    seconds = time.perf_counter() - start
    barrier.wait()  # memory is measured while all workers hold theirs
    now_private, now_shared = memory()
    answers.put(Reading(opened, boxes / seconds, now_private - private, now_shared - shared))
    barrier.wait()


def memory() -> tuple[float, float]:
    """Return this process's own memory and what it maps of files, in MiB (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))  # type: ignore[return-value]


def report(name: str, readings: list[Reading]) -> None:
    opened = statistics.median(reading.open_seconds for reading in readings)
    speed = sum(reading.boxes_per_second for reading in readings)
    private = statistics.median(reading.private_mib for reading in readings)
    shared = statistics.median(reading.shared_mib for reading in readings)
    print(
        f"  {name}: opens in {1000 * opened:.2f} ms; {len(readings)} workers read {speed:.3g} boxes/s; each "
        f"grows by {private:.1f} MiB of its own and has {shared:.0f} MiB of shared pages"
    )


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    images = min(arguments.pickle_images, arguments.images)
    write_store(folder / "small", images, arguments.boxes)
    write_pickle(folder / "boxes.pkl", images, arguments.boxes)
    print(f"{images} images x {arguments.boxes} boxes, store and pickle")
    store = measure(open_store, folder / "small", arguments, images)
    pickled = measure(open_pickle, folder / "boxes.pkl", arguments, images)
    report("store", store)
    report("pickle", pickled)
    for name in ("open_seconds", "boxes_per_second", "private_mib"):
        ratio = statistics.median(getattr(reading, name) for reading in pickled) / max(
            statistics.median(getattr(reading, name) for reading in store), 1e-9
        )
        print(f"  {name}: pickle / store = {ratio:.3g}")


if __name__ == "__main__":
    main()
