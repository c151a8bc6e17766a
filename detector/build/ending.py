"""The last words of a training: where it ran, what it leaves, and how to use that."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from detector.progress import note


def report_end(folder: Path, checkpoint: Path, device: str) -> None:
    """Say which device a finished run used, where its ``checkpoint`` is, and the command that uses it."""
    photographs = shlex.join(
        [
            *("python", "tools/demo.py", "--checkpoint", str(checkpoint), "photos/"),
            *("--output", str(folder / "photos")),
        ]
    )
    note(f"trained on {describe_device(device)}; the checkpoint to use is {checkpoint}")
    note(f"run it on photographs: {photographs}")


def describe_device(device: str) -> str:
    """Return "cpu", or a GPU's name beside its number."""
    if torch.device(device).type != "cuda":
        return device
    return f"{device} ({torch.cuda.get_device_name(device)})"
