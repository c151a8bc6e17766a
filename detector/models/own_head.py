"""Layers of the user in the place of fc6 and fc7, named ``module:Name`` in ``model.head.kind``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from detector.core.errors import InputError
from detector.core.user_code import load_object
from detector.models.heads import BoxHead
from detector.models.own_pool import trial_copy


class OwnHead(BoxHead):
    """A ``module`` of the user that turns pooled features (R, D) into hidden ones (R, ``out_features``)."""

    def __init__(self, module: nn.Module, in_features: int, out_features: int) -> None:
        super().__init__(in_features, ())
        self.layers = nn.Sequential(module)
        self.out_features = out_features


def own_head(name: str, options: Mapping[str, Any], in_features: int, num_classes: int) -> OwnHead:
    """Return the layers that ``name`` makes for ``in_features`` pooled features, after a trial on zeros.

    Raises:
        InputError: naming ``name``, if it fails, or if its module does not turn regions, several or none,
            into rows of ``out_features`` numbers.
    """
    make = load_object(name, "model.head.kind")
    where = f"model.head.kind: {name}"
    try:
        module = make(in_features=in_features, num_classes=num_classes, **options)
        fault = _fault(module, in_features)
    except Exception as error:  # the code is the user's, and may fail in any way
        raise InputError(f"{where} failed: {type(error).__name__}: {error}") from error
    if fault is not None:
        raise InputError(f"{where} {fault}")
    return OwnHead(module, in_features, module.out_features)


def _fault(module: Any, in_features: int) -> str | None:
    """Return what the network could not use about ``module``, or None."""
    if not isinstance(module, nn.Module):
        return f"returned a {type(module).__name__}; it must return a torch.nn.Module"
    width = getattr(module, "out_features", None)
    if type(width) is not int or width < 1:
        return f"has out_features {width!r:.40}; a head needs the number of its hidden features there"
    with torch.device("cpu"), torch.no_grad():
        trial = trial_copy(module)
        for regions in (2, 0):  # an image may have none
            shape = tuple(trial(torch.zeros(regions, in_features)).shape)
            if shape != (regions, width):
                return f"gave {shape} for {regions} regions; expected {(regions, width)}"
    return None
