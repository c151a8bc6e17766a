"""Times a training step and a test image of VGG16 against the same network from torchvision's parts.

Ours is the run that `tools/train.py` makes, with its loop and optimizer. The batches are already in the
device's memory, for ours with the regions that the loader's threads draw. torchvision's parts draw theirs in
the step. `loop` times the same run with the loader.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Generator, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_check.detection import time_test_images
from benchmarks.gpu_check.peer import Peer, copy_weights, on_device
from benchmarks.gpu_check.result import Result, part_arguments
from benchmarks.gpu_check.step_data import deterministic_default, step_config
from detector.config import Config
from detector.core.structures import Batch
from detector.factory.model import build_optimizer
from detector.tasks.start import build_task, start_run

BATCHES = 12
TABLE = "Training step, VGG16"


class Steps:
    """One config's task on one device, and its batches in memory."""

    def __init__(self, config: Config, device: str, folder: Path, count: int, result: Result) -> None:
        self.config, self.device, self.folder = config, device, folder
        self.count, self.result = count, result
        self.precision = config.train.precision
        torch.manual_seed(0)
        self.task = build_task(config, device, None)
        with closing(self.task.batches(0)) as batches:
            self.batches: list[Batch] = list(itertools.islice(batches, BATCHES))

    def row(self, name: str, milliseconds: float, apart: int = 0) -> float:
        """Write a row; ``apart`` is the memory in bytes that the other network holds at the same time."""
        size = tuple(self.batches[0].images.shape[1:3])
        self.result.row(
            TABLE,
            {
                "what": name,
                "precision": self.precision,
                "ms a step": milliseconds,
                "40,000 steps, minutes": milliseconds * 40000 / 60e3,
                "peak MiB": peak_memory(self.device, apart),
                "input": f"{len(self.batches[0].images)} x {size[0]} x {size[1]}",
                "RoIs": len(self.batches[0].images) * self.config.train.sampling.rois_per_image,
            },
        )
        return milliseconds

    def ours(self, warm_up: int) -> float:
        """Return the milliseconds per step of a whole run, on the batches in memory.

        The run saves and evaluates nothing; everything else is as in any other run.
        """
        clock = Clock(self.device, warm_up, self.count)
        never = {"steps": 10**6, "log_every": 10**6, "checkpoint_every": 10**6, "evaluate_every": None}
        config = self.config.model_copy(update={"train": self.config.train.model_copy(update=never)})
        timed = TimedTask(self.task, itertools.cycle(self.batches), clock)
        run = start_run(config, self.folder, self.device, make_task=lambda *_: timed)
        with suppress(TimeIsUp):
            run.run()
        self.optimizer = run.optimizer
        return clock.milliseconds

    def theirs(self, peer: Peer, optimizer: torch.optim.Optimizer, warm_up: int) -> float:
        clock = Clock(self.device, warm_up, self.count)
        limit = self.config.train.clip_gradient_norm
        assert limit is not None, "the peer's step clips gradients as ours does"
        trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
        batches = [on_device(batch, self.device) for batch in self.batches]
        with suppress(TimeIsUp):
            for batch in itertools.cycle(batches):
                losses = peer(batch)[1]
                optimizer.zero_grad()
                torch.stack(list(losses.values())).sum().backward()
                nn.utils.clip_grad_norm_(trained, limit)
                optimizer.step()
                clock.tick()
        return clock.milliseconds


class TimedTask:
    """A task whose batches are given and which ticks a clock after each step; the clock ends the run."""

    def __init__(self, task: Any, batches: Iterable[Batch], clock: Clock) -> None:
        self.task, self.given, self.clock = task, batches, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batches(self, start: int) -> Generator[Batch, None, None]:
        for batch in self.given:
            yield batch
            self.clock.tick()  # the next batch is asked for when the step is done


class TimeIsUp(Exception):
    """All steps that are timed have been done."""


class Clock:
    """Times ``count`` steps after ``warm_up`` steps; both ends wait for the device to finish."""

    def __init__(self, device: str, warm_up: int, count: int) -> None:
        self.device, self.warm_up, self.count = device, warm_up, count
        self.steps, self.milliseconds = 0, float("nan")

    def tick(self) -> None:
        """Count one finished step."""
        self.steps += 1
        if self.steps == self.warm_up:
            synchronize(self.device)
            if is_gpu(self.device):
                torch.cuda.reset_peak_memory_stats()
            self.started = time.perf_counter()
        if self.steps == self.warm_up + self.count:
            synchronize(self.device)
            self.milliseconds = 1e3 * (time.perf_counter() - self.started) / self.count
            raise TimeIsUp


def is_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"


def synchronize(device: str) -> None:
    if is_gpu(device):
        torch.cuda.synchronize()


def peak_memory(device: str, apart: int) -> float | None:
    return (torch.cuda.max_memory_allocated() - apart) / 2**20 if is_gpu(device) else None


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of a network's weights and gradients and its optimizer's momentum."""
    weights = list(model.parameters())
    momentum = [entry.get("momentum_buffer") for entry in optimizer.state.values()]
    tensors = [*weights, *(weight.grad for weight in weights), *momentum]
    return sum(each.numel() * each.element_size() for each in tensors if each is not None)


def compare_steps(steps: Steps, peer: Peer, warm_up: int) -> None:
    """Time both networks twice in turns, with batches in memory; compare the better times."""
    optimizer = build_optimizer(steps.config, peer)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in (1, 2):
        times["ours"].append(
            steps.row(f"ours, in memory, {number}", steps.ours(warm_up), held(peer, optimizer))
        )
        peer.train()
        theirs = steps.theirs(peer, optimizer, warm_up)
        apart = held(steps.task.model, steps.optimizer)
        times["theirs"].append(steps.row(f"torchvision's parts, in memory, {number}", theirs, apart))
    ratio = min(times["theirs"]) / min(times["ours"])
    steps.result.note(f"{steps.precision}: ours is {ratio:.2f} times as fast a training step in memory")


def main() -> int:
    parser, result = part_arguments(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the project's folder of data sets")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    parser.add_argument(
        "--other-determinism",
        action="store_true",
        help="set train.deterministic to the opposite of its default; only ours, batches in memory",
    )
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry_run else "cuda"
    warm_up, count, test_rounds = (1, 2, 2) if arguments.dry_run else (8, 30, 30)
    changes = [f"{mode}.precision={arguments.precision}" for mode in ("train", "test")]
    default = deterministic_default()
    if arguments.other_determinism:
        changes.append(f"train.deterministic={str(not default).lower()}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        config, data = step_config(arguments.data, folder, changes, rehearsal=arguments.dry_run)
        result.note(f"data: {data}")
        steps = Steps(config, device, folder, count, result)
        if arguments.other_determinism:
            steps.row(f"ours, in memory, train.deterministic={not default}", steps.ours(warm_up))
            return 0
        half, inputs = arguments.precision == "bfloat16", steps.task.model.inputs
        peer = Peer(config, len(steps.task.classes), device, inputs, half=half)
        copy_weights(steps.task.model, peer)
        result.attempt(compare_steps, steps, peer, warm_up)
        result.attempt(time_test_images, config, steps.task, peer, device, test_rounds, result)
    return 1 if result.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
