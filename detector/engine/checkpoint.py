"""Checkpoints: written completely or not at all, and read without running code from them.

A checkpoint is a dict of plain values and tensors: ``format``, ``step``, ``config`` (the resolved config as
nested dicts), ``classes`` and ``model`` (state dict). A run that averages its weights has ``ema`` too, the
averages as a state dict like ``model``, and these are the ones to use (`weights_to_use`). A detector's has
``score_threshold`` too (chosen on validation images, or None). For resuming it has ``optimizer``, ``random``
(states of torch's generators), ``best`` (the best headline metric so far and its step), ``evaluated`` (the
last step that was evaluated), ``without_gain`` (the evaluations since the best one), ``scaler`` (the loss
scale of float16), ``seconds`` (that the run has taken), ``threads`` (of torch on the CPU) and
``data_fingerprint`` (digests of the images and annotations by role and split).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, Field, InstanceOf, Strict, ValidationError
from torch import Tensor, nn

from detector.core.errors import InputError
from detector.core.files import atomic_write
from detector.core.tensor_files import DamagedFile, ForeignContent, read_tensor_file, walk

FORMAT = 1
MAX_CLASSES = 100_000
MAX_TEXT = 100_000
_PLAIN = (str, int, float, bool, type(None), dict, list, tuple)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``, completely or not at all; it is on the disk when this returns.

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
    for key in ("optimizer", "random", "best", "evaluated"):
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
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file, such as checkpoints/best.pt in a run's folder")
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


def weights_to_use(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a checkpoint for all uses but resuming: the averaged ones, if there are any."""
    weights: dict[str, Tensor] = state["model"] if state.get("ema") is None else state["ema"]
    return weights


def check_model_state(model: nn.Module, state: dict[str, Any], source: str, differences: str = "") -> None:
    """Check that a checkpoint's weights fit ``model``, which may be on the ``meta`` device, without values.

    Raises:
        InputError: the checkpoint has another architecture or other classes; the message gives the
            ``differences`` of the two configs, or names the first tensors that differ.
    """
    for weights in (state["model"], state.get("ema")):
        if weights is not None:
            _check_weights(model.state_dict(), weights, source, differences)


def _check_weights(
    wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor], source: str, differences: str
) -> None:
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
    """Set torch's global generators to states that ``random_states`` returned, GPU by GPU.

    This machine may have more or fewer GPUs than the one that saved them.
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


def check_content(state: Mapping[str, Any], source: str) -> None:
    """Check the values of all keys with a known meaning; other keys may have any value.

    Raises:
        InputError: a wrong value, with ``source``, the key and what belongs there; or a weight that is not
            finite.
    """
    try:
        _Content.model_validate({key: value for key, value in state.items() if key in _Content.model_fields})
    except ValidationError as error:
        key = str(error.errors(include_input=False)[0]["loc"][0])
        wanted = _Content.model_fields[key].description
        raise InputError(
            f"{source}: the checkpoint's {key!r} is not {wanted}; use another checkpoint"
        ) from None
    for name, tensor in [*state["model"].items(), *(state.get("ema") or {}).items()]:
        if not tensor.isfinite().all():
            raise InputError(f"{source}: {name} has NaN or infinite values; use an earlier checkpoint")


def is_plain(value: Any) -> bool:
    """Whether a value consists only of strings, numbers of limited size, lists, and mappings from strings."""
    for _, item in walk(value):
        if not isinstance(item, _PLAIN):
            return False
        if isinstance(item, dict) and not all(isinstance(key, str) and len(key) <= MAX_TEXT for key in item):
            return False
        if (isinstance(item, str) and len(item) > MAX_TEXT) or (isinstance(item, int) and abs(item) >= 2**63):
            return False
    return True


def _if(holds: Callable[[Any], bool]) -> AfterValidator:
    """Return the check that ``holds`` is true of a value."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError
        return value

    return AfterValidator(check)


def _is_generator_state(tensor: Tensor) -> bool:
    """Whether a CPU generator accepts the state, which has a fixed length and layout."""
    try:
        torch.Generator().set_state(tensor)
    except (RuntimeError, TypeError):
        return False
    return True


# Texts are any str: class and file names may have characters that pydantic's str rejects.
Whole = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Dense = Annotated[
    InstanceOf[Tensor],
    _if(lambda t: t.layout == torch.strided and t.device.type == "cpu" and not t.is_quantized),
]
Bytes = Annotated[Dense, _if(lambda tensor: tensor.dtype == torch.uint8 and tensor.dim() == 1)]
GeneratorState = Annotated[Bytes, _if(_is_generator_state)]
TensorName = Annotated[InstanceOf[str], _if(lambda name: name.isprintable() and len(name) <= 300)]
Weight = Annotated[Dense, _if(lambda tensor: not tensor.is_complex())]
ClassName = Annotated[InstanceOf[str], _if(lambda name: 0 < len(name) <= MAX_TEXT)]


class _ParameterGroup(BaseModel):
    params: Annotated[list[Whole], Strict()]


class _Optimizer(BaseModel):
    state: dict[Whole, dict[InstanceOf[str], Dense | None]]
    param_groups: Annotated[list[_ParameterGroup], Strict()]


class _Sampler(BaseModel):  # in checkpoints of earlier versions
    generator: GeneratorState


class _Random(BaseModel):
    torch: GeneratorState
    cuda: Annotated[list[Bytes], Strict()]


class _Scaler(BaseModel):
    scale: Annotated[Number, Field(gt=0)]
    steps: Whole


class _Best(BaseModel):
    metric: Number
    step: Number


_ABSENT: Any = None


class _Content(BaseModel):
    """The keys of a checkpoint, any of which may be absent; descriptions are parts of messages."""

    step: Whole = Field(_ABSENT, description="a whole number of steps")
    config: Annotated[dict[Any, Any], _if(is_plain)] = Field(_ABSENT, description="a config of plain values")
    classes: Annotated[
        list[ClassName], Field(max_length=MAX_CLASSES), _if(lambda names: len(set(names)) == len(names))
    ] = Field(_ABSENT, description="a list of different class names")
    model: dict[TensorName, Weight] = Field(_ABSENT, description="a mapping of names to dense tensors")
    ema: dict[TensorName, Weight] | None = Field(
        _ABSENT, description="a mapping of names to dense tensors, or None"
    )
    scaler: _Scaler | None = Field(_ABSENT, description="a loss scale above 0 and a number of steps, or None")
    without_gain: Whole = Field(_ABSENT, description="a whole number of evaluations")
    optimizer: _Optimizer = Field(_ABSENT, description="the state of an optimizer")
    sampler: _Sampler = Field(_ABSENT, description="the state of the sampler's random generator")
    random: _Random = Field(_ABSENT, description="the states of torch's random generators")
    best: _Best | Annotated[dict[Any, Any], Field(max_length=0)] = Field(
        _ABSENT, description="the best metric and its step"
    )
    evaluated: Whole = Field(_ABSENT, description="a whole number of steps")
    score_threshold: Number | None = Field(_ABSENT, description="a finite number or None")
    seconds: Annotated[Number, Field(ge=0)] = Field(_ABSENT, description="a number of seconds")
    threads: Whole = Field(_ABSENT, description="a whole number of threads")
    data_fingerprint: dict[InstanceOf[str], InstanceOf[str]] = Field(
        _ABSENT, description="a mapping of splits to digests"
    )
