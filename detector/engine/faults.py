"""``faults/step_N.pt`` in a run's folder: the batch of step N, whose loss was not finite, for a replay.

The file is a dict of plain values and tensors: ``format``, ``step``, ``losses`` by name, ``image_ids``,
``batch`` (every field of the batch: images, sizes, regions, labels, targets, ...), ``config`` (the resolved
config, with the seed), ``classes``, ``device``, and ``checkpoint``, the name of the last checkpoint before
the step, or None. The losses of a run are read only when a line of its log is due, so the weights before step
N are no longer there; a replay computes them again from that checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from torch import Tensor

from detector.core.errors import InputError
from detector.core.files import atomic_write
from detector.core.tensor_files import walk
from detector.engine.checkpoint import MAX_CLASSES, ClassName, is_plain, numbered_checkpoints, read_saved

FOLDER = "faults"
FORMAT = 1


class LossNotFinite(InputError):
    """A loss is NaN or infinite; ``step`` is the first step with one, and ``losses`` are its losses."""

    def __init__(
        self, message: str, step: int, losses: Mapping[str, float], image_ids: Sequence[str]
    ) -> None:
        super().__init__(message)
        self.step = step
        self.losses = dict(losses)
        self.image_ids = list(image_ids)


class Fault(BaseModel):
    """The content of a fault file; see the module."""

    model_config = ConfigDict(frozen=True)

    step: Annotated[int, Field(strict=True, ge=1, le=2**53)]
    losses: dict[InstanceOf[str], Annotated[float, Field(strict=True)]]
    image_ids: list[InstanceOf[str]]
    batch: Any
    config: dict[Any, Any]
    classes: Annotated[list[ClassName], Field(max_length=MAX_CLASSES)]
    device: InstanceOf[str]
    checkpoint: Annotated[str, Field(pattern=r"^step_[0-9]{1,15}\.pt$")] | None


def save_fault(
    folder: Path,
    error: LossNotFinite,
    *,
    batch: Any,
    config: Mapping[str, Any],
    classes: Sequence[str],
    device: str,
) -> Path:
    """Write the fault file of a run in ``folder`` and return its path; ``batch`` is that of the error's step.

    Raises:
        InputError: the folder cannot be written.
    """
    before = checkpoints_before(folder, error.step)
    content = {
        "format": FORMAT,
        "step": error.step,
        "losses": error.losses,
        "image_ids": error.image_ids,
        "batch": as_plain(batch),
        "config": dict(config),
        "classes": list(classes),
        "device": device,
        "checkpoint": before[-1].name if before else None,
    }
    path = folder / FOLDER / f"step_{error.step}.pt"
    with atomic_write(path) as file:
        torch.save(content, file)
    return path


def checkpoints_before(folder: Path, step: int) -> list[Path]:
    """Return the numbered checkpoints of the run in ``folder`` from before ``step``, in ascending order."""
    every = numbered_checkpoints(folder / "checkpoints")
    return [path for path in every if int(path.stem.removeprefix("step_")) < step]


def read_fault(path: Path) -> Fault:
    """Read a fault file, without running code from it.

    Raises:
        DamagedCheckpoint: the bytes are not those that were written.
        InputError: missing, or not a fault file; names the key.
    """
    state = read_saved(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT or "batch" not in state:
        raise InputError(
            f"{path}: not the file of a step whose loss was not finite (faults/step_N.pt of a run)"
        )
    try:
        fault = Fault.model_validate({key: state[key] for key in state if key in Fault.model_fields})
    except ValidationError as error:
        key = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
        raise InputError(f"{path}: its {key!r:.80} is missing or of another kind than a run writes") from None
    if not is_plain(fault.config):
        raise InputError(f"{path}: its 'config' is not a config of plain values")
    return fault


def as_plain(value: Any) -> Any:
    """Return a batch as dicts, lists, numbers, texts and tensors on the CPU; classes become dicts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return value


def is_same(first: Any, second: Any) -> bool:
    """Return whether two results of `as_plain` are equal, all tensors bit for bit."""
    pairs = zip(walk(first), walk(second), strict=False)
    if sum(1 for _ in walk(first)) != sum(1 for _ in walk(second)):
        return False
    return all(place == other_place and _equal(one, other) for (place, one), (other_place, other) in pairs)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict | list | tuple | Tensor) or isinstance(other, dict | list | tuple | Tensor):
        return isinstance(one, dict) == isinstance(other, dict) and not isinstance(one, Tensor)
    return bool(one == other)
