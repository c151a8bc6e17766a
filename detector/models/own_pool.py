"""A region pool of the user, named ``module:Name`` in ``model.pool.kind``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from detector.core.errors import InputError
from detector.core.user_code import load_object
from detector.models.detector import RegionPool


def own_pool(
    name: str, options: Mapping[str, Any], channels: int, strides: Sequence[float], centers: Sequence[float]
) -> RegionPool:
    """Return the pool that ``name`` makes for maps of ``channels``, after a trial on a map of zeros.

    ``strides`` and ``centers`` (of the first cell, in 0-based pixels of the network's input) are per level.

    Raises:
        InputError: naming ``name``, if it fails, or if its pool does not turn 2 regions into 2 rows of
            ``out_features`` numbers.
    """
    make = load_object(name, "model.pool.kind")
    where = f"model.pool.kind: {name}"
    try:
        pool = make(channels=channels, strides=tuple(strides), centers=tuple(centers), **options)
        fault = _fault(pool, channels, strides)
    except Exception as error:  # the code is the user's, and may fail in any way
        raise InputError(f"{where} failed: {type(error).__name__}: {error}") from error
    if fault is not None:
        raise InputError(f"{where} {fault}")
    checked: RegionPool = pool
    return checked


def _fault(pool: Any, channels: int, strides: Sequence[float]) -> str | None:
    """Return what the network could not use about ``pool``, or None."""
    if not isinstance(pool, nn.Module):
        return f"returned a {type(pool).__name__}; it must return a torch.nn.Module"
    for needed in ("out_features", "windows"):
        if not hasattr(pool, needed):
            return f"has no {needed}; a region pool needs out_features and windows"
    with torch.device("cpu"), torch.no_grad():
        trial = trial_copy(pool)
        maps = [torch.zeros(1, channels, 8, 8) for _ in strides]
        side = 8.0 * strides[0]
        rois = torch.tensor([[0.0, 0.0, 0.0, side, side], [0.0, 1.0, 1.0, side / 2, side / 2]])
        shape = tuple(trial(maps, rois, torch.zeros(2, dtype=torch.int64), None).shape)
    expected = (2, pool.out_features)
    return None if shape == expected else f"gave {shape} for 2 regions; expected {expected}"


def trial_copy(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` on the CPU that computes the same shapes, in evaluation mode.

    A trial with it changes neither weights nor statistics of batches. Its weights are arbitrary where
    ``module`` has none yet (the device "meta").
    """
    trial = deepcopy(module).eval()
    if any(part.is_meta for part in (*trial.parameters(), *trial.buffers())):
        trial = trial.to_empty(device="cpu")
    return trial
