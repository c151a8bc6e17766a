"""Times a training step in one process, in one that torchrun has started, and in two.

The first two are timed in the same process, before it joins the group and after it, so that their difference
is what DistributedDataParallel and the group cost. Batches lie in the device's memory. Two processes on one
GPU share it and communicate by gloo through the host, which is slow for a large network; VGG16 is therefore
trained in two processes only where there are two GPUs.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.gpu_check import repeat
from benchmarks.gpu_check.machine import ROOT
from benchmarks.gpu_check.result import Result, part_arguments
from benchmarks.gpu_check.step_data import step_config
from benchmarks.gpu_check.steps import Steps
from detector.config import load_config
from detector.core import distributed
from detector.data.generated.dataset import generate_voc
from detector.factory.resources import choose_device

TABLE = "Time per step in several processes"
QUICK_START = [
    *("train.images_per_batch=4", "train.scales=[160]", "train.max_size=280", "train.clip_gradient_norm=10"),
    *("train.sampling.rois_per_image=64", "model.head.hidden=[256,256]", "model.head.dropout=0"),
]
"""Makes the config of `repeat` as large as the quick start's."""


def small_values(root: Path) -> dict[str, Any]:
    """Return the config of the quick start's network, on generated images with sliding windows."""
    generate_voc(root, train_images=24, test_images=4, image_size=(160, 240), seed=1)
    return {**repeat.CONFIG, "data": {**repeat.CONFIG["data"], "root": str(root)}}


def write_configs(data: Path, folder: Path, *, rehearsal: bool, result: Result) -> dict[str, Path]:
    """Write a config per network and return their paths."""
    changes = ["train.precision=bfloat16"]
    config, description = step_config(data, folder, changes, rehearsal=rehearsal)
    result.note(f"VGG16: {description}, 2 images per step; the quick start's network: 4 generated images")
    paths = {"VGG16, bfloat16": folder / "vgg16.yaml", "quick start, float32": folder / "small.yaml"}
    values = [config.model_dump(mode="json"), small_values(folder / "voc")]
    for path, value in zip(paths.values(), values, strict=True):
        path.write_text(yaml.safe_dump(value))
    return paths


def launch(ranks: int, networks: dict[str, Path], rehearsal: bool, result: Result) -> list[dict[str, Any]]:
    """Let ``torchrun`` start ``ranks`` processes that measure; return their rows."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        output = Path(folder, "rows.json")
        command = [*repeat.launcher(ranks), "-m", "benchmarks.gpu_check.ranks"]
        paths = {name: str(path) for name, path in networks.items()}
        command += ["--measure", str(output), "--networks", json.dumps(paths)]
        command += ["--dry-run"] if rehearsal else []
        status = finished(subprocess.Popen(command, cwd=ROOT))
        if status or not output.is_file():
            result.fault(f"{ranks} processes ended with status {status}")
            return []
        rows: list[dict[str, Any]] = json.loads(output.read_text())
        return rows


def finished(process: subprocess.Popen[bytes]) -> int:
    """Return the exit status of ``torchrun``; if this part is interrupted, end its processes first."""
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(4)


def measure(output: Path, networks: dict[str, str], *, rehearsal: bool) -> None:
    """Time each of the ``networks``, configs by name, in this process, and let rank 0 write the rows."""
    device = choose_device("cpu" if rehearsal else "cuda")
    warm_up, count = (1, 2) if rehearsal else (8, 40)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = measured(device, networks, Path(folder), warm_up, count)
    if rows and rows[0]["rank"] == 0:
        output.write_text(json.dumps(rows))


def measured(
    device: str, networks: dict[str, str], folder: Path, warm_up: int, count: int
) -> list[dict[str, Any]]:
    """Return the times of all networks: twice before the process joins its group, if it is the only one, and
    twice inside it.
    """
    rows: list[dict[str, Any]] = []
    alone = distributed.local_place()[1] == 1
    known: dict[str, Steps] = {}

    def run(what: str) -> None:
        for name, path in networks.items():
            if name not in known:
                changes = QUICK_START if "quick start" in name else []
                config = load_config(path, [*changes, "data.workers=1"])
                known[name] = Steps(config, device, folder, count, Result())
            row = {"network": name, "what": what, "ms per step": known[name].ours(warm_up)}
            rows.append({**row, "rank": distributed.rank(), "processes": distributed.world_size()})
            gc.collect()  # DistributedDataParallel has hooks in the network as long as it exists

    for _ in range(2 if alone else 0):
        run("none")
    with distributed.joined(device):
        for _ in range(2):
            run(backend())
    return rows


def backend() -> str:
    """Return what the processes communicate by, on the device that computes."""
    name = str(torch.distributed.get_backend())
    return "nccl" if "nccl" in name or name == "undefined" else name


def report(rows: list[dict[str, Any]], result: Result) -> None:
    """Write the better of two times for each case, and its ratio to one process without a group."""
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        base = min((row["ms per step"] for row in own if row["what"] == "none"), default=None)
        for count, what in dict.fromkeys((row["processes"], row["what"]) for row in own):
            times = [row["ms per step"] for row in own if (row["processes"], row["what"]) == (count, what)]
            shown = {"network": network, "processes": count, "group": what, "ms per step": min(times)}
            ratio = None if base is None else min(times) / base
            each = ", ".join(f"{time:.1f}" for time in times)
            result.row(TABLE, {**shown, "against none": ratio, "each": each})


@contextmanager
def prepared(arguments: argparse.Namespace, result: Result) -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield write_configs(arguments.data, Path(folder), rehearsal=arguments.dry_run, result=result)


def main() -> int:
    parser, result = part_arguments(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the project's folder of data sets")
    parser.add_argument("--measure", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--networks", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.networks, rehearsal=arguments.dry_run)
        return 0
    two_gpus = not arguments.dry_run and torch.cuda.device_count() > 1
    with prepared(arguments, result) as networks:
        rows = launch(1, networks, arguments.dry_run, result)
        small = {name: path for name, path in networks.items() if two_gpus or "quick start" in name}
        rows += launch(2, small, arguments.dry_run, result)
    report(rows, result)
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
