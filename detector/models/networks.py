"""Networks of torchvision, of timm and of the user, opened at their blocks.

`open_network` returns the network itself, so that its parameters keep the names under which its library
publishes them, with the names of its blocks and with what runs it up to some of them.

In torchvision's convolutional networks a block begins with the pooling before its convolutions and ends with
the normalisation and activation after them. Vision transformers give their patch tokens as a map: positional
embeddings are interpolated to the input's size, class and register tokens are left out, and the tokens of the
last block pass the network's final normalisation.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from detector.core.errors import InputError
from detector.core.libraries import check_network_name, timm_library
from detector.core.user_code import load_object


class Runner(Protocol):
    """Runs a network on images (N, 3, H, W) and returns the maps (N, C, h, w) of the ``wanted`` blocks."""

    def __call__(self, network: nn.Module, images: Tensor, wanted: Sequence[str]) -> list[Tensor]: ...


@dataclass(frozen=True)
class OpenNetwork:
    """A network, the modules of each of its blocks, in order, and what runs it.

    ``blocks`` gives, for each block, the paths of the modules that belong to it. Modules that come before all
    of them (patch and positional embeddings) belong to the first.
    """

    network: nn.Module
    blocks: dict[str, tuple[str, ...]]
    run: Runner

    def cut(self, last: str) -> OpenNetwork:
        """Return this network without the parts that only blocks after ``last`` need, which are deleted."""
        names = list(self.blocks)
        kept = names[: names.index(last) + 1]
        if isinstance(self.run, _TimmRunner):
            self.run.prune(self.network, last)
        else:
            _keep_only(self.network, [path for name in kept for path in self.blocks[name]])
        return OpenNetwork(self.network, {name: self.blocks[name] for name in kept}, self.run)


def is_library_name(name: str) -> bool:
    """Return whether ``name`` is ``torchvision:NAME``, ``timm:NAME`` or a user's ``module:function``."""
    return ":" in name


def open_network(name: str) -> OpenNetwork:
    """Return the whole network ``name`` with random weights: `is_library_name` is true of it.

    Raises:
        InputError: no such network; timm is not installed; a function that gives no network; or a network
            whose parts do not run one after another.
    """
    check_network_name(name)
    library, _, own = name.partition(":")
    match library:
        case "torchvision":
            return _open_torchvision(own)
        case "timm":
            return _open_timm(own)
        case _:
            return _open_own(name)


def published_names(name: str) -> dict[str, Tensor]:
    """Return the state dict of the whole network as its library publishes it, on the meta device."""
    library, _, own = name.partition(":")
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        if library == "torchvision":
            extra = {"init_weights": False} if own in _WITH_AUXILIARY else {}
            return dict(torchvision.models.get_model(own, weights=None, **extra).state_dict())
        if library == "timm":
            return dict(timm_library().create_model(own).state_dict())
        return dict(open_network(name).network.to("meta").state_dict())


# torchvision

_WITH_AUXILIARY = ("googlenet", "inception_v3")
_CONTAINERS = ("features", "layers", "trunk_output", "blocks")
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_HEADS = ("avgpool", "classifier", "fc", "head", "heads", "dropout", "flatten", "permute")


def _open_torchvision(name: str) -> OpenNetwork:
    extra: dict[str, Any] = {"init_weights": False, "aux_logits": False} if name in _WITH_AUXILIARY else {}
    network = torchvision.models.get_model(name, weights=None, **extra)
    if isinstance(network, torchvision.models.VisionTransformer):
        layers = [f"encoder.layers.{layer}" for layer, _ in network.encoder.layers.named_children()]
        front: tuple[str, ...] = ("conv_proj", "encoder.dropout")
        blocks = {
            layer: ((*front, layer) if number == 0 else (layer,)) for number, layer in enumerate(layers)
        }
        blocks[layers[-1]] += ("encoder.ln",)
        return OpenNetwork(network, blocks, _run_vision_transformer)
    blocks = _grouped(network, _parts(network))
    channels_last = isinstance(network, torchvision.models.SwinTransformer)
    # The published weights of these two expect pixels in [-1, 1] and convert ImageNet's normalisation.
    return OpenNetwork(network, blocks, _ChainRunner(blocks, channels_last, name in _WITH_AUXILIARY))


def _parts(network: nn.Module) -> list[str]:
    """Return the paths of the parts of a network that run one after another, up to its classifier."""
    paths: list[str] = []
    for name, child in network.named_children():
        if name in _HEADS or name.casefold().startswith("aux"):
            continue
        if name in _CONTAINERS:
            paths += [f"{name}.{part}" for part, _ in child.named_children()]
        else:
            paths.append(name)
    return paths


def _grouped(network: nn.Module, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the blocks of a chain of parts, each named after its first part with convolutions."""
    blocks: dict[str, tuple[str, ...]] = {}
    pooling: tuple[str, ...] = ()
    for path in paths:
        part = network.get_submodule(path)
        if isinstance(part, _POOLS):
            pooling += (path,)
        elif not any(isinstance(inner, nn.Conv2d | nn.Linear) for inner in part.modules()) and blocks:
            blocks[list(blocks)[-1]] += (path,)
        else:
            blocks[path] = (*pooling, path)
            pooling = ()
    return blocks


@dataclass(frozen=True)
class _ChainRunner:
    """Runs the parts of a network one after another; ``channels_last`` parts give (N, h, w, C)."""

    blocks: dict[str, tuple[str, ...]]
    channels_last: bool = False
    from_imagenet: bool = False

    def __call__(self, network: nn.Module, images: Tensor, wanted: Sequence[str]) -> list[Tensor]:
        if self.from_imagenet:
            images = _within_one(images)
        found: list[Tensor] = []
        for name, paths in self.blocks.items():
            for path in paths:
                images = network.get_submodule(path)(images)
            if name in wanted:
                found.append(images.permute(0, 3, 1, 2).contiguous() if self.channels_last else images)
            if len(found) == len(wanted):
                break
        return found


def _within_one(images: Tensor) -> Tensor:
    """Return pixels in [-1, 1] for pixels normalised with ImageNet's mean and deviation."""
    scaled = []
    for channel, (mean, deviation) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        scaled.append(images[:, channel : channel + 1] * (deviation / 0.5) + (mean - 0.5) / 0.5)
    return torch.cat(scaled, dim=1)


def _run_vision_transformer(network: nn.Module, images: Tensor, wanted: Sequence[str]) -> list[Tensor]:
    """Run torchvision's vision transformer on images of whole patches and return patch tokens as maps."""
    side = int(network.patch_size)  # type: ignore[arg-type]  # torch types attributes as modules
    if images.shape[-2] % side or images.shape[-1] % side:
        raise ValueError(f"{tuple(images.shape)} is not divided into patches of {side} pixels")
    patches = network.get_submodule("conv_proj")(images)
    encoder = network.get_submodule("encoder")
    grid = patches.shape[-2], patches.shape[-1]
    tokens = patches.flatten(2).transpose(1, 2)
    start = network.get_parameter("class_token").expand(len(tokens), -1, -1)
    places = positions(encoder.get_parameter("pos_embedding"), grid, extra=1)
    tokens = encoder.get_submodule("dropout")(torch.cat((start, tokens), dim=1) + places)
    found: list[Tensor] = []
    for name, layer in encoder.get_submodule("layers").named_children():
        tokens = layer(tokens)
        if f"encoder.layers.{name}" in wanted:
            last = len(found) == len(wanted) - 1
            normed = encoder.get_submodule("ln")(tokens) if last and hasattr(encoder, "ln") else tokens
            found.append(normed[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous())
    return found


def positions(embedding: Tensor, grid: tuple[int, int], *, extra: int) -> Tensor:
    """Return positional embeddings (1, extra + h * w, C) for a ``grid`` (h, w), from those of a square.

    The first ``extra`` belong to class and register tokens and stay. The others are interpolated (bicubic and
    smoothed, as timm does) unless the grid is the square itself.
    """
    own = embedding.shape[1] - extra
    side = round(own**0.5)
    if (side, side) == grid:
        return embedding
    square = embedding[:, extra:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resized = functional.interpolate(square.float(), grid, mode="bicubic", antialias=True)
    return torch.cat((embedding[:, :extra], resized.to(embedding.dtype).flatten(2).transpose(1, 2)), dim=1)


# timm


def _open_timm(name: str) -> OpenNetwork:
    network: Any = _create_timm(name)
    if not hasattr(network, "forward_intermediates"):
        raise InputError(
            f"model.backbone.name: timm's {name} cannot give the maps of its blocks; take another"
        )
    blocks = [entry["module"] for entry in list(network.feature_info)]
    return OpenNetwork(network, {block: (block,) for block in blocks}, _TimmRunner(tuple(blocks)))


def _create_timm(name: str) -> nn.Module:
    """Return the network without its classifier, for inputs of any size where it has an option for that."""
    options: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]
    for option in options:
        try:
            return timm_library().create_model(name, num_classes=0, **option)
        except TypeError:  # an option that this network does not have
            if not option:
                raise
    raise AssertionError("the last attempt has no options")


@dataclass(frozen=True)
class _TimmRunner:
    """Runs a network of timm by its ``forward_intermediates``; ``names`` are those of all its blocks."""

    names: tuple[str, ...]

    def __call__(self, network: nn.Module, images: Tensor, wanted: Sequence[str]) -> list[Tensor]:
        places = [self.names.index(name) for name in wanted]
        run: Any = network.forward_intermediates
        options = {"norm": places[-1] == len(self.names) - 1} if _takes(run, "norm") else {}
        found: list[Tensor] = run(
            images, indices=places, stop_early=True, output_fmt="NCHW", intermediates_only=True, **options
        )
        return found

    def prune(self, network: nn.Module, last: str) -> None:
        """Delete what comes after the block ``last``, and the head."""
        prune: Any = getattr(network, "prune_intermediate_layers", None)
        if prune is not None:
            place = self.names.index(last)
            whole = place == len(self.names) - 1
            prune([place], prune_norm=not whole, prune_head=True)


def _takes(function: Any, option: str) -> bool:
    return option in inspect.signature(function).parameters


# The user's own


def _open_own(name: str) -> OpenNetwork:
    function = load_object(name, "model.backbone.name")
    try:
        network = function()
    except Exception as error:  # the function is the user's, and may fail in any way
        raise InputError(f"model.backbone.name: {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"model.backbone.name: {name} returned a {type(network).__name__}; it must return a "
            "torch.nn.Module that turns images (N, 3, H, W) into a map (N, C, h, w)"
        )
    if isinstance(network, nn.Sequential):
        blocks = _grouped(network, [part for part, _ in network.named_children()])
        return OpenNetwork(network, blocks, _ChainRunner(blocks))
    return OpenNetwork(network, {"network": ("",)}, _run_whole)


def _run_whole(network: nn.Module, images: Tensor, wanted: Sequence[str]) -> list[Tensor]:
    return [network(images)]


def _keep_only(network: nn.Module, paths: Sequence[str]) -> None:
    """Delete the modules of ``network`` that are none of ``paths``, nor within one, nor around one."""
    for name, child in list(network.named_children()):
        inside = [path.removeprefix(f"{name}.") for path in paths if path.startswith(f"{name}.")]
        if name in paths or "" in paths:
            continue
        if inside:
            _keep_only(child, inside)
        else:
            delattr(network, name)
