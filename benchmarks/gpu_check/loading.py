"""Times the loader without a network: threads against worker processes, images per second.

The threads do what they do in training: their batches are in page-locked memory, and arrive on the device.
The processes only deliver theirs to the main process, in two blocks (`benchmarks/loader.py`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.photographs import photograph_config
from benchmarks.gpu_check.result import Result, part_arguments, seconds_left
from benchmarks.loader import Setting, batches_of, by_processes, loading_speed, setting_of
from detector.core.machine import available_cores
from detector.factory.resources import use_cores

WORKERS = (1, 2, 4, 8, 12, 15)
ROUNDS = 2
SECONDS, WARM_UP = 0.7, 20
"""How long a measurement takes, and the batches before it."""
EARLIER = 2 / 0.049
"""Images per second in training with 8 worker processes that sent float32 pixels, VGG16 on an H200 with 16
cores (2 images per 49 ms). The loader has to be three times as fast."""
TABLE, TARGETS = "Loader without a network", "Loader, targets"

Make = Callable[[Setting], Generator[Any, None, None]]


def compare(setting: Setting, kinds: dict[str, Make], workers: list[int], result: Result) -> dict[int, float]:
    """Write a row per number of workers, and return the images per second of the threads by that number.

    The rounds alternate in both orders. No further round is begun once the time of the part is used up.
    """
    cases = [(name, count) for count in workers for name in kinds]
    speeds: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for number in range(ROUNDS):
        began = time.perf_counter()
        for name, count in reversed(cases) if number % 2 else cases:
            speeds[name, count].append(one_speed(kinds[name], setting.with_workers(count)))
        if seconds_left() < 1.2 * (time.perf_counter() - began):
            result.note(f"{number + 1} of {ROUNDS} rounds: no time was left")
            break
    medians = {case: statistics.median(values) for case, values in speeds.items()}
    for count in workers:
        row: dict[str, Any] = {"workers": count}
        row |= {f"{name}, images per second": medians[name, count] for name in kinds}
        row["ratio"] = medians["threads", count] / medians["processes", count]
        row |= {f"{name}, each": ", ".join(f"{one:.0f}" for one in speeds[name, count]) for name in kinds}
        result.row(TABLE, row)
    return {count: medians["threads", count] for count in workers}


def one_speed(make: Make, setting: Setting) -> float:
    with closing(make(setting)) as batches:
        return loading_speed(batches, setting.config.train.images_per_batch, WARM_UP, 10**6, SECONDS)


def target(speeds: dict[int, float], result: Result) -> None:
    """Write whether 8 threads, or the most there are, load three times as fast as the earlier loader."""
    count = 8 if 8 in speeds else max(speeds)
    result.row(
        TARGETS,
        {
            "target": f"three times the earlier loader's {EARLIER:.0f} images per second (H200, 16 cores)",
            "measured": f"{speeds[count]:.0f} with {count} threads",
            "outcome": "met" if speeds[count] >= 3 * EARLIER else "missed",
        },
    )


def main() -> int:
    parser, result = part_arguments(__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, required=True, help="folder, filled if it is empty")
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry_run else "cuda"
    config = photograph_config(arguments.photographs, [], rehearsal=arguments.dry_run)
    use_cores(config, device)
    setting = setting_of(config)
    with closing(batches_of(setting.with_workers(0))) as batches:
        example = next(batches)
    files = list((arguments.photographs / "JPEGImages").iterdir())
    result.note(
        f"{available_cores()} cores; {len(setting.records)} photographs of "
        f"{setting.records[0].width} x {setting.records[0].height} pixels, files of "
        f"{statistics.mean(path.stat().st_size for path in files) / 1e3:.0f} kB, "
        f"{len(example.rois_per_image[0])} proposals; a batch is {' x '.join(map(str, example.images.shape))}"
    )
    kinds: dict[str, Make] = {"threads": partial(batches_of, device=device), "processes": by_processes}
    workers = [1, 2] if arguments.dry_run else [count for count in WORKERS if count <= available_cores()]
    target(compare(setting, kinds, workers, result), result)
    return 1 if result.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
