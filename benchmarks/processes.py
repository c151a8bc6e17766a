#!/usr/bin/env python3
"""Two processes with one thread each against one process with two threads, on the CPU.

    python benchmarks/processes.py --rounds 5 --output processes.json

Both train the same config with the same batches by ``tools/train.py``. A round is one run of each; the order
alternates between rounds. A run's speed is the median of the images per second that its log records, without
the first ones, so that starting, reading data and evaluating do not count. Printed are the medians over the
rounds, and the median of the ratios of the rounds: above 1, two processes are faster.

BCCD and its proposals must be under ``data/``; ``--config`` names other configs, and ``--set`` changes their
values.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
CONFIGS = ("bccd_squeezenet", "quickstart")
EVERY = 5
"""Steps per record of the log."""
WARM_UP = 2
"""Records at the beginning that do not count."""
CORES = 2


def main() -> None:
    arguments = parse()
    results = [measure(config, arguments) for config in arguments.config]
    print(f"\n{'config':<24}{'images/step':>12}{'1 process':>12}{'2 processes':>13}{'ratio':>8}{'  range'}")
    for one in results:
        shown = [f"{one[name]:.2f}" for name in ("one_process", "two_processes", "ratio")]
        spread = f"{min(one['ratios']):.2f} to {max(one['ratios']):.2f}"
        speeds = f"{shown[0]:>12}{shown[1]:>13}{shown[2]:>8}"
        print(f"{one['config']:<24}{one['images_per_batch']:>12}{speeds}  {spread}")
    report = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "results": results}
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n")


def measure(config: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the speeds of a config in images per second, and their ratios."""
    settings = [
        f"train.steps={arguments.steps}",
        f"train.images_per_batch={arguments.images}",
        f"train.log_every={EVERY}",
        f"train.checkpoint_every={arguments.steps}",
        "train.evaluate_every=null",
        "train.draw_images=0",
        "test.max_images=2",
        *arguments.set,
    ]
    speed(config, [*settings, f"train.steps={EVERY}"], 1)  # makes data, caches and proposals
    rounds = []
    for number in range(arguments.rounds):
        order = (1, 2) if number % 2 == 0 else (2, 1)
        found = {processes: speed(config, settings, processes) for processes in order}
        rounds.append(found)
        print(f"{config}: one process {found[1]:.2f}, two processes {found[2]:.2f} images/s", flush=True)
    ratios = [found[2] / found[1] for found in rounds]
    return {
        "config": config,
        "images_per_batch": arguments.images,
        "settings": settings,
        "one_process": statistics.median(found[1] for found in rounds),
        "two_processes": statistics.median(found[2] for found in rounds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def speed(config: str, settings: Sequence[str], processes: int) -> float:
    """Return the median of the images per second of a run in steady state."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        tool = [str(PROJECT / "tools" / "train.py"), "--config", config, "--output", str(run)]
        command = [sys.executable, *(launcher if processes > 1 else []), *tool, "--device", "cpu", *settings]
        variables = {**os.environ, "OMP_NUM_THREADS": str(CORES // processes)}
        done = subprocess.run(
            command, cwd=PROJECT, env=variables, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
        lines = (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
        speeds = [line["images_per_second"] for line in lines if line["kind"] == "train"]
    return statistics.median(speeds[WARM_UP:] or speeds)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", nargs="+", default=list(CONFIGS))
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="key=value", help="change values of the configs"
    )
    parser.add_argument("--images", type=int, default=2, help="images per step, in all processes (default 2)")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", metavar="FILE.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
