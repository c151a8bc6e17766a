"""Trains a tiny detector twice with one seed, and once stopped and resumed, and compares the weights' bits.

All runs go through `tools/train.py`, three at a time.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.gpu_check.machine import ROOT
from benchmarks.gpu_check.result import Result, part_arguments
from detector.data.generated.dataset import generate_voc
from detector.engine.checkpoint import load_checkpoint, numbered_checkpoints

STEPS, SAVED_EVERY = 40, 5
CONFIG: dict[str, Any] = {
    "seed": 3,
    "data": {"train_split": "trainval", "test_split": "test", "workers": 1},
    "proposals": {"method": "dense", "top_k_train": 300, "top_k_test": 300},
    "model": {"backbone": {"name": "small"}, "pool": {"output_size": 7}, "head": {"hidden": [64, 64]}},
    "train": {
        "steps": STEPS,
        "images_per_batch": 2,
        "scales": [96],
        "max_size": 160,
        "scale_jitter": [0.8, 1.25],
        "sampling": {"rois_per_image": 32, "background_iou": [0.0, 0.5]},
        "learning_rate": 0.01,
        "log_every": 10,
        "checkpoint_every": SAVED_EVERY,
        "draw_images": 1,
    },
    "test": {"scales": [96], "max_size": 160},
}


class Runs:
    """Runs of one config, each in its own folder."""

    def __init__(self, folder: Path, device: str, overrides: list[str]) -> None:
        self.folder, self.device, self.overrides = folder, device, overrides
        generate_voc(folder / "voc", train_images=8, test_images=4, image_size=(96, 128), seed=1)
        values = {**CONFIG, "data": {**CONFIG["data"], "root": str(folder / "voc")}}
        (folder / "tiny.yaml").write_text(yaml.safe_dump(values))

    def start(self, name: str, *options: str, ranks: int | None = None) -> subprocess.Popen[bytes]:
        """Start the run ``name``, with its own working directory and output folder.

        With ``ranks``, ``torchrun`` starts it in so many processes.
        """
        (self.folder / name).mkdir(exist_ok=True)
        command = [*launcher(ranks), str(ROOT / "tools/train.py"), "--config", str(self.folder / "tiny.yaml")]
        command += ["--output", str(self.folder / name / "run"), "--device", self.device]
        return subprocess.Popen([*command, *options, *self.overrides], cwd=self.folder / name)

    def checkpoints(self, name: str) -> list[Path]:
        return numbered_checkpoints(self.folder / name / "run/checkpoints")

    def weights(self, name: str, step: int = STEPS) -> dict[str, torch.Tensor]:
        """Return the weights and the optimizer's momentum after the last step, or an earlier one."""
        state = load_checkpoint(self.folder / name / f"run/checkpoints/step_{step}.pt")
        momentum = {
            f"momentum.{number}": entry["momentum_buffer"]
            for number, entry in state["optimizer"]["state"].items()
        }
        return {**state["model"], **momentum}


def launcher(ranks: int | None) -> list[str]:
    """Return the command before the name of a program; with ``ranks``, ``torchrun`` starts the processes."""
    if ranks is None:
        return [sys.executable]
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(ranks)),
    ]


def stop(runs: Runs, process: subprocess.Popen[bytes], stopped_status: int = 128 + signal.SIGTERM) -> str:
    """Stop the run "stopped" after its first checkpoint and return a description of what happened.

    If the run finishes before it can be stopped, its later checkpoints are deleted, as if it had been killed.
    ``stopped_status`` is the exit status of a run that was stopped; ``torchrun`` has another one.
    """
    while process.poll() is None and not runs.checkpoints("stopped"):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # does nothing to a process that has ended
    status = process.wait()
    saved = [path for path in runs.checkpoints("stopped") if path.name != f"step_{STEPS}.pt"]
    if status == stopped_status and len(saved) == len(runs.checkpoints("stopped")):
        return f"stopped by SIGTERM after {saved[-1].stem}"
    if len(saved) < 2:
        raise RuntimeError(f"the run to be stopped ended with status {status} after {len(saved)} checkpoints")
    for path in runs.checkpoints("stopped")[2:]:
        path.unlink()
    return f"ended with status {status} before it could be stopped; cut back to {saved[1].stem}"


def compare(runs: Runs, first: str, second: str, row: dict[str, Any], result: Result) -> bool:
    """Write a row that says whether two runs ended with equal weights and momentum."""
    ours, theirs = runs.weights(first), runs.weights(second)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    largest = max((float((ours[name] - theirs[name]).abs().max()) for name in different), default=0.0)
    row |= {"steps": STEPS, "tensors": len(ours), "different": len(different), "largest difference": largest}
    result.row("Repeated and resumed runs", {**row, "equal": not different})
    return not different


def main() -> int:
    parser, result = part_arguments(__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry_run else "cuda"
    overrides = [f"train.precision={arguments.precision}", "train.deterministic=true"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        runs = Runs(Path(folder), device, overrides)
        started = {name: runs.start(name) for name in ("first", "second", "stopped")}
        how = stop(runs, started["stopped"])
        resumed = runs.start("stopped", "--resume")
        statuses = [process.wait() for process in (started["first"], started["second"], resumed)]
        if any(statuses):
            result.fault(f"training ended with statuses {statuses}")
            return 1
        row = {"precision": arguments.precision, "settings": " ".join(overrides[1:])}
        equal = [
            compare(runs, "first", "second", {"what": "two runs of one seed", **row}, result),
            compare(runs, "first", "stopped", {"what": how, **row}, result),
        ]
    if not all(equal):
        result.fault("runs that should be equal bit for bit are not")
    return 1 if result.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
