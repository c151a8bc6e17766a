"""Times whole training steps and test images of VGG16 with the loader against the network alone.

A step is one of the run that `tools/train.py` makes (`detector.engine.run.Run`). Its times come from the log
of the run, and so does the time that it waits for data. "Alone" means that the batches lie in the device's
memory, and nothing loads. For a test image, "alone" means that its views lie in page-locked memory.

Python passes its interpreter lock between threads, at the latest after its switch interval. While a thread of
the loader holds it, the loop cannot launch kernels; therefore several intervals are tried.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.detection import spread_scores
from benchmarks.gpu_check.photographs import photograph_config
from benchmarks.gpu_check.result import Result, part_arguments, seconds_left
from benchmarks.gpu_check.steps import TimeIsUp, synchronize
from benchmarks.loader import INTERVALS, loading_speed, switch_interval, with_workers
from detector.config import Config
from detector.core.machine import available_cores
from detector.core.structures import Batch
from detector.engine.run_log import read_log
from detector.factory.loaders import inference_views
from detector.factory.model import build_predictor
from detector.factory.resources import use_cores, worker_count
from detector.tasks.start import build_task, start_run

WORKERS = (2, 4, 8, 15)
STEPS, TARGET_MINUTES, MOST_SLOWER = 40_000, 6.0, 1.1
"""The length of the run that is projected, its target, and the most that the loader may cost a step."""
TABLE, TARGETS = "Training with the loader, VGG16", "Training with the loader, targets"
TEST_TABLE = "Test images with the loader, VGG16"
IN_MEMORY = 12
"""Batches, or test images, that lie in memory."""


@dataclass(frozen=True)
class Length:
    """How much is timed: steps between two lines of the log, lines that count, and test images."""

    every: int = 20
    lines: int = 3
    images: int = 60
    loading_seconds: float = 0.6


REHEARSED = Length(every=1, lines=2, images=4, loading_seconds=0.05)


@dataclass(frozen=True)
class Timed:
    """The times of one run: seconds per step, and the part of them that it waited for data."""

    step: float
    wait_share: float


class GivenBatches:
    """A task that is trained on the batches of a function, until ``steps`` are done."""

    def __init__(self, task: Any, make: Callable[[], Generator[Batch, None, None]], steps: int) -> None:
        self._task, self._make, self._steps = task, make, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def batches(self, _start: int) -> Generator[Batch, None, None]:
        with closing(self._make()) as batches:
            yield from itertools.islice(batches, self._steps)
            raise TimeIsUp


class Loop:
    """One config's task on one device, timed with and without the loader."""

    def __init__(self, config: Config, device: str, folder: Path, length: Length, result: Result) -> None:
        self.config, self.device, self.folder = config, device, folder
        self.length, self.result = length, result
        self.precision = config.train.precision
        self.size = config.train.images_per_batch
        self.task: Any = build_task(config, device, None)
        with closing(self.task.batches(0)) as batches:
            self.in_memory: list[Batch] = list(itertools.islice(batches, IN_MEMORY))

    def alone(self) -> Timed:
        return self._run(lambda: repeated(self.in_memory))

    def with_loader(self, workers: int) -> Timed:
        return self._run(lambda: self._loader(workers))

    def images_per_second(self, workers: int) -> float:
        """Return what the loader delivers to the device without a network."""
        with closing(self._loader(workers)) as batches:
            return loading_speed(batches, self.size, 10, 10**6, self.length.loading_seconds)

    def _loader(self, workers: int) -> Generator[Batch, None, None]:
        self.task.config = with_workers(self.config, workers)
        batches: Generator[Batch, None, None] = self.task.batches(0)
        return batches

    def _run(self, make: Callable[[], Generator[Batch, None, None]]) -> Timed:
        """Return the times in the log of a run; its first two lines are left out, for warming up."""
        every = self.length.every
        steps = every * (2 + self.length.lines)
        changes = {"steps": 10**6, "log_every": every, "checkpoint_every": 10**6, "evaluate_every": None}
        config = self.config.model_copy(update={"train": self.config.train.model_copy(update=changes)})
        task = GivenBatches(self.task, make, steps)
        with suppress(TimeIsUp):
            start_run(config, self.folder, self.device, make_task=lambda *_: task).run()
        lines = [line for line in read_log(self.folder / "log.jsonl") if line["kind"] == "train"][2:]
        if len(lines) != self.length.lines:
            raise RuntimeError(f"the log has {len(lines)} lines to be timed instead of {self.length.lines}")
        step = statistics.mean(line["seconds_per_step"] for line in lines)
        return Timed(step, statistics.mean(line["data_wait"] for line in lines) / step)

    def row(self, what: str, timed: Timed, alone: float, **more: Any) -> None:
        self.result.row(
            TABLE,
            {
                "what": what,
                "precision": self.precision,
                "ms per step": 1e3 * timed.step,
                "against alone": timed.step / alone,
                "data_wait_share": timed.wait_share,
                f"{STEPS} steps, minutes": timed.step * STEPS / 60,
                **more,
            },
        )


def repeated(batches: list[Batch]) -> Generator[Batch, None, None]:
    yield from itertools.cycle(batches)


def settings_of(workers: list[int], usual: int) -> list[tuple[int, float]]:
    """Return pairs of threads and switch interval: each number of threads with Python's own interval, the
    usual number and the largest with the others too. What decides the targets comes first.
    """
    first, *shorter = INTERVALS
    ordered = sorted(workers, key=lambda count: count != usual)
    others = [(count, interval) for count in dict.fromkeys((usual, max(workers))) for interval in shorter]
    return [*((count, first) for count in ordered), *others]


def time_training(loop: Loop, speeds: dict[int, float], usual: int) -> None:
    """Write a row per number of threads and switch interval, then whether the targets are met.

    ``speeds`` are the images per second of the loader alone, by number of threads; 0 means not yet measured,
    and is replaced. The step alone is timed before and after the others.
    """
    first = loop.alone()
    loop.row("alone, before", first, first.step)
    for count, known in speeds.items():
        speeds[count] = known or loop.images_per_second(count)
    timed: dict[tuple[int, float], Timed] = {}
    for count, interval in settings_of(list(speeds), usual):
        began = time.perf_counter()
        with switch_interval(interval):
            timed[count, interval] = loop.with_loader(count)
        loop.row(
            f"loader, {count} threads",
            timed[count, interval],
            first.step,
            **{
                "switch interval, ms": 1e3 * interval,
                "loader alone, images per second": speeds[count],
                "step needs, images per second": loop.size / first.step,
            },
        )
        if seconds_left() < 4 * (time.perf_counter() - began) + 8:
            loop.result.note(f"{loop.precision}: the remaining settings are skipped: no time was left")
            break
    last = loop.alone()
    loop.row("alone, after", last, first.step)
    targets(loop, timed, speeds, (first.step + last.step) / 2, usual)


def targets(
    loop: Loop, timed: dict[tuple[int, float], Timed], speeds: dict[int, float], alone: float, usual: int
) -> None:
    """Write whether the loader costs a step no more than it may, and how long a whole run takes."""
    for (count, interval), one in timed.items():
        if interval != INTERVALS[0]:
            continue
        enough = speeds[count] > loop.size / alone
        outcome = "met" if one.step <= MOST_SLOWER * alone else "missed"
        loop.result.row(
            TARGETS,
            {
                "target": f"a step takes at most {MOST_SLOWER:g} times as long as alone",
                "precision": loop.precision,
                "threads": count,
                "measured": f"{one.step / alone:.2f}",
                "outcome": outcome if enough else "the loader alone is slower than the step",
            },
        )
    minutes = timed[usual, INTERVALS[0]].step * STEPS / 60
    loop.result.row(
        TARGETS,
        {
            "target": f"{STEPS} steps in {TARGET_MINUTES:g} minutes",
            "precision": loop.precision,
            "threads": usual,
            "measured": f"{minutes:.1f}",
            "outcome": "met" if minutes <= TARGET_MINUTES else "missed",
        },
    )


def time_test_images(loop: Loop, workers: list[int]) -> None:
    """Write the milliseconds per test image with the loader, and with the views in memory."""
    test_set, device = loop.task.scorer.test_set, loop.device
    records = test_set.records[: loop.length.images]
    model = loop.task.model.eval()
    few = list(inference_views(loop.config, records[:IN_MEMORY], test_set.proposals, device))
    spread_scores(model, few[0][0], device, loop.config.test.score_threshold)
    predict = build_predictor(loop.config, model, device)
    for views in few:  # a warm-up
        predict(views)

    def milliseconds(images: Iterator[list[Batch]]) -> float:
        synchronize(device)
        started = time.perf_counter()
        for views in images:
            predict(views)
        return 1e3 * (time.perf_counter() - started) / len(records)

    def row(what: str, value: float) -> None:
        values = {
            "what": what,
            "precision": loop.precision,
            "ms per image": value,
            "against alone": value / alone,
        }
        loop.result.row(TEST_TABLE, values)

    alone = milliseconds(itertools.islice(itertools.cycle(few), len(records)))
    row("alone, before", alone)
    for count in workers:
        config = with_workers(loop.config, count)
        row(
            f"loader, {count} threads",
            milliseconds(inference_views(config, records, test_set.proposals, device)),
        )
    row("alone, after", milliseconds(itertools.islice(itertools.cycle(few), len(records))))


def main() -> int:
    parser, result = part_arguments(__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, required=True, help="folder, filled if it is empty")
    arguments = parser.parse_args()
    device, length = ("cpu", REHEARSED) if arguments.dry_run else ("cuda", Length())
    workers = [1, 2] if arguments.dry_run else [count for count in WORKERS if count <= available_cores()]
    speeds = dict.fromkeys(workers, 0.0)
    for number, precision in enumerate(("float32", "bfloat16")):
        if number and seconds_left() < 20:
            result.note(f"{precision} is skipped: {seconds_left():.0f} s were left")
            break
        changes = [f"{mode}.precision={precision}" for mode in ("train", "test")] + ["data.workers=null"]
        config = photograph_config(arguments.photographs, changes, rehearsal=arguments.dry_run)
        use_cores(config, device)
        usual = worker_count(config, device)
        speeds.setdefault(usual, 0.0)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            loop = Loop(config, device, Path(folder), length, result)
            result.attempt(time_training, loop, speeds, usual)
            result.attempt(time_test_images, loop, sorted({min(workers), usual}))
    return 1 if result.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
