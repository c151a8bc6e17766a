"""The values that a checkpoint's keys may have; each is checked before anything uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, Field, InstanceOf, Strict, ValidationError
from torch import Tensor

from detector.core.errors import InputError
from detector.core.tensor_files import walk

MAX_CLASSES = 100_000
MAX_TEXT = 100_000
_PLAIN = (str, int, float, bool, type(None), dict, list, tuple)


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
    for name, tensor in state["model"].items():
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


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def _is_generator_state(tensor: Tensor) -> bool:
    """Whether a CPU generator accepts the state, which has a fixed length and layout."""
    try:
        torch.Generator().set_state(tensor)
    except (RuntimeError, TypeError):
        return False
    return True


# Texts are any str: class and file names may have characters that pydantic's str does not take.
Whole = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Dense = Annotated[InstanceOf[Tensor], _if(_is_dense)]
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


class _Sampler(BaseModel):
    generator: GeneratorState


class _Random(BaseModel):
    torch: GeneratorState
    cuda: Annotated[list[Bytes], Strict()]


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
