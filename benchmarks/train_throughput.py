#!/usr/bin/env python3
"""Divides the time of a training step and of a test image into parts, against a Fast R-CNN from torchvision.

    python -m benchmarks.train_throughput
    python -m benchmarks.train_throughput train.precision=bfloat16 test.precision=bfloat16

Ours is the task of configs/bccd_squeezenet.yaml, as `tools/train.py` trains it; the other network is the peer
of `benchmarks/bccd_peer.py`. Both take every batch and every test image in turns, in one process; the order
alternates. Each ratio is the median over these pairs; a ratio above 1 says that ours is faster.

The parts of a step are "backbone", "pooling" (forward), "head" (fully connected layers, losses, and the
sampling of RoIs where that is not done by the loader), "backward" and "optimiser" (clipping included, which
the peer does not do). "waiting" is the time that our step waits for the loader, measured while our network
trains alone. The rest of a test image is "head": fully connected layers, decoding and suppression. On a GPU
every part waits until the device has finished, so that the sum is more than the time of an undisturbed step.

Where other programs use the same cores, take one thread and the processor's time: threads that wait for each
other then lose more than their share.

    OMP_NUM_THREADS=1 python -m benchmarks.train_throughput --clock processor
"""

from __future__ import annotations

import os

from detector.core.machine import use_huge_pages, wait_without_spinning

wait_without_spinning()  # both before torch is imported, as in the tools
use_huge_pages()

import argparse  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections import defaultdict  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from contextlib import closing, contextmanager  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.bccd_peer import CONFIG, PeerBatch, make_peer, peer_batch, total_loss  # noqa: E402
from detector.config import load_config  # noqa: E402
from detector.core.structures import Batch  # noqa: E402
from detector.engine.inference import autocast  # noqa: E402
from detector.engine.optim import clip_gradients  # noqa: E402
from detector.factory.loaders import inference_views  # noqa: E402
from detector.factory.model import build_optimizer, build_predictor  # noqa: E402
from detector.tasks.start import build_task  # noqa: E402

WARM_UP = 2
"""Pairs that are not counted."""
STEP_PARTS = ("backbone", "pooling", "head", "backward", "optimiser")
IMAGE_PARTS = ("backbone", "pooling", "head")
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Seconds = dict[str, float]


class Clock:
    """Adds up the seconds of named parts; a part within another one counts for itself only."""

    def __init__(self, device: str, now: Callable[[], float] = time.perf_counter) -> None:
        self.device = torch.device(device)
        self._now = now
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.begin(name)
        yield
        self.end()

    def begin(self, name: str) -> None:
        self._lap()
        self._open.append(name)

    def end(self) -> None:
        self._lap()
        self._open.pop()

    def take(self) -> Seconds:
        """Return the seconds of all parts so far and of their sum, "all", and start from zero."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return {**seconds, "all": sum(seconds.values())}

    def watch(self, module: nn.Module, name: str) -> None:
        """Measure the forward passes of ``module``, and of copies of it, as the part ``name``."""

        def begin(*_: Any) -> None:  # a copy of a module copies methods with their object, but not functions
            self.begin(name)

        def end(*_: Any) -> None:
            self.end()

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)

    def _lap(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = self._now()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now


@dataclass(frozen=True)
class Contender:
    """A network that is trained on batches and tested on images, each given as its views."""

    clock: Clock
    network: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Callable[[Batch], dict[str, Tensor]]
    limit: float | None
    detect: Callable[[], Callable[[list[Batch]], object]]
    """Returns what detects with the network's present weights."""

    def step(self, batch: Batch) -> Seconds:
        with self.clock.part("head"):
            losses = self.losses(batch)
        with self.clock.part("backward"):
            self.optimizer.zero_grad()
            total_loss(losses).backward()
        with self.clock.part("optimiser"):
            if self.limit is not None:
                clip_gradients(self.optimizer, self.limit)
            self.optimizer.step()
        return self.clock.take()

    def tester(self) -> Callable[[list[Batch]], Seconds]:
        self.network.eval()
        detect = self.detect()

        def test(views: list[Batch]) -> Seconds:
            with self.clock.part("head"):
                detect(views)
            return self.clock.take()

        return test


def our_side(task: Any, clock: Clock) -> Contender:
    clock.watch(task.model.backbone, "backbone")
    clock.watch(task.model.region_pool, "pooling")
    return Contender(
        clock,
        task.model.train(),
        build_optimizer(task.config, task.model),
        task.step,
        task.config.train.clip_gradient_norm,
        lambda: build_predictor(task.config, task.model, task.device),
    )


def peer_side(task: Any, clock: Clock, precision: torch.dtype) -> Contender:
    peer, optimizer = make_peer(task)
    clock.watch(peer.backbone, "backbone")
    clock.watch(peer.heads.box_roi_pool, "pooling")

    def run(batch: PeerBatch) -> Any:
        with autocast(task.device, precision):
            return peer(batch)

    @torch.inference_mode()
    def detect(views: list[Batch]) -> object:
        return [part.cpu() for part in run(peer_batch(views[0], task))[0][0].values()]

    def losses(batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = run(peer_batch(batch, task))[1]
        return found

    return Contender(clock, peer.train(), optimizer, losses, None, lambda: detect)


def waiting(ours: Contender, batches: Iterator[Batch], steps: int) -> list[float]:
    """Return the seconds that each of ``steps`` steps waits for its batch, without those of the warm-up."""
    waited = []
    for _ in range(steps):
        started = time.perf_counter()
        batch = next(batches)
        waited.append(time.perf_counter() - started)
        ours.step(batch)
    return waited[min(WARM_UP, steps - 1) :]


def in_turns(
    items: Sequence[Any], ours: Callable[[Any], Seconds], peer: Callable[[Any], Seconds]
) -> list[tuple[Seconds, Seconds]]:
    """Return the seconds of both functions for every item but the first ones, each function first in turn."""
    pairs = []
    for number, item in enumerate(items):
        sides: list[Seconds] = [{}, {}]
        for side, call in ((0, ours), (1, peer)) if number % 2 else ((1, peer), (0, ours)):
            sides[side] = call(item)
        pairs.append((sides[0], sides[1]))
    return pairs[min(WARM_UP, len(pairs) - 1) :]


def summary(pairs: Sequence[tuple[Seconds, Seconds]], parts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return for each of ``parts`` and for their sum, "all", both medians in ms and the median ratio."""
    return {
        part: {
            "ours_ms": 1e3 * statistics.median(ours[part] for ours, _ in pairs),
            "peer_ms": 1e3 * statistics.median(peer[part] for _, peer in pairs),
            "peer_over_ours": statistics.median(peer[part] / ours[part] for ours, peer in pairs),
        }
        for part in (*parts, "all")
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the table as nested dictionaries, with the settings that it was measured with."""
    rounds, device = arguments.rounds, arguments.device
    task: Any = build_task(load_config(CONFIG, arguments.overrides), device, None)
    ours, peer = (Clock(device, CLOCKS[arguments.clock]) for _ in range(2))
    return compare(
        task, our_side(task, ours), peer_side(task, peer, getattr(torch, arguments.peer_precision)), rounds
    ) | {
        "settings": {
            **{name: value for name, value in vars(arguments).items() if name != "json"},
            "machine": torch.cuda.get_device_name() if "cuda" in device else platform.machine(),
            "threads": torch.get_num_threads(),
            "huge_pages": os.environ["THP_MEM_ALLOC_ENABLE"] != "0",
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
        }
    }


def compare(task: Any, ours: Contender, peer: Contender, rounds: int) -> dict[str, Any]:
    """Return the times of ``rounds`` training steps and test images."""
    with closing(task.batches(0)) as batches:
        waited = waiting(ours, batches, rounds)
        steps = in_turns([next(batches) for _ in range(rounds)], ours.step, peer.step)
    test_set = task.scorer.test_set
    with closing(inference_views(task.config, test_set.records, test_set.proposals, task.device)) as views:
        loaded = list(itertools.islice(views, rounds))
    images = in_turns(loaded, ours.tester(), peer.tester())
    return {
        "waiting_ms": 1e3 * statistics.median(waited),
        "training step": summary(steps, STEP_PARTS),
        "test image": summary(images, IMAGE_PARTS),
    }


def print_table(found: dict[str, Any]) -> None:
    print("| | ours, ms | peer, ms | peer / ours |\n|---|---|---|---|")
    for name in ("training step", "test image"):
        for part, row in found[name].items():
            label = f"**{name}**" if part == "all" else f"{name}: {part}"
            print(f"| {label} | {row['ours_ms']:.1f} | {row['peer_ms']:.1f} | {row['peer_over_ours']:.2f} |")
    print(f"\na step waits {found['waiting_ms']:.1f} ms for the loader; {found['settings']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the config, for ours")
    parser.add_argument("--rounds", type=int, default=25, help="steps and images of each (default 25)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--peer-precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="the time that passes (default), or the processor's"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE as well")
    arguments = parser.parse_args()
    found = measure(arguments)
    print_table(found)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
