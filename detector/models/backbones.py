"""Convolutional backbones that are cut after a named block, with their channels, stride and centre.

Parameter names are torchvision's (its ``features.N`` or ``conv1``, ``layer1``, ...), so that published
state dicts load by name; see ``published``. A block (in the config ``model.backbone.stage``) begins with the
pooling before its convolutions. So no pooling follows the last block, and RoI pooling takes its place, as in
Fast R-CNN.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import alexnet, resnet, squeezenet1_0, vgg
from torchvision.ops import FrozenBatchNorm2d

from detector.core.errors import InputError, nearest
from detector.models.batch_norm import SharedBatchNorm2d
from detector.models.receptive_field import geometry, out_channels


class Backbone(nn.Module):
    """Layers, ``features``, that are grouped into named blocks; the first ``freeze`` blocks never train.

    ``blocks`` maps each name to the number of children up to the end of the block. The features are then
    multiplied by ``feature_scale`` and, with ``reduce_channels``, go through a 1x1 convolution.

    Attributes: ``channels``; ``stride`` in input pixels; ``center``, the 0-based input pixel on which the
    receptive field of the first cell is centred.
    """

    def __init__(
        self,
        children: OrderedDict[str, nn.Module],
        blocks: dict[str, int],
        *,
        freeze: int = 0,
        feature_scale: float = 1.0,
        reduce_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(children)
        self.blocks = blocks
        self.feature_scale = feature_scale
        self.geometry = geometry(self.features)
        width = out_channels(self.features)
        self.reduce = nn.Identity() if reduce_channels is None else nn.Conv2d(width, reduce_channels, 1)
        self.channels = reduce_channels or width
        self.stride = self.geometry.stride
        self.center = self.geometry.center
        self.frozen_children = 0 if freeze == 0 else list(blocks.values())[freeze - 1]
        for child in list(self.features)[: self.frozen_children]:
            child.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode for the layers that train; frozen ones keep their batch statistics."""
        super().train(mode)
        for child in list(self.features)[: self.frozen_children]:
            child.eval()
        return self

    def map_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the map in cells for an input of ``size``, (height, width) in pixels."""
        return self.geometry.size(size[0]), self.geometry.size(size[1])

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, C, h, w) for normalised images (N, 3, H, W).

        Raises:
            InputError: images smaller than one cell of the map.
        """
        if min(self.map_size((images.shape[-2], images.shape[-1]))) < 1:
            raise InputError(
                f"an input of {images.shape[-1]}x{images.shape[-2]} pixels is smaller than one cell of "
                "the feature map; raise the scales in the config"
            )
        layers = list(self.features)
        with torch.no_grad():  # frozen layers have no backward pass to keep anything for
            for layer in layers[: self.frozen_children]:
                images = layer(images)
        for layer in layers[self.frozen_children :]:
            images = layer(images)
        scaled = images if self.feature_scale == 1.0 else images * self.feature_scale
        features: Tensor = self.reduce(scaled)
        return features


class ChannelNorm(nn.LocalResponseNorm):
    """Local response normalisation across channels, whose gradient on CUDA is the same in every run.

    torch takes the means over neighbouring channels with ``avg_pool3d``, whose gradient on CUDA adds in no
    fixed order. ``avg_pool2d`` over (channel, cell) gives the same bits on the CPU and has a fixed order.
    """

    def forward(self, images: Tensor) -> Tensor:
        if images.numel() == 0:
            return images
        rows = images.mul(images).flatten(2)[:, None]
        padded = functional.pad(rows, (0, 0, self.size // 2, (self.size - 1) // 2))
        means = functional.avg_pool2d(padded, (self.size, 1), stride=1).view(images.shape)
        return images / means.mul(self.alpha).add(self.k).pow(self.beta)


def build_backbone(
    name: str,
    *,
    stage: str | None = None,
    freeze: int | str = 0,
    feature_scale: float = 1.0,
    reduce_channels: int | None = None,
) -> Backbone:
    """Build a backbone with random weights, cut after the block ``stage`` (None: the default one).

    ``freeze`` is the number of frozen blocks, counted from the input; "none" is 0, "all" every block that is
    kept.

    Raises:
        InputError: unknown name or block, or more frozen blocks than there are.
    """
    children, blocks, default = _family(name)
    stage = stage or default
    if stage not in blocks:
        raise InputError(
            f"model.backbone.stage {stage!r} is not a block of {name}{nearest(stage, blocks)}; "
            f"it has: {', '.join(blocks)}"
        )
    kept = dict(list(blocks.items())[: list(blocks).index(stage) + 1])
    frozen = {"none": 0, "all": len(kept)}.get(freeze, freeze) if isinstance(freeze, str) else freeze
    if not isinstance(frozen, int) or not 0 <= frozen <= len(kept):
        raise InputError(
            f"model.backbone.freeze {freeze!r}: {name} up to {stage} has {len(kept)} blocks; "
            f'give a number from 0 to {len(kept)}, "none" or "all"'
        )
    cut = OrderedDict(list(children.items())[: kept[stage]])
    return Backbone(cut, kept, freeze=frozen, feature_scale=feature_scale, reduce_channels=reduce_channels)


def identity_backbone() -> Backbone:
    """Return a backbone without layers: its map is the image (3 channels, stride 1)."""
    return Backbone(OrderedDict(), {})


def whole_network(name: str) -> dict[str, Tensor]:
    """Return the state dict of all convolutions of a network, uncut, with ``features.`` before each name.

    The tensors are on the meta device: they have shapes and no values.
    """
    with torch.device("meta"):
        layers = nn.Sequential(_family(name)[0])
    return {f"features.{key}": tensor for key, tensor in layers.state_dict().items()}


# Each block and the number of children of ``features`` up to its end.
_VGG16_BLOCKS = {"conv1": 4, "conv2": 9, "conv3": 16, "conv4": 23, "conv5": 30}
_ALEXNET_BLOCKS = {"conv1": 2, "conv2": 5, "conv3": 8, "conv4": 10, "conv5": 12}
_CAFFENET_BLOCKS = {"conv1": 2, "conv2": 6, "conv3": 10, "conv4": 12, "conv5": 14}
_SQUEEZENET_BLOCKS = {"conv1": 2, "fire2": 4, "fire3": 5, "fire4": 6, "fire5": 8}
_SQUEEZENET_BLOCKS |= {"fire6": 9, "fire7": 10, "fire8": 11, "fire9": 13}
_RESNET_BLOCKS = {"conv1": 3, "layer1": 5, "layer2": 6, "layer3": 7, "layer4": 8}
_SMALL_BLOCKS = {"conv1": 3, "conv2": 7, "conv3": 11, "conv4": 14}


def _family(name: str) -> tuple[OrderedDict[str, nn.Module], dict[str, int], str]:
    """Return all convolution layers of a network, the end of each block among them, and the default block."""
    match name:
        case "vgg16":
            return _numbered(vgg.make_layers(vgg.cfgs["D"])), _VGG16_BLOCKS, "conv5"
        case "alexnet":
            return _numbered(alexnet().features), _ALEXNET_BLOCKS, "conv5"
        case "caffenet":
            return _caffenet(), _CAFFENET_BLOCKS, "conv5"
        case "squeezenet1_0":
            return _numbered(squeezenet1_0().features), _SQUEEZENET_BLOCKS, "fire9"
        case "resnet18":
            return _resnet(resnet.resnet18), _RESNET_BLOCKS, "layer3"
        case "resnet50":
            return _resnet(resnet.resnet50), _RESNET_BLOCKS, "layer3"
        case "small":
            return _small(), _SMALL_BLOCKS, "conv4"
        case _:
            known = ["vgg16", "alexnet", "caffenet", "squeezenet1_0", "resnet18", "resnet50", "small"]
            raise InputError(
                f"model.backbone.name {name!r} is unknown{nearest(name, known)}; known: {', '.join(known)}"
            )


def _numbered(layers: nn.Sequential) -> OrderedDict[str, nn.Module]:
    return OrderedDict(layers.named_children())


def _resnet(make: Callable[..., nn.Module]) -> OrderedDict[str, nn.Module]:
    # One or two images per batch are too few for batch statistics, so those of the weights stay.
    network = make(norm_layer=FrozenBatchNorm2d)
    kept = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    return OrderedDict((name, getattr(network, name)) for name in kept)


def _caffenet() -> OrderedDict[str, nn.Module]:
    """Caffe's AlexNet, model S of the paper, with the padding of Fast R-CNN's release and Caffe's names."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    convolutions = [(3, 96, 11, 1), (96, 256, 5, 2), (256, 384, 3, 1), (384, 384, 3, 2), (384, 256, 3, 2)]
    for number, (before, width, kernel, groups) in enumerate(convolutions, start=1):
        if number in (2, 3):
            layers[f"pool{number - 1}"] = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
            layers[f"norm{number - 1}"] = ChannelNorm(5, alpha=1e-4, beta=0.75)
        layers[f"conv{number}"] = nn.Conv2d(
            before, width, kernel, stride=4 if number == 1 else 1, padding=kernel // 2, groups=groups
        )
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
    return layers


def _small() -> OrderedDict[str, nn.Module]:
    """Four blocks of 3x3 convolutions, stride 8: trains from random weights on a CPU in minutes."""
    layers: list[nn.Module] = []
    before = 3
    for number, width in enumerate((24, 48, 96, 96)):
        if number in (1, 2):
            layers.append(nn.MaxPool2d(2))
        convolution = nn.Conv2d(before, width, 3, stride=2 if number == 0 else 1, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, SharedBatchNorm2d(width), nn.ReLU(inplace=True)]
        before = width
    return OrderedDict((str(number), layer) for number, layer in enumerate(layers))
