"""Checkpoints: written completely or not at all, and read without running code from them.

A checkpoint is a dict of plain values and tensors: ``format``, ``step``, ``config`` (the resolved config
as nested dicts), ``classes`` and ``model`` (state dict). A detector's has ``score_threshold`` too (chosen on
validation images, or None). For resuming it has ``optimizer``, ``sampler``, ``random`` (states of torch's
generators), ``best`` (the best headline metric so far and its step), ``evaluated`` (the last step that was
evaluated), ``seconds`` (that the run has taken), ``threads`` (of torch on the CPU) and ``data_fingerprint``
(digests of the images and annotations by role and split).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detector.core.errors import InputError
from detector.core.files import atomic_write
from detector.core.tensor_files import DamagedFile, ForeignContent, read_tensor_file
from detector.engine.checkpoint_content import check_content

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` whole or not at all; it is on the disk when this returns.

    Raises:
        InputError: the disk is full or the folder cannot be written; an older file stays as it was.
    """
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, **state}, file)


class DamagedCheckpoint(InputError):
    """The bytes of a checkpoint are not those that were written: truncated, or with a wrong checksum."""


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, and add its path for messages under the key ``file``.

    Its checksums and the values of all known keys are checked; no other file that it names is opened.

    Raises:
        DamagedCheckpoint: the file is truncated or its bytes have changed.
        InputError: missing, or not a checkpoint of this project.
    """
    path = Path(path)
    state = read_saved(path)
    needed = {"format", "step", "config", "classes", "model"}
    if not isinstance(state, dict) or not needed <= set(state) or not isinstance(state["model"], dict):
        raise InputError(f"{path}: not a checkpoint of this project; it needs the keys {sorted(needed)}")
    if type(state["format"]) is not int or state["format"] != FORMAT:
        raise InputError(
            f"{path}: checkpoint format {state['format']!r:.80}, this version reads format {FORMAT}"
        )
    check_content(state, str(path))
    state["file"] = str(path)
    return state


def load_resumable(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint from which a run is to be resumed.

    Raises:
        InputError: as ``load_checkpoint``, and for a checkpoint that only holds weights; names the key.
    """
    state = load_checkpoint(path)
    detects = state["config"].get("task", "detection") == "detection"
    for key in ("optimizer", "random", "best", "evaluated", *(["sampler"] if detects else [])):
        if key not in state:
            raise InputError(
                f"{path}: the checkpoint has no {key!r}, so a run cannot be resumed from it; a step_N.pt "
                "that a training run wrote has it. To take only the weights, name it in "
                "train.initial_weights of a new run"
            )
    return state


def read_saved(path: Path) -> Any:
    """Return what `save_checkpoint` wrote to ``path``: plain values and tensors, on the CPU, unchecked.

    Raises:
        DamagedCheckpoint: the file is truncated or its bytes have changed.
        InputError: the file is missing, or holds more than plain values and tensors.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        return read_tensor_file(path)
    except DamagedFile as error:
        raise DamagedCheckpoint(
            f"{path}: not readable as a checkpoint (truncated, damaged, or another kind of file: {error}); "
            "use an earlier step_N.pt of the run"
        ) from None
    except ForeignContent as error:
        raise InputError(f"{path}: not readable as a checkpoint of this project: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read the checkpoint: {error.strerror}") from None


def check_model_state(model: nn.Module, state: dict[str, Any], source: str, differences: str = "") -> None:
    """Check that a checkpoint's weights fit ``model``, which may be on the ``meta`` device, without values.

    Raises:
        InputError: the checkpoint has another architecture or other classes; the message gives the
            ``differences`` of the two configs, or names the first tensors that differ.
    """
    wanted, stored = model.state_dict(), state["model"]
    problems = [f"missing {name}" for name in wanted if name not in stored]
    problems += [f"unknown {name}" for name in stored if name not in wanted]
    problems += [
        f"{name} {tuple(stored[name].shape)} where {tuple(wanted[name].shape)} is needed"
        for name in wanted
        if name in stored and stored[name].shape != wanted[name].shape
    ]
    if problems and differences:
        raise InputError(
            f"{source}: {differences}; give the config of its run, which is in config.yaml there"
        )
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise InputError(
            f"{source}: a checkpoint of another architecture or other classes than the config's: "
            + "; ".join(problems[:4])
            + more
        )
    for name, tensor in stored.items():
        if tensor.dtype != wanted[name].dtype:
            raise InputError(f"{source}: {name} has the type {tensor.dtype}, {wanted[name].dtype} is needed")


def random_states() -> dict[str, Any]:
    """Return the states of torch's global generators, as tensors: the CPU's and, once in use, each GPU's."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # a CPU run touches no GPU
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_random_states(states: dict[str, Any]) -> None:
    """Set torch's global generators to states that ``random_states`` returned, those of GPUs by number.

    The machine may have more or fewer GPUs than the one before.
    """
    torch.set_rng_state(states["torch"])
    for number, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        try:
            torch.cuda.set_rng_state(state, number)
        except (RuntimeError, TypeError):
            raise InputError(
                "the checkpoint's 'random' has a state that does not belong to a GPU's generator; use another"
                " checkpoint"
            ) from None


def numbered_checkpoints(folder: Path) -> list[Path]:
    """Return the ``step_N.pt`` files of ``folder`` in ascending order of N."""
    named = [(re.fullmatch(r"step_(\d+)\.pt", path.name), path) for path in folder.glob("step_*.pt")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]
