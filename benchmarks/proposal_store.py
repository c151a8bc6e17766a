"""How a proposal store behaves with many images, beside SQLite and a pickle with the same boxes.

    python benchmarks/proposal_store.py                        100,000 images x 2000 boxes, 3.2 GB on the disk
    python benchmarks/proposal_store.py --images 2000          a quick run

Prints the store's size, the time to open it, the speed and the memory of workers that read images at random.
Then the same for a store, an SQLite file and a pickle of ``--peer-images`` images, as ratios to the store.
SQLite has one row per image, with the boxes as a blob and their CRC-32, which is compared at each read; its
file has pages of 64 KiB, is memory-mapped and written ahead (WAL). The pickle is detectron2's; each worker
loads it. The folder is removed at the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import sqlite3
import statistics
import tempfile
import time
import zlib
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
    """One worker's measurements: seconds to open, boxes per second, and growth of its memory in MiB."""

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
        print(
            f"  store {size / 1e9:.3f} GB, {size / boxes:.2f} bytes per box, its index {index / 1e6:.1f} MB"
        )
        print(f"  {boxes / seconds:.3g} boxes/s written to the disk")
        report("store", measure(open_store, path, arguments))
        compare(Path(folder), arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=2000, help="per image")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--reads", type=int, default=20_000, help="images that each worker reads")
    parser.add_argument("--peer-images", type=int, default=5000, help="images in the comparison")
    parser.add_argument("--folder", default=None, help="where to write (default: the system's)")
    return parser.parse_args()


def fake_boxes(images: int, boxes: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return boxes (images, boxes, 4) in images of 500 x 375 pixels."""
    corners = np.random.default_rng(seed).random((images, boxes, 2, 2), np.float32)
    return np.sort(corners, axis=2).reshape(images, boxes, 4) * np.array([500, 375, 500, 375], np.float32)


def write_store(path: Path, images: int, boxes: int) -> float:
    """Write the store as a job does; return the seconds without the time to draw the boxes."""
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


def write_sqlite(path: Path, images: int, boxes: int) -> float:
    """Write one row per image, in transactions of as many images as the segments have; return the seconds."""
    connection = sqlite3.connect(path, isolation_level=None)
    for setting in ("page_size = 65536", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {setting}")
    connection.execute("CREATE TABLE proposals (id TEXT NOT NULL UNIQUE, checksum INTEGER, boxes BLOB)")
    seconds = 0.0
    for first in range(0, images, _SEGMENT_IMAGES):
        drawn = enumerate(fake_boxes(min(_SEGMENT_IMAGES, images - first), boxes, first), first)
        start = time.perf_counter()
        rows = ((image_id(number), zlib.crc32(one.data), one.data.cast("B")) for number, one in drawn)
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO proposals VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return seconds + time.perf_counter() - start


def image_id(number: int) -> str:
    return f"{number:012d}"


def open_store(path: Path) -> Reader:
    store = ProposalStore.open(path)
    return lambda key: len(store[key])


def open_sqlite(path: Path) -> Reader:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    connection.execute(f"PRAGMA mmap_size = {1 << 40}")
    query = "SELECT boxes, checksum FROM proposals WHERE id = ?"

    def read(key: str) -> int:
        boxes, checksum = connection.execute(query, (key,)).fetchone()
        assert zlib.crc32(boxes) == checksum
        return len(torch.from_numpy(np.frombuffer(boxes, np.float32).reshape(-1, 4).copy()))

    return read


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
    """Let the workers read at random, all at once, each in a fresh process."""
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
    images = min(arguments.peer_images, arguments.images)
    print(f"{images} images x {arguments.boxes} boxes: store, SQLite and pickle")
    written = write_store(folder / "small", images, arguments.boxes)
    ratio = write_sqlite(folder / "boxes.sqlite", images, arguments.boxes) / written
    write_pickle(folder / "boxes.pkl", images, arguments.boxes)
    store = measure(open_store, folder / "small", arguments, images)
    report("store", store)
    print(f"  seconds to write: SQLite / store = {ratio:.3g}")
    for name, opener, path in (("SQLite", open_sqlite, "boxes.sqlite"), ("pickle", open_pickle, "boxes.pkl")):
        peer = measure(opener, folder / path, arguments, images)
        report(name, peer)
        for field in ("open_seconds", "boxes_per_second", "private_mib"):
            theirs, ours = (statistics.median(getattr(one, field) for one in side) for side in (peer, store))
            print(f"  {field}: {name} / store = {theirs / max(ours, 1e-9):.3g}")


if __name__ == "__main__":
    main()
