"""Weights files: read without running code from them, and what input the weights in them expect."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from detector.core.errors import InputError
from detector.core.structures import Normalization
from detector.core.tensor_files import DamagedFile, ForeignContent, read_tensor_file

MAX_TENSORS = 100_000
"""More names than this are refused: the largest published networks have some thousands."""


def normalization(convention: str, pixel_mean: tuple[float, float, float] | None = None) -> Normalization:
    """Return what weights of a ``convention`` expect of their input.

    "torchvision": RGB in [0, 1], ImageNet mean and deviation. "caffe": BGR in 0..255 minus a mean, by
    default the one of Fast R-CNN's release (102.9801, 115.9465, 122.7717).
    """
    match convention:
        case "torchvision":
            return Normalization(
                mean=pixel_mean or (0.485, 0.456, 0.406),
                deviation=(0.229, 0.224, 0.225),
                maximum=255.0,
                bgr=False,
            )
        case "caffe":
            mean = pixel_mean or (102.9801, 115.9465, 122.7717)
            return Normalization(mean=mean, deviation=(1.0, 1.0, 1.0), maximum=1.0, bgr=True)
        case _:
            raise InputError(f"convention {convention!r} is unknown; known: torchvision, caffe")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict without unpickling code.

    Raises:
        InputError: missing, unreadable, or holding something other than named, finite, plain tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such weights file; put a torchvision state dict there, or set "
            "model.backbone.weights to null to start from random weights"
        )
    try:
        state = read_tensor_file(path, legacy=True)
    except OSError as error:
        raise InputError(f"{path}: cannot read the weights file: {error.strerror}") from None
    except DamagedFile as error:
        raise InputError(
            f"{path}: not readable as a state dict of tensors: it is damaged or another kind of file "
            f"({error}); save the network's state_dict() alone"
        ) from None
    except ForeignContent as error:
        raise InputError(
            f"{path}: not readable as a state dict of tensors: {error}; save the network's state_dict() alone"
        ) from None
    if not isinstance(state, dict):
        raise InputError(f"{path}: a weights file holds a state dict, names to tensors, and nothing else")
    _check_tensors(state, path)
    return state


def _check_tensors(state: dict[object, object], path: Path) -> None:
    if {"format", "step", "config", "model"} <= set(state):
        raise InputError(
            f"{path}: a checkpoint of this project, not a published network: name it in train.initial_weights"
        )
    if len(state) > MAX_TENSORS:
        raise InputError(f"{path}: {len(state)} tensors; a weights file over {MAX_TENSORS} is refused")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path}: a weights file holds a state dict, names to tensors, and nothing else; "
                f"{name!r:.80} is a {type(value).__name__}: save the state dict alone"
            )
        if not name.isprintable() or len(name) > 300:
            raise InputError(f"{path}: {name!r:.80} is not a tensor's name; the file is damaged")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise InputError(f"{path}: {name} is sparse, quantized or without values; save plain tensors")
        if not value.isfinite().all():
            raise InputError(f"{path}: {name} has NaN or infinite values; the file is damaged")
