"""Weights files of published networks: where they are, reading them, and the input they expect.

Files are read without running code from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detector.core.catalogue import CHECKSUM_IN_NAME, PublishedFile, find_weights, how_to_get
from detector.core.download import Unavailable, fault_of, fetch
from detector.core.errors import InputError
from detector.core.libraries import timm_library
from detector.core.safetensors_file import read_safetensors
from detector.core.structures import Normalization
from detector.core.tensor_files import DamagedFile, ForeignContent, read_tensor_file

MAX_TENSORS = 100_000
"""A file with more names is refused: the largest published networks have some thousands."""
DEFAULT = "default"
"""The value of ``model.backbone.weights`` that asks for ImageNet's weights of the backbone."""
WEIGHTS_FOLDER = Path("data/weights")

_OF_TORCHVISION = ("alexnet", "resnet18", "resnet50", "squeezenet1_0", "vgg16")
"""This project's own networks with published weights, under torchvision's names for them."""
_OTHER_FILES = {"squeezenet1_0": ("squeezenet1_0-dc_tvnorm-fba6d0e6.pth",)}
_HUB = "https://huggingface.co/{repository}/resolve/main/{file}"


Channels = tuple[float, float, float]


def normalization(
    convention: str, pixel_mean: Channels | None = None, pixel_std: Channels | None = None
) -> Normalization:
    """Return the input normalisation that weights of a ``convention`` expect.

    "torchvision": RGB in [0, 1], ImageNet mean and standard deviation. "caffe": BGR in 0..255 minus a mean,
    by default that of Fast R-CNN's release (102.9801, 115.9465, 122.7717). ``pixel_mean`` replaces the mean,
    ``pixel_std`` the deviation by which the difference is divided, both in the same order and range.

    Raises:
        InputError: an unknown convention.
    """
    match convention:
        case "torchvision":
            mean = pixel_mean or (0.485, 0.456, 0.406)
            deviation = pixel_std or (0.229, 0.224, 0.225)
            return Normalization(mean=mean, deviation=deviation, maximum=255.0, bgr=False)
        case "caffe":
            mean = pixel_mean or (102.9801, 115.9465, 122.7717)
            deviation = pixel_std or (1.0, 1.0, 1.0)
            return Normalization(mean=mean, deviation=deviation, maximum=1.0, bgr=True)
        case _:
            raise InputError(f"convention {convention!r} is unknown; known: torchvision, caffe")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict without unpickling code.

    Raises:
        InputError: the file is missing, cannot be read, or holds anything but named, finite, plain tensors.
    """
    path = Path(path)
    if not path.is_file():
        how = how_to_get(path)
        raise InputError(
            f"{path}: no such weights file{how}; {'or ' if how else ''}put a state dict there, or set "
            "model.backbone.weights to null to start from random weights"
        )
    try:
        safe = path.suffix == ".safetensors"
        state: Any = read_safetensors(path) if safe else read_tensor_file(path, legacy=True)
    except OSError as error:
        raise InputError(f"{path}: cannot read the weights file: {error.strerror}") from None
    except DamagedFile as error:
        raise InputError(
            f"{path}: not readable as a state dict of tensors: it is damaged or another kind of file "
            f"({error}); save only the network's state_dict()"
        ) from None
    except ForeignContent as error:
        raise InputError(
            f"{path}: not readable as a state dict of tensors: {error}; save only the network's state_dict()"
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
                f"{name!r:.80} is a {type(value).__name__}: save only the state dict"
            )
        if not name.isprintable() or len(name) > 300:
            raise InputError(f"{path}: {name!r:.80} is not a tensor's name; the file is damaged")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise InputError(f"{path}: {name} is sparse, quantized or without values; save plain tensors")
        if not value.isfinite().all():
            raise InputError(f"{path}: {name} has NaN or infinite values; the file is damaged")


class Download(NamedTuple):
    """Published weights: their address, and the names under which they may lie in a folder, the first as
    they are downloaded."""

    url: str
    names: tuple[str, ...]


def published(backbone: str) -> Download:
    """Return where the default weights of a backbone are published, and their possible file names.

    torchvision's are IMAGENET1K_V1, or the default ones of a network that has no others. timm's are those of
    the network's ``pretrained_cfg``.

    Raises:
        InputError: a backbone without default weights.
    """
    library, _, own = backbone.rpartition(":")
    if library == "timm":
        return _published_by_timm(own)
    if library == "torchvision" or backbone in _OF_TORCHVISION:
        file = find_weights(own).file
        return Download(file.urls[0], (file.name, *_OTHER_FILES.get(own, ()), *_plain_names(own)))
    raise InputError(
        f"{backbone} has no default weights; known: {', '.join(_OF_TORCHVISION)}, and the networks of "
        "torchvision and timm"
    )


def _plain_names(name: str) -> tuple[str, str]:
    return f"{name}.pth", f"{name}.safetensors"


def _published_by_timm(name: str) -> Download:
    chosen = timm_library().get_pretrained_cfg(name)
    if chosen is None or not (chosen.url or chosen.hf_hub_id):
        raise InputError(f"timm:{name} has no default weights in timm; set model.backbone.weights to a file")
    if CHECKSUM_IN_NAME.search(chosen.url or ""):
        return Download(chosen.url, (chosen.url.rpartition("/")[2], *_plain_names(name)))
    if not chosen.hf_hub_id:
        return Download(chosen.url, (*_plain_names(name), chosen.url.rpartition("/")[2]))
    tag = f"{name}.{chosen.tag}" if chosen.tag else name
    repository = f"{chosen.hf_hub_id}{tag}" if chosen.hf_hub_id.endswith("/") else chosen.hf_hub_id
    file = chosen.hf_hub_filename or "model.safetensors"
    ending = Path(file).suffix
    return Download(_HUB.format(repository=repository, file=file), (f"{tag}{ending}", *_plain_names(name)))


def library_normalization(backbone: str) -> tuple[Channels | None, Channels | None]:
    """Return mean and deviation, RGB in [0, 1], of what timm's weights expect; None for other networks."""
    library, _, own = backbone.partition(":")
    chosen = timm_library().get_pretrained_cfg(own) if library == "timm" else None
    return (None, None) if chosen is None else (chosen.mean, chosen.std)


def default_file_names(backbone: str) -> list[str]:
    """Return the possible names of the file of a backbone's default weights; the first is the published one.

    Raises:
        InputError: a backbone without default weights.
    """
    return list(published(backbone).names)


def default_weights(backbone: str, folder: Path = WEIGHTS_FOLDER) -> Path:
    """Return the first of `default_file_names` that is in ``folder``; download it if there is none.

    If the name of the file contains a checksum, the file must have it.

    Raises:
        InputError: the checksum differs, or there is no file and it cannot be downloaded.
    """
    url, names = published(backbone)
    for path in (folder / name for name in names):
        if path.is_file():
            _compare_checksum(path)
            return path
    try:
        return fetch(_published_file(names[0], url), folder / names[0])
    except Unavailable as error:
        raise InputError(
            f"model.backbone.weights: default: none of {', '.join(names)} is in {folder}, and the download "
            f"failed: {error}; or set model.backbone.weights to a file of your own, or to null for random "
            "weights"
        ) from None


def _published_file(name: str, url: str) -> PublishedFile:
    """Return a file with the checksum in its ``name``.

    Files of the Hugging Face hub have none, and are checked by their content when they are read.
    """
    digits = CHECKSUM_IN_NAME.search(name)
    return PublishedFile(name=name, urls=(url,), page=url, checksum=f"sha256:{digits[1]}" if digits else None)


def _compare_checksum(path: Path) -> None:
    try:
        fault = fault_of(_published_file(path.name, ""), path)
    except OSError as error:
        raise InputError(f"{path}: cannot read the weights: {error.strerror}") from None
    if fault is not None:
        raise InputError(
            f"{path}: the file is damaged: {fault}, as its name says; remove it, and it is downloaded again, "
            "or replace it"
        )
