"""Backbones that are cut after a named block, with their channels, stride and centre.

Parameter names are torchvision's (its ``features.N`` or ``conv1``, ``layer1``, ...), so that published
state dicts load by name; see ``published``. A block (in the config ``model.backbone.stage``) begins with the
pooling before its convolutions. So no pooling follows the last block, and RoI pooling takes its place, as in
Fast R-CNN.

The names without a colon are those of this module, whose geometry follows from their layers. The networks of
torchvision, of timm and of the user (``library:NAME``) come from ``networks``, their geometry from
``probing``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import alexnet, resnet, squeezenet1_0, vgg
from torchvision.ops import FrozenBatchNorm2d

from detector.core.errors import InputError, nearest
from detector.core.libraries import LIBRARIES
from detector.models.batch_norm import SharedBatchNorm2d
from detector.models.networks import (
    OpenNetwork,
    is_library_name,
    open_network,
    published_names,
)
from detector.models.probing import (
    Misplaced,
    ProbedGeometry,
    leave_out_elementwise,
    pad_to_multiple,
    probe,
    survey,
)
from detector.models.receptive_field import Geometry, geometry, out_channels

NAMES = ("vgg16", "alexnet", "caffenet", "squeezenet1_0", "resnet18", "resnet50", "small")
"""The networks of this module; the others have a colon in their names."""


class Map(NamedTuple):
    """The map that a block gives: its channels, and stride and centre in network-input pixels.

    ``cells`` gives the number of cells along an axis for a number of input pixels.
    """

    channels: int
    stride: int
    center: float
    cells: Callable[[int], int]

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of the map in cells for an input of ``size``, (height, width)."""
        return self.cells(size[0]), self.cells(size[1])


class Backbone(nn.Module):
    """Layers, ``features``, that are grouped into named blocks; the first ``freeze`` blocks never train.

    ``blocks`` maps each name to the number of children up to the end of the block. The features are then
    multiplied by ``feature_scale`` and, with ``reduce_channels``, go through a 1x1 convolution.

    Attributes: ``channels``; ``stride`` in input pixels; ``center``, the 0-based input pixel on which the
    receptive field of the first cell is centred; ``maps``, those that a feature pyramid is built on, from
    fine to coarse: with ``pyramid`` the last block of each stride from 4 on, otherwise only the last block.
    """

    features: nn.Module
    geometry: Geometry | ProbedGeometry

    def __init__(
        self,
        children: OrderedDict[str, nn.Module],
        blocks: dict[str, int],
        *,
        freeze: int = 0,
        feature_scale: float = 1.0,
        reduce_channels: int | None = None,
        pyramid: bool = False,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(children)
        self.blocks = blocks
        layers = list(children.values())
        self._ends = [blocks[block] for block in _of_each_stride(_strides(layers, blocks))] if pyramid else []
        self._ends = self._ends or [len(layers)]
        maps = [
            Map(out_channels(layers[:end]), place.stride, place.center, place.size)
            for end in self._ends
            for place in [geometry(layers[:end])]
        ]
        self.geometry = geometry(layers)
        self._finish(maps, feature_scale, reduce_channels)
        self.frozen_children = 0 if freeze == 0 else list(blocks.values())[freeze - 1]
        for child in list(self.features)[: self.frozen_children]:
            child.requires_grad_(False)

    def _finish(self, maps: Sequence[Map], feature_scale: float, reduce_channels: int | None) -> None:
        """Set what follows the features, whose ``maps`` a pyramid uses, and the attributes."""
        self.maps = tuple(maps)
        width = maps[-1].channels
        self.feature_scale = feature_scale
        self.reduce = nn.Identity() if reduce_channels is None else nn.Conv2d(width, reduce_channels, 1)
        self.channels = reduce_channels or width
        self.stride = self.geometry.stride
        self.center = self.geometry.center

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode for the layers that train; frozen ones keep their batch statistics."""
        super().train(mode)
        for child in list(self.features.children())[: self.frozen_children]:
            child.eval()
        return self

    def _check_size(self, images: Tensor) -> None:
        if torch.compiler.is_exporting():
            return  # the sides are symbols
        if min(self.map_size((images.shape[-2], images.shape[-1]))) < 1:
            raise InputError(
                f"an input of {images.shape[-1]}x{images.shape[-2]} pixels is smaller than one cell of "
                "the feature map; raise the scales in the config"
            )

    def map_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the map in cells for an input of ``size``, (height, width) in pixels."""
        return self.geometry.size(size[0]), self.geometry.size(size[1])

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, C, h, w) for normalised images (N, 3, H, W).

        Raises:
            InputError: images smaller than one cell of the map.
        """
        self._check_size(images)
        features: Tensor = self.reduce(self._scaled(self.run(images)[-1]))
        return features

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Return the features (N, C, h, w) of the block of each of ``maps``, from fine to coarse.

        Raises:
            InputError: images smaller than one cell of the coarsest map.
        """
        self._check_size(images)
        return [self._scaled(features) for features in self.run(images)]

    def _scaled(self, features: Tensor) -> Tensor:
        return features if self.feature_scale == 1.0 else features * self.feature_scale

    def run(self, images: Tensor) -> list[Tensor]:
        """Return ``maps`` (N, C, h, w) for images (N, 3, H, W), as the network gives them."""
        found = []
        with torch.no_grad():  # frozen layers have no backward pass to keep anything for
            for number, layer in enumerate(list(self.features.children())[: self.frozen_children], start=1):
                images = layer(images)
                if number in self._ends:
                    found.append(images)
        later = list(self.features.children())[self.frozen_children :]
        for number, layer in enumerate(later, start=self.frozen_children + 1):
            images = layer(images)
            if number in self._ends:
                found.append(images)
        return found or [images]


class NetworkBackbone(Backbone):
    """A network of a library or of the user, cut after a block; parameters keep the library's names.

    ``places`` has the probed geometry of the blocks whose maps are used. Inputs are padded with zeros to
    whole patches where the network needs that (``geometry.multiple``). Batch norms are frozen, in training
    too: one or two images per batch are too few for batch statistics. A network of the user trains those that
    are `SharedBatchNorm2d`. Positional embeddings never train, since their interpolation has no gradient on
    CUDA that is the same in every run.
    """

    def __init__(
        self,
        opened: OpenNetwork,
        places: dict[str, ProbedGeometry],
        *,
        freeze: int = 0,
        feature_scale: float = 1.0,
        reduce_channels: int | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.features = opened.network
        self.blocks = {name: number for number, name in enumerate(opened.blocks, start=1)}
        self._run, self._wanted = opened.run, tuple(places)
        *_, last_place = places.values()
        self.geometry, self._multiple = last_place, last_place.multiple
        maps = [Map(place.channels, place.stride, place.center, place.size) for place in places.values()]
        self._finish(maps, feature_scale, reduce_channels)
        ends = [paths[-1] for paths in opened.blocks.values()]
        ends[-1] = ""  # a final normalisation may follow the last block
        last = ends[freeze - 1] if freeze else None
        self.resting = _resting(self.features, last)
        for name in self.resting:
            module = self.features.get_submodule(name)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(module, nn.BatchNorm2d):
                # Nothing is counted; otherwise torch adds a counter to a state without numbers of versions.
                module.num_batches_tracked, module.track_running_stats = None, False
        for name, parameter in self.features.named_parameters():
            if name.rpartition(".")[2] in _POSITIONS:
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> NetworkBackbone:
        """Set training mode for what trains; frozen blocks and batch norms stay in evaluation mode."""
        nn.Module.train(self, mode)
        for name in self.resting:
            self.features.get_submodule(name).training = False
        return self

    def run(self, images: Tensor) -> list[Tensor]:
        """Return ``maps`` (N, C, h, w) for images (N, 3, H, W), as the network gives them."""
        return self._run(self.features, pad_to_multiple(images, self._multiple), self._wanted)


_POSITIONS = ("pos_embed", "pos_embedding")


def _resting(network: nn.Module, last: str | None) -> list[str]:
    """Return the modules that never train: batch norms, and all up to the end of the module ``last``.

    Modules are registered in the order in which they run. Those around ``last`` count for the parameters
    that they have themselves, such as positional embeddings.
    """
    names = [name for name, _ in network.named_modules()]
    ends = [
        number
        for number, name in enumerate(names)
        if last is not None and (name == last or name.startswith(f"{last}.") or last == "")
    ]
    return [
        name
        for number, (name, module) in enumerate(network.named_modules())
        if (ends and number <= ends[-1])
        or (isinstance(module, nn.BatchNorm2d) and not isinstance(module, SharedBatchNorm2d))
    ]


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
    pyramid: bool = False,
) -> Backbone:
    """Build a backbone with random weights, cut after the block ``stage`` (None: the default one).

    With ``pyramid`` the default is the last block, and the maps of several blocks are used.

    ``freeze`` is the number of frozen blocks, counted from the input; "none" is 0, "all" every block that is
    kept.

    Raises:
        InputError: unknown name or block, or more frozen blocks than there are.
    """
    options: dict[str, Any] = {"feature_scale": feature_scale, "reduce_channels": reduce_channels}
    if is_library_name(name):
        return _network_backbone(name, stage, freeze, pyramid=pyramid, **options)
    children, blocks, default = _family(name)
    kept_names = _kept(name, list(blocks), stage or (list(blocks)[-1] if pyramid else default))
    kept = {block: blocks[block] for block in kept_names}
    if pyramid:
        _require_levels(name, _strides(list(children.values()), kept))
    cut = OrderedDict(list(children.items())[: kept[kept_names[-1]]])
    return Backbone(cut, kept, freeze=_frozen(name, kept_names, freeze), pyramid=pyramid, **options)


FINEST_STRIDE = 4
"""The finest level of a feature pyramid (FPN, section 3: finer maps take too much memory)."""


def _strides(layers: Sequence[nn.Module], blocks: Mapping[str, int]) -> dict[str, int]:
    """Return the stride of each of ``blocks``, given as the number of ``layers`` up to its end."""
    return {block: geometry(layers[:end]).stride for block, end in blocks.items()}


def _of_each_stride(strides: Mapping[str, int]) -> list[str]:
    """Return the last block of each stride from 4 on, from fine to coarse."""
    last = {stride: block for block, stride in strides.items() if stride >= FINEST_STRIDE}
    return [last[stride] for stride in sorted(last)]


def _require_levels(name: str, strides: Mapping[str, int]) -> None:
    if len(_of_each_stride(strides)) < 2:
        raise InputError(
            f"model.neck: fpn needs maps of at least two strides from {FINEST_STRIDE} on, and the blocks of "
            f"{name} have the strides {', '.join(map(str, sorted(set(strides.values()))))}; take another "
            "backbone or a later model.backbone.stage, or leave model.neck out"
        )


def _kept(name: str, blocks: Sequence[str], stage: str) -> list[str]:
    """Return the blocks up to ``stage``; InputError if there is none of this name."""
    if stage not in blocks:
        raise InputError(
            f"model.backbone.stage {stage!r} is not a block of {name}{nearest(stage, blocks)}; "
            f"it has: {', '.join(blocks)}"
        )
    return list(blocks[: blocks.index(stage) + 1])


def _frozen(name: str, kept: Sequence[str], freeze: int | str) -> int:
    """Return the number of frozen blocks among those that are ``kept``."""
    frozen = {"none": 0, "all": len(kept)}.get(freeze, freeze) if isinstance(freeze, str) else freeze
    if not isinstance(frozen, int) or not 0 <= frozen <= len(kept):
        raise InputError(
            f"model.backbone.freeze {freeze!r}: {name} up to {kept[-1]} has {len(kept)} blocks; "
            f'give a number from 0 to {len(kept)}, "none" or "all"'
        )
    return frozen


DEFAULT_STRIDE = 16
"""Without ``stage``, other libraries' networks are cut after the last block of at most this stride, as the
ResNets of Faster R-CNN are after C4."""


def _network_backbone(
    name: str, stage: str | None, freeze: int | str, *, pyramid: bool, **options: Any
) -> NetworkBackbone:
    opened = open_network(name)
    library = name.partition(":")[0] in LIBRARIES  # a user's function may change while this program runs
    surveyed = _surveyed if library else _surveyed.__wrapped__
    placed = _places if library else _places.__wrapped__
    blocks = list(opened.blocks)
    kept = _kept(name, blocks, stage or (blocks[-1] if pyramid else _default(surveyed(name))))
    wanted = [kept[-1]]
    if pyramid:
        strides = {block: stride for block, stride in surveyed(name).items() if block in kept}
        _require_levels(name, strides)
        wanted = _of_each_stride(strides)
    places = dict(zip(wanted, placed(name, tuple(wanted)), strict=True))
    frozen = _frozen(name, kept, freeze)
    return NetworkBackbone(opened.cut(kept[-1]), places, freeze=frozen, **options)


def _default(strides: Mapping[str, int]) -> str:
    """Return the block after which a network is cut by default, from the strides of all blocks."""
    largest = max(DEFAULT_STRIDE, min(strides.values()))
    return [block for block, stride in strides.items() if stride <= largest][-1]


@lru_cache
def _surveyed(name: str) -> dict[str, int]:
    """Return the stride of each block of a network."""
    opened = _opened_on_meta(name)
    blocks = list(opened.blocks)
    try:
        places = survey(lambda images: opened.run(opened.network, images, blocks))
    except Misplaced as error:
        raise _cannot_be_placed(name, error) from None
    return {block: stride for block, (_, stride, _) in zip(blocks, places, strict=True)}


@lru_cache
def _places(name: str, blocks: tuple[str, ...]) -> list[ProbedGeometry]:
    """Return the probed geometry of the maps of some ``blocks``."""
    opened = _opened_on_meta(name)
    try:
        return probe(lambda images: opened.run(opened.network, images, blocks))
    except Misplaced as error:
        raise _cannot_be_placed(name, error) from None


def _opened_on_meta(name: str) -> OpenNetwork:
    """Return a network on the meta device, in evaluation mode; no random numbers are used up."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        opened = open_network(name)
    opened.network.eval()
    leave_out_elementwise(opened.network)
    return opened


def _cannot_be_placed(name: str, error: Exception) -> InputError:
    return InputError(
        f"model.backbone.name: {name} cannot be a backbone: {error}; a backbone gives a map whose cells lie "
        "on one regular grid, the same for inputs of every size"
    )


def identity_backbone() -> Backbone:
    """Return a backbone without layers: its map is the image (3 channels, stride 1)."""
    return Backbone(OrderedDict(), {})


def whole_network(name: str) -> dict[str, Tensor]:
    """Return the state dict of all convolutions of a network, uncut, with ``features.`` before each name.

    The tensors are on the meta device: they have shapes and no values.
    """
    if is_library_name(name):
        return {f"features.{key}": tensor for key, tensor in published_names(name).items()}
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
            raise InputError(
                f"model.backbone.name {name!r} is unknown{nearest(name, NAMES)}; known: {', '.join(NAMES)}, "
                "torchvision:NAME, timm:NAME, or module:function of yours"
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
