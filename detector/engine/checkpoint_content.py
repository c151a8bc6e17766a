"""The values that a checkpoint's keys may have; each is checked before anything uses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from detector.core.errors import InputError
from detector.core.tensor_files import walk

MAX_CLASSES = 100_000
MAX_TEXT = 100_000
_STEPS = 2**53
_PLAIN = (str, int, float, bool, type(None), dict, list, tuple)


def check_content(state: Mapping[str, Any], source: str) -> None:
    """Check the values of all keys with a known meaning; other keys may have any value.

    Raises:
        InputError: a wrong value, with ``source``, the key and what belongs there; or a weight that is not
            finite.
    """
    for key, (wanted, holds) in _KEYS.items():
        if key in state and not holds(state[key]):
            raise InputError(f"{source}: the checkpoint's {key!r} is not {wanted}; use another checkpoint")
    for name, tensor in state["model"].items():
        if not tensor.isfinite().all():
            raise InputError(f"{source}: {name} has NaN or infinite values; use an earlier checkpoint")


def check_resumable(state: Mapping[str, Any], source: str) -> None:
    """Check that a run can be resumed from the checkpoint.

    Raises:
        InputError: a key is missing; names it and ``source``.
    """
    needed = ["optimizer", "random", "best", "evaluated"]
    if state["config"].get("task", "detection") == "detection":
        needed.append("sampler")
    for key in needed:
        if key not in state:
            raise InputError(
                f"{source}: the checkpoint has no {key!r}, so a run cannot be resumed from it; a step_N.pt "
                "that a training run wrote has it. To take only the weights, name it in "
                "train.initial_weights of a new run"
            )


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


def _is_whole(value: Any, most: int = _STEPS) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _are_classes(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) <= MAX_CLASSES
        and all(isinstance(name, str) and 0 < len(name) <= MAX_TEXT for name in value)
        and len(set(value)) == len(value)
    )


def _are_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_name(name) and _is_dense(tensor) and not tensor.is_complex() for name, tensor in value.items()
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 300


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, dict) or not {"state", "param_groups"} <= set(value):
        return False
    groups, momenta = value["param_groups"], value["state"]
    if not isinstance(groups, list) or not isinstance(momenta, dict):
        return False
    if not all(isinstance(group, dict) and _are_numbers(group.get("params")) for group in groups):
        return False
    return all(
        _is_whole(number)
        and isinstance(entry, dict)
        and all(isinstance(name, str) and (item is None or _is_dense(item)) for name, item in entry.items())
        for number, entry in momenta.items()
    )


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


def _is_sampler(value: Any) -> bool:
    return isinstance(value, dict) and _is_generator_state(value.get("generator"))


def _is_generator_state(value: Any) -> bool:
    """Whether a CPU generator accepts the state, which has a fixed length and layout."""
    if not _is_dense(value) or value.dtype != torch.uint8:
        return False
    try:
        torch.Generator().set_state(value)
    except (RuntimeError, TypeError):
        return False
    return True


def _are_random_states(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("cuda"), list):
        return False
    on_cuda = all(
        _is_dense(state) and state.dtype == torch.uint8 and state.dim() == 1 for state in value["cuda"]
    )
    return on_cuda and _is_generator_state(value.get("torch"))


def _is_best(value: Any) -> bool:
    """Whether this is empty, as before the first evaluation, or the best metric and its step."""
    return isinstance(value, dict) and (
        not value or all(_is_finite(value.get(name)) for name in ("metric", "step"))
    )


def _are_fingerprints(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(digest, str) for name, digest in value.items()
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "step": ("a whole number of steps", _is_whole),
    "config": (
        "a config of plain values",
        lambda value: isinstance(value, dict) and is_plain(value),
    ),
    "classes": ("a list of different class names", _are_classes),
    "model": ("a mapping of names to dense tensors", _are_weights),
    "optimizer": ("the state of an optimizer", _is_optimizer),
    "sampler": ("the state of the sampler's random generator", _is_sampler),
    "random": ("the states of torch's random generators", _are_random_states),
    "best": ("the best metric and its step", _is_best),
    "evaluated": ("a whole number of steps", _is_whole),
    "score_threshold": ("a finite number or None", lambda value: value is None or _is_finite(value)),
    "seconds": ("a number of seconds", lambda value: _is_finite(value) and value >= 0),
    "threads": ("a whole number of threads", _is_whole),
    "data_fingerprint": ("a mapping of splits to digests", _are_fingerprints),
}
