"""Published weights: which tensors of a state dict go where, and what input they expect."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from detector.errors import InputError
from detector.models.backbones import Backbone
from detector.structures import Normalization

# The classifier's fully connected layers in torchvision's VGG16 and AlexNet, which become fc6 and fc7.
_HEAD_KEYS = {
    "vgg16": {"classifier.0": "fc6", "classifier.3": "fc7"},
    "alexnet": {"classifier.1": "fc6", "classifier.4": "fc7"},
}


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
        InputError: missing, unreadable, or holding something other than named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such weights file; put a torchvision state dict there, or set "
            "model.backbone.weights to null to start from random weights"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: not readable as a state dict of tensors: {first}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: a weights file holds a state dict, names to tensors, and nothing else")
    return state


def load_backbone(backbone: Backbone, state: dict[str, Tensor], source: str) -> None:
    """Copy a published network's tensors into ``backbone``.

    ``state`` may hold more (the classifier, later stages); it must hold every tensor of the backbone.

    Raises:
        InputError: naming missing tensors and those of another shape.
    """
    wanted = backbone.features.state_dict()
    found = {name: state[key] for name in wanted if (key := _published_name(name, state)) is not None}
    _refuse_mismatch(wanted, found, source)
    backbone.features.load_state_dict(found)


def load_head(layers: nn.Module, state: dict[str, Tensor], family: str, source: str) -> None:
    """Copy fc6 and, where ``layers`` has it, fc7 of a published VGG16 or AlexNet into ``layers``.

    The flattened order is the same, (channel, row, column), when the pool's output size is the
    published one: 7 for VGG16, 6 for AlexNet.
    """
    if family not in _HEAD_KEYS:
        raise InputError(f"model.head.weights: {family} has no fc6 and fc7; set it to false")
    wanted = layers.state_dict()
    found = {
        f"{ours}.{kind}": state[f"{theirs}.{kind}"]
        for theirs, ours in _HEAD_KEYS[family].items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in state and f"{ours}.{kind}" in wanted
    }
    _refuse_mismatch(wanted, found, source)
    layers.load_state_dict(found)


def _published_name(name: str, state: dict[str, Tensor]) -> str | None:
    """VGG, AlexNet and SqueezeNet say ``features.0.weight`` for our ``0.weight``; ResNet has no prefix."""
    return next((key for key in (f"features.{name}", name) if key in state), None)


def _refuse_mismatch(wanted: dict[str, Tensor], found: dict[str, Tensor], source: str) -> None:
    missing = [name for name in wanted if name not in found]
    other = [
        f"{name} {tuple(found[name].shape)} where {tuple(wanted[name].shape)} is needed"
        for name in found
        if name in wanted and found[name].shape != wanted[name].shape
    ]
    if missing or other:
        problems = [f"missing {name}" for name in missing] + other
        listed = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise InputError(f"{source}: does not fit the configured network: {listed}")
