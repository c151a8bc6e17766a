"""Trains a tiny detector in one process and, started by torchrun, in one and in two, and compares the runs.

Two processes on one GPU communicate by gloo, since nccl refuses them; where there are two GPUs, by nccl. All
runs go through `tools/train.py`, at the same time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.repeat import SAVED_EVERY, STEPS, Runs, stop
from benchmarks.gpu_check.result import Result, part_arguments

OVERRIDES = [
    "train.keep_checkpoints=null",
    "train.precision=float32",
    "train.deterministic=true",
    "model.head.dropout=0",
    "train.images_per_batch=4",
]
TOLERANCE = 1e-3
"""The largest difference of the weights of one and of two processes after the first steps, as L2 norms.

It comes from the order of sums: on a CPU it is 1e-7 after one step. It grows with every step, to 0.04 after
40, so the weights are compared after `SAVED_EVERY`. TF32, which has only 10 bits, is switched off."""
STOPPED_STATUS = 1
"""What ``torchrun`` exits with after SIGTERM."""
COSTS = ("seconds", "data_wait", "peak_")
"""How the names of those metrics begin that measure the run instead of the detector."""
TABLE, EVALUATION = "Runs in several processes", "Sharded evaluation"


def bits_row(runs: Runs, first: str, second: str, what: str, backend: str, result: Result) -> None:
    """Write whether two runs ended with equal bits; others are a fault."""
    row = differences(runs, first, second)
    result.row(TABLE, {"what": what, "backend": backend, "expected": "equal bits", **row})
    if row["different tensors"]:
        result.fault(f"{what}: {row['different tensors']} tensors differ, which should be equal bit for bit")


def close_row(runs: Runs, first: str, second: str, what: str, backend: str, result: Result) -> None:
    """Write how far the weights of two runs are apart at first; more than `TOLERANCE` is a fault."""
    row = differences(runs, first, second, SAVED_EVERY)
    result.row(TABLE, {"what": what, "backend": backend, "expected": f"within {TOLERANCE:g}", **row})
    if not row["relative difference"] <= TOLERANCE:
        result.fault(f"{what}: the weights differ by {row['relative difference']:.2g}, over {TOLERANCE:g}")


def differences(runs: Runs, first: str, second: str, step: int = STEPS) -> dict[str, Any]:
    ours, theirs = runs.weights(first, step), runs.weights(second, step)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    weights = [name for name in ours if ours[name].is_floating_point() and not name.startswith("momentum")]
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in weights)
    whole = sum(float(ours[name].double().square().sum()) for name in weights)
    return {
        "steps": step,
        "tensors": len(ours),
        "different tensors": len(different),
        "relative difference": (apart / whole) ** 0.5,
    }


def metrics_of(runs: Runs, name: str) -> dict[str, Any]:
    """Return the metrics of a run's detector, without its costs."""
    values: dict[str, Any] = json.loads((runs.folder / name / "run/metrics.json").read_text())
    return {key: value for key, value in values.items() if not key.startswith(COSTS)}


def compare_evaluations(runs: Runs, backend: str, result: Result) -> None:
    """Evaluate the network of the run "plain" in two processes, and compare the metrics to the last digit."""
    shutil.copytree(runs.folder / "plain", runs.folder / "sharded")
    (runs.folder / "sharded/run/metrics.json").unlink()
    status = runs.start("sharded", "--resume", ranks=2).wait()
    if status:
        result.fault(f"the sharded evaluation ended with status {status}")
        return
    ours, theirs = metrics_of(runs, "plain"), metrics_of(runs, "sharded")
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    row = {"what": "one process and two", "backend": backend, "metrics": len(ours), "equal": not different}
    result.row(EVALUATION, {**row, "voc07_mAP": ours.get("voc07_mAP")})
    if different:
        result.fault(f"metrics of a sharded evaluation differ: {', '.join(different)[:200]}")


def check(runs: Runs, one_backend: str, two_backend: str, result: Result) -> None:
    started = {"plain": runs.start("plain"), "one": runs.start("one", ranks=1)}
    started |= {name: runs.start(name, ranks=2) for name in ("two", "again", "stopped")}
    try:
        how = stop(runs, started.pop("stopped"), STOPPED_STATUS)
        started["resumed"] = runs.start("stopped", "--resume", ranks=2)
        statuses = {name: process.wait() for name, process in started.items()}
    finally:
        end(started)
    if any(statuses.values()):
        result.fault(f"training ended with statuses {statuses}")
        return
    bits_row(runs, "plain", "one", "torchrun with one process against none", one_backend, result)
    close_row(runs, "plain", "two", "two processes against one", two_backend, result)
    bits_row(runs, "two", "again", "two runs of two processes", two_backend, result)
    bits_row(runs, "two", "stopped", f"two processes, {how} and resumed", two_backend, result)
    compare_evaluations(runs, two_backend, result)


def end(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """End what is still running after an error; torchrun passes the signal on to its processes."""
    for process in processes.values():
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)


def main() -> int:
    parser, result = part_arguments(__doc__.splitlines()[0])
    arguments = parser.parse_args()
    device, gpus = ("cpu", 0) if arguments.dry_run else ("cuda", torch.cuda.device_count())
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        runs = Runs(Path(folder), device, OVERRIDES)
        result.attempt(check, runs, "nccl" if gpus else "gloo", "nccl" if gpus > 1 else "gloo", result)
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
