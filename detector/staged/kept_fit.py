"""What a fit that was stopped has kept (``fit.pt``): whether it is what such a fit keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fault_of_fit(kind: str, state: Any, num_classes: int, width: int) -> str | None:
    """Return what is wrong with the state kept by a stage of ``kind`` "svm" or "box_ridge", or None.

    ``state`` is whatever the file holds; the layer that is fitted reads ``width`` features.
    """
    if not isinstance(state, dict) or not isinstance(state.get("key"), str):
        return "it has no key"
    if not _is_time(state.get("seconds", 0.0)):
        return "seconds is no number"
    if not isinstance(state.get("data_fingerprint", {}), dict):
        return "data_fingerprint is no mapping"
    fault = _svm_fault if kind == "svm" else _ridge_fault
    return fault(state, num_classes, width)


def _svm_fault(state: dict[str, Any], num_classes: int, width: int) -> str | None:
    images = state.get("images")
    if not isinstance(images, int) or isinstance(images, bool) or images < 0:
        return "images is no number of images"
    weights, biases = state.get("weights"), state.get("biases")
    if not (_is_float(weights, (num_classes, width)) and _is_float(biases, (num_classes,))):
        return f"weights or biases are not those of {num_classes} classes and {width} features"
    for name, kind in (("added", int), ("converged", bool), ("negatives", Tensor)):
        values = state.get(name)
        if not isinstance(values, list | tuple) or len(values) != num_classes:
            return f"{name} has no entry for each of {num_classes} classes"
        if not all(isinstance(value, kind) for value in values):
            return f"{name} holds values of another type"
    if not all(rows.dim() == 2 and _is_float(rows, (len(rows), width)) for rows in state["negatives"]):
        return "negatives have another number of features than weights"
    return None


def _ridge_fault(state: dict[str, Any], num_classes: int, width: int) -> str | None:
    fits = state.get("fits")
    if not isinstance(fits, dict):
        return "fits is missing"
    for label, fit in fits.items():
        if isinstance(label, bool) or not isinstance(label, int) or not 1 <= label <= num_classes:
            return f"fits has the label {label!r:.40}"
        if not isinstance(fit, list | tuple) or len(fit) != 2:
            return "fits holds other values than pairs"
        if not (_is_float(fit[0], (4, width)) and _is_float(fit[1], (4,))):
            return f"fits holds other values than weights of {width} features and biases"
    return None


def _is_float(value: Any, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.dtype == torch.float32
        and value.shape == shape
        and bool(value.isfinite().all())
    )


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53
