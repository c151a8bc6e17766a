"""The closing report of a training: where it ran, what it leaves, and how to use that."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from detector.core.progress import note
from detector.engine.checkpoint import load_checkpoint


def report_end(folder: Path, checkpoint: Path, device: str) -> None:
    """Say which device a finished run used, which ``checkpoint`` is its best, and the command that uses it.

    ``best.pt`` may be of an earlier step than the last, with a score threshold of its own.
    """
    photographs = shlex.join(
        [
            *("python", "tools/demo.py", "--checkpoint", str(checkpoint), "photos/"),
            *("--output", str(folder / "photos")),
        ]
    )
    held = describe_checkpoint(load_checkpoint(checkpoint))
    note(f"trained on {describe_device(device)}; the checkpoint to use is {checkpoint}, {held}")
    note(f"run it on photographs: {photographs}")


def describe_checkpoint(state: Mapping[str, Any]) -> str:
    """Return a checkpoint's step and, of a detector's, its score threshold."""
    step = f"of step {state['step']}"
    if state["config"].get("task") == "classification":
        return step
    threshold = state.get("score_threshold")
    return (
        f"{step}, without a score threshold"
        if threshold is None
        else f"{step}, score threshold {threshold:.3f}"
    )


def describe_device(device: str) -> str:
    """Return "cpu", or a GPU's name beside its number."""
    if torch.device(device).type != "cuda":
        return device
    return f"{device} ({torch.cuda.get_device_name(device)})"
