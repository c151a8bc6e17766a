"""Checkpoints: written whole or not at all, read without running code from them.

A checkpoint is a dict of plain values and tensors: ``format``, ``step``, ``config`` (the resolved config
as nested dicts), ``classes``, ``model`` (state dict) and, for resuming, ``optimizer``, ``sampler``,
``random`` (states of torch's generators) and ``best`` (the best figure so far and its step).
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detector.errors import InputError

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically: to a temporary file, flushed to disk, then renamed.

    Raises:
        InputError: the disk is full or the folder cannot be written; an older file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):  # where the folder itself is the trouble there is no such file
            temporary.unlink()
        raise InputError(f"{path}: cannot write the checkpoint: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """Return the system's words: torch covers a full disk with an error about its own bookkeeping."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return (cause.strerror if cause else None) or str(error)


class DamagedCheckpoint(InputError):
    """The bytes of a checkpoint are not those that were written."""


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        DamagedCheckpoint: the file is cut off, or its bytes have changed.
        InputError: missing, or not a checkpoint of this project.
    """
    path = Path(path)
    state = read_saved(path)
    needed = {"format", "step", "config", "classes", "model"}
    if not isinstance(state, dict) or not needed <= set(state) or not isinstance(state["model"], dict):
        raise InputError(f"{path}: not a checkpoint of this project; it needs the keys {sorted(needed)}")
    if state["format"] != FORMAT:
        raise InputError(f"{path}: checkpoint format {state['format']}, this version reads format {FORMAT}")
    return state


def load_resumable(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that a run is to go on from; InputErrors as of ``load_checkpoint``."""
    return load_checkpoint(path)


def read_saved(path: Path) -> Any:
    """Return what `save_checkpoint` wrote to ``path``: plain values and tensors, on the CPU, unchecked.

    Raises:
        DamagedCheckpoint: the file is cut off, or its bytes have changed.
        InputError: missing.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for damaged files
        raise DamagedCheckpoint(
            f"{path}: not readable as a checkpoint (truncated, or another kind of file); "
            "use an earlier step_N.pt of the run"
        ) from None


def load_model_state(model: nn.Module, state: dict[str, Any], source: str) -> None:
    """Copy a checkpoint's weights into ``model``.

    Raises:
        InputError: another architecture or other classes; names the first tensors that differ.
    """
    wanted, found = model.state_dict(), state["model"]
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unknown {name}" for name in found if name not in wanted]
    problems += [
        f"{name} {tuple(found[name].shape)} where {tuple(wanted[name].shape)} is needed"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise InputError(
            f"{source}: a checkpoint of another architecture or other classes than the config's: "
            + "; ".join(problems[:4])
            + more
        )
    model.load_state_dict(found)


def random_states() -> dict[str, Any]:
    """Return the states of torch's global generators, as tensors: the CPU's and, once in use, each GPU's."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # a CPU run touches no GPU
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_random_states(states: dict[str, Any]) -> None:
    """Put torch's global generators back where ``random_states`` found them, those of GPUs by their number.

    The machine may have more GPUs or fewer than the one before.
    """
    torch.set_rng_state(states["torch"])
    for number, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, number)


def numbered_checkpoints(folder: Path) -> list[Path]:
    """Return the ``step_N.pt`` files of ``folder`` by rising N."""
    named = [(re.fullmatch(r"step_(\d+)\.pt", path.name), path) for path in folder.glob("step_*.pt")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]
