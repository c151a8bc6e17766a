#!/usr/bin/env python3
"""How many training images per second are loaded, without a model, and what a batch consists of.

    python benchmarks/loader.py --workers 0 1 2 --base ../older_checkout --rounds 5
    python benchmarks/loader.py --soak 5000 --workers 2
    python benchmarks/loader.py --launches 300 --workers 1 2 4 8 --device cuda

The first form compares, with each number of workers, three loaders of the same batches: that of this project
(threads); worker processes that send each batch as one block of pixels and one of everything else; and that
of an older checkout, where one is given. Every measurement is a process of its own. The rounds alternate in
both orders, and the medians are printed. A data set other than the config's may be given as an override, such
as data.root=data/VOC2007.

The second form loads that many steps and prints memory, descriptors and threads in between.

The third form tells how much the threads slow down a loop that launches small kernels, as a training step on
a GPU does: Python's interpreter lock is passed between them, at the latest after its switch interval.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import json
import math
import os
import pickle
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROJECT = Path(__file__).resolve().parent.parent
INTERVALS = (0.005, 0.001, 0.0002)
"""Switch intervals of the interpreter lock in seconds; the first is Python's own."""


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    if arguments.soak:
        results: Any = soak(arguments)
    elif arguments.launches:
        results = beside_launches(arguments)
    else:
        results = compare(arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config values to replace")
    parser.add_argument("--config", default="configs/bccd_squeezenet.yaml", help="default: %(default)s")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--images", type=int, default=400, help="images per measurement (default 400)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--base", metavar="FOLDER", help="an older checkout with its libraries built")
    parser.add_argument("--soak", type=int, metavar="STEPS", help="load that many steps and watch memory")
    parser.add_argument("--launches", type=int, metavar="N", help="small operations per step of the loop")
    parser.add_argument("--device", default="cpu", help="of the loop with --launches (default cpu)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    parser.add_argument("--measure", choices=("loader", "processes"), help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Print a row per loader and number of workers, and return the rows."""
    kinds = [("threads", PROJECT, "loader"), ("processes", PROJECT, "processes")]
    kinds += [("older", Path(arguments.base).resolve(), "loader")] if arguments.base else []
    cases = [
        (kind, workers)
        for workers in arguments.workers
        for kind in kinds
        if workers or kind[2] != "processes"
    ]
    runs: dict[Any, list[dict[str, Any]]] = {case: [] for case in cases}
    for number in range(arguments.rounds):
        for case in cases if number % 2 else reversed(cases):
            (_, tree, measured), workers = case
            runs[case].append(child(arguments, tree, measured, workers))
    print(
        "| loader | workers | images per second | arrays per batch | MiB per batch |\n|---|---|---|---|---|"
    )
    rows = []
    for ((name, _, _), workers), measured in runs.items():
        speed = statistics.median(run["images_per_second"] for run in measured)
        row = {"loader": name, "workers": workers, **measured[0], "images_per_second": speed}
        print(f"| {name} | {workers} | {speed:.0f} | {row['tensors']} | {row['bytes'] / 2**20:.2f} |")
        rows.append(row)
    return rows


def child(arguments: argparse.Namespace, tree: Path, measured: str, workers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", measured, "--workers", str(workers)]
    command += ["--config", str(Path(arguments.config).resolve()), "--images", str(arguments.images)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments.overrides], env=environment, capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load one epoch, so that files and proposals are in the system's memory, then time ``images`` images."""
    (workers,) = arguments.workers
    make = by_processes if arguments.measure == "processes" else batches_of
    setting = read_setting(arguments.config, arguments.overrides).with_workers(workers)
    size = setting.config.train.images_per_batch
    with closing(make(setting)) as batches:
        speed = loading_speed(batches, size, len(setting.records) // size, arguments.images // size)
        batch = next(batches)
    threads = hasattr(batch, "sizes") or not workers  # nothing leaves the process
    crossing = [] if threads else list(tensors(batch))
    return {
        "images_per_second": speed,
        "tensors": len(crossing),
        "bytes": sum(tensor.nbytes for tensor in crossing),
    }


def loading_speed(
    batches: Iterator[Any], size: int, warm_up: int, count: int, seconds: float = math.inf
) -> float:
    """Return the images per second of ``count`` batches of ``size`` images after ``warm_up`` batches.

    The measurement ends early, after the batch with which ``seconds`` are over.
    """
    for _ in itertools.islice(batches, warm_up):
        pass
    done, started = 0, time.perf_counter()
    for _ in itertools.islice(batches, count):
        done += 1
        if time.perf_counter() - started > seconds:
            break
    return done * size / (time.perf_counter() - started)


@dataclass(frozen=True)
class Setting:
    """What a loader loads: a config, the training records, and their proposals.

    ``more`` holds the sampler of the regions, where the loader of this checkout takes one.
    """

    config: Any
    records: Any
    source: Any
    more: dict[str, Any]

    def with_workers(self, workers: int) -> Setting:
        """Return the same setting with another ``data.workers``."""
        return dataclasses.replace(self, config=with_workers(self.config, workers))


def with_workers(config: Any, workers: int) -> Any:
    """Return ``config`` with another ``data.workers``."""
    data = config.data.model_copy(update={"workers": workers})
    return config.model_copy(update={"data": data})


def read_setting(path: str, overrides: Sequence[str]) -> Setting:
    """Return the setting of the config at ``path``; works with older checkouts too."""
    from detector.config.load import load_config

    return setting_of(load_config(path, list(overrides)))


def setting_of(config: Any) -> Setting:
    from detector.factory import data, loaders, model, proposals
    from detector.models.box_coder import fixed_coder

    data.ensure_data(config)
    classes = data.class_names(config)
    records = data.load_training(config, classes, training=True).records
    store = proposals.open_proposals(config, records, config.data.train_split)
    source = proposals.stored_proposals(config, store, training=True)
    more: dict[str, Any] = {}
    if "draw_regions" in inspect.signature(loaders.training_batches).parameters:
        box = config.model.box
        more["draw_regions"] = model.build_roi_sampler(
            config, fixed_coder(len(classes), box.means, box.deviations)
        )
    return Setting(config, records, source, more)


def batches_of(setting: Setting, device: str = "cpu") -> Generator[Any, None, None]:
    """Return the endless training batches of the package's own loader, on ``device``."""
    from detector.factory.loaders import training_batches

    where: dict[str, Any] = {} if device == "cpu" else {"device": device}  # older loaders only know the CPU
    return training_batches(setting.config, setting.records, setting.source, 0, **where, **setting.more)


def by_processes(setting: Setting) -> Generator[Any, None, None]:
    """Yield the same batches from worker processes that send one block of pixels and one of everything else.

    Each item is what has crossed; the receiving side has unpacked it already.
    """
    from torch.utils.data import DataLoader

    from detector.data.samplers import TrainingBatches
    from detector.data.samples import TrainingSamples, collate
    from detector.data.transforms import ImageTransform

    config, train = setting.config, setting.config.train
    transform = ImageTransform(
        scales=train.scales, max_size=train.max_size, resize=train.resize, flip=train.flip
    )
    sample = TrainingSamples(
        setting.records, setting.source, transform, config.seed, None, setting.more["draw_regions"]
    )
    order = TrainingBatches(len(setting.records), train.images_per_batch, config.seed)

    def packed(samples: list[Any]) -> tuple[Tensor, Tensor]:
        batch = collate(samples)
        rest = dataclasses.replace(batch, images=batch.images[:, :0, :0])
        return batch.images, torch.frombuffer(bytearray(pickle.dumps(rest)), dtype=torch.uint8)

    loader: Any = DataLoader(
        _Keyed(sample),  # type: ignore[arg-type]
        batch_sampler=order,
        collate_fn=packed,
        num_workers=config.data.workers,
        prefetch_factor=4,
        multiprocessing_context="fork",
    )
    for images, rest in loader:
        pickle.loads(rest.numpy().tobytes())
        yield images, rest


class _Keyed:
    """A data set whose items are samples by (index, draw)."""

    def __init__(self, sample: Callable[[int, int], Any]) -> None:
        self._sample = sample

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self._sample(*key)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in a batch."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def soak(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Load ``soak`` steps; print memory, descriptors and threads after each tenth of them."""
    (workers,) = arguments.workers
    rows = [{"step": 0, **in_use()}]
    setting = read_setting(arguments.config, arguments.overrides).with_workers(workers)
    print("| step | resident, MiB | descriptors | threads |\n|---|---|---|---|")
    with closing(batches_of(setting)) as batches:
        for step, _ in enumerate(itertools.islice(batches, arguments.soak), start=1):
            if step % max(arguments.soak // 10, 1) == 0:
                rows.append({"step": step, **in_use()})
    rows.append({"step": "closed", **in_use()})
    for row in rows:
        print(f"| {row['step']} | {row['resident_mib']:.1f} | {row['descriptors']} | {row['threads']} |")
    return rows


def in_use() -> dict[str, Any]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
    }


def beside_launches(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Print how long a step of ``launches`` small operations takes beside the loader, for each interval."""
    rows = []
    step = launching_step(arguments.device, arguments.launches)
    print("| workers | switch interval, ms | step alone, ms | beside the loader, ms | images per second |")
    print("|---|---|---|---|---|")
    setting = read_setting(arguments.config, arguments.overrides)
    for workers in arguments.workers:
        with closing(batches_of(setting.with_workers(workers))) as batches:
            for interval in INTERVALS:
                row = {"workers": workers, "interval": interval, **launches_timed(step, batches, interval)}
                rows.append(row)
                print(
                    f"| {workers} | {1e3 * interval:g} | {1e3 * row['alone']:.2f} | "
                    f"{1e3 * row['beside']:.2f} | {row['images_per_second']:.0f} |",
                    flush=True,
                )
    return rows


def launches_timed(
    step: Callable[[], None], batches: Iterator[Any], interval: float, steps: int = 50
) -> dict[str, float]:
    """Return the median seconds of a step alone, and of one that takes a batch of the loader before it."""
    with switch_interval(interval):
        for _ in range(10):
            size = len(next(batches))
        time.sleep(0.5)  # the loader fills its queue and rests
        alone = statistics.median(timed(step) for _ in range(steps))
        started = time.perf_counter()
        beside = []
        for _ in range(steps):
            next(batches)
            beside.append(timed(step))
        images = size * steps / (time.perf_counter() - started)
    return {"alone": alone, "beside": statistics.median(beside), "images_per_second": images}


@contextmanager
def switch_interval(seconds: float) -> Iterator[None]:
    """Set the interval of the interpreter lock within the context."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def launching_step(device: str, launches: int) -> Callable[[], None]:
    """Return a step of that many operations on a few numbers, which take less time than their launch."""
    numbers = torch.ones(64, device=device)

    def step() -> None:
        for _ in range(launches):
            numbers.mul_(1.0)
        if numbers.is_cuda:
            torch.cuda.synchronize()

    return step


def timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
