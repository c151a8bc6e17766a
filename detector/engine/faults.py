"""``faults/step_N.pt`` in a run's folder: the batch of step N, whose loss was not finite, for a replay.

The file is a dict of plain values and tensors: ``format``, ``step``, ``losses`` by name, ``image_ids``,
``batches`` (one per part of the step, with every field: images, sizes, regions, labels, targets, ...),
``config`` (the resolved config, with the seed), ``classes``, ``device``, and ``checkpoint``, the name of the
last checkpoint before the step, or None. The losses of a run are read only when a line of its log is due, so
the weights before step N are no longer there; a replay computes them again from that checkpoint.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from torch import Tensor

from detector.core import distributed
from detector.core.errors import InputError, listed, printable
from detector.core.files import atomic_write
from detector.core.tensor_files import walk
from detector.engine.checkpoint import MAX_CLASSES, ClassName, is_plain, numbered_checkpoints, read_saved

FOLDER = "faults"
FORMAT = 1


class LossNotFinite(InputError):
    """A loss is NaN or infinite; ``step`` is the first step with one, and ``losses`` are its losses."""

    in_every_process = True

    def __init__(self, step: int, losses: Mapping[str, float], image_ids: Sequence[str]) -> None:
        self.step = step
        self.losses = dict(losses)
        self.image_ids = list(image_ids)
        self.outcome = ""
        """What became of the batch, as a sentence."""
        super().__init__(step)

    def __str__(self) -> str:
        return printable(
            f"the loss is no longer finite at step {self.step}: {self.losses}; the images were "
            f"{listed(self.image_ids)}. Lower train.learning_rate, lengthen the warm-up, or set "
            f"train.clip_gradient_norm{self.outcome}"
        )


class Fault(BaseModel):
    """The content of a fault file; see the module."""

    model_config = ConfigDict(frozen=True)

    step: Annotated[int, Field(strict=True, ge=1, le=2**53)]
    losses: dict[InstanceOf[str], Annotated[float, Field(strict=True)]]
    image_ids: list[InstanceOf[str]]
    batches: list[Any]
    config: dict[Any, Any]
    classes: Annotated[list[ClassName], Field(max_length=MAX_CLASSES)]
    device: InstanceOf[str]
    checkpoint: Annotated[str, Field(pattern=r"^step_[0-9]{1,15}\.pt$")] | None


class FaultyRun(Protocol):
    """What is kept of a run (`detector.engine.run.Run`) whose loss is not finite."""

    folder: Path
    config: dict[str, Any]
    task: Any
    settings: Any


@contextmanager
def kept(run: FaultyRun) -> Iterator[None]:
    """Write the fault file of a `LossNotFinite` that is raised inside the block, and name it in the error."""
    try:
        yield
    except LossNotFinite as error:
        if distributed.is_main():
            try:
                path = save_fault(run, error)
            except InputError as failure:
                error.outcome = f". Its batch could not be kept: {failure}"
            else:
                command = shlex.join(["python", "tools/replay.py", str(path)])
                error.outcome = f". `{command}` finds the first value that is not finite"
        raise


def save_fault(run: FaultyRun, error: LossNotFinite) -> Path:
    """Make the batches of the error's step again, write the fault file of ``run``, and return its path.

    Raises:
        InputError: the folder cannot be written, or an image can no longer be read.
    """
    # The whole step, not only the share of this process.
    with distributed.alone(), closing(run.task.batches(error.step - 1)) as batches:
        parts = [as_plain(next(batches)) for _ in range(run.settings.accumulate)]
    before = checkpoints_before(run.folder, error.step)
    content = {
        "format": FORMAT,
        "step": error.step,
        "losses": error.losses,
        "image_ids": error.image_ids,
        "batches": parts,
        "config": run.config,
        "classes": list(run.task.classes),
        "device": str(run.task.device),
        "checkpoint": before[-1].name if before else None,
    }
    path = run.folder / FOLDER / f"step_{error.step}.pt"
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
    found = state.get("format") if isinstance(state, dict) else None
    if type(found) is not int or found != FORMAT:
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
    for kind in (dict, list | tuple):  # their content is compared by itself
        if isinstance(one, kind) or isinstance(other, kind):
            return isinstance(one, kind) and isinstance(other, kind)
    return type(one) is type(other) and bool(one == other)
