"""The names of the backbones' layers in published weights, and their translation to this project's names.

torchvision: ``features.N`` or ResNet's names, and ``classifier.N``. timm: the same for the convolutions of
ResNet and VGG; its fully connected layers are the convolutions ``pre_logits.fc1`` and ``fc2``. Files
converted from Caffe have Caffe's names (``conv1_1``, ``fc6``), or torchvision's names from before it moved
VGG's dropout layers, with fc6 and fc7 at ``classifier.1`` and ``classifier.4``. The networks that are named
``library:NAME`` have their library's names; EfficientNet-Lite also has those of efficientnet-lite-pytorch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from detector.models.backbones import whole_network

FEATURES, HEAD = "backbone.features.", "box_head.layers."

_VGG16_CONVOLUTIONS = {
    "conv1_1": "0", "conv1_2": "2", "conv2_1": "5", "conv2_2": "7",
    "conv3_1": "10", "conv3_2": "12", "conv3_3": "14",
    "conv4_1": "17", "conv4_2": "19", "conv4_3": "21",
    "conv5_1": "24", "conv5_2": "26", "conv5_3": "28",
}  # fmt: skip
FULLY_CONNECTED = {
    "vgg16": {"classifier.0": "fc6", "classifier.1": "fc6", "pre_logits.fc1": "fc6", "fc6": "fc6"}
    | {"classifier.3": "fc7", "classifier.4": "fc7", "pre_logits.fc2": "fc7", "fc7": "fc7"},
    "alexnet": {"classifier.1": "fc6", "classifier.4": "fc7"},
    "caffenet": {"fc6": "fc6", "fc7": "fc7"},
}
"""By network, the published names of the fc6 and fc7 from which a box head can start."""
_CLASSIFIERS = ("classifier.6", "head.fc", "fc8", "fc", "classifier.1")
"""The layers for the 1000 classes of ImageNet, which none of the backbones uses."""


def our_names(
    family: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], set[str]]:
    """Return a published ``state`` under this project's names, and those of its names that are not needed.

    ``wanted`` is the state dict of the network here. It does not need the blocks after its cut, the
    classifier, and perhaps the fully connected layers. A name that no publisher of ``family`` uses stays as
    it is.

    Two kinds of tensors are brought to the shape in ``wanted``: those with extra dimensions of length one
    (all tensors of Caffe's first files have four dimensions), and fully connected weights stored as a
    convolution over the whole map, whose order (channel, row, column) is the same.
    """
    network = {f"backbone.{name}": tensor for name, tensor in whole_network(family).items()}
    layers = _layers(family, network)
    named: dict[str, Tensor] = {}
    spare: set[str] = set()
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        name = f"{layers[layer]}.{kind}" if layer in layers else key
        if f"{FEATURES}{key}" in network:  # also parameters of the network itself, such as class tokens
            name = f"{FEATURES}{key}"
        if name in named:  # two layers of the file have the same name here: keep both, to report one
            name = key
        named[name] = _reshaped(tensor, wanted[name]) if name in wanted else tensor
        counter = kind == "num_batches_tracked"  # batch norms are frozen here and count no batches
        known = name in network or name.startswith(HEAD) or layer in _CLASSIFIERS or counter
        if known and name not in wanted:
            spare.add(name)
    return named, spare


def _layers(family: str, network: Mapping[str, Tensor]) -> dict[str, str]:
    ours = {name.rpartition(".")[0] for name in network}
    layers = {layer.removeprefix(FEATURES): layer for layer in ours}
    layers |= {f"features.{layer.removeprefix(FEATURES)}": layer for layer in ours}
    if family == "vgg16":
        layers |= {caffe: f"{FEATURES}{number}" for caffe, number in _VGG16_CONVOLUTIONS.items()}
    if family.startswith("timm:tf_efficientnet_lite"):
        layers |= {theirs: f"{FEATURES}{ours}" for theirs, ours in _efficientnet_lite(ours).items()}
    return layers | {theirs: f"{HEAD}{name}" for theirs, name in FULLY_CONNECTED.get(family, {}).items()}


def _efficientnet_lite(ours: Collection[str]) -> dict[str, str]:
    """Return timm's names for those of the package efficientnet-lite-pytorch, which numbers all blocks.

    ``ours`` are the layers of the network here, as ``backbone.features.blocks.STAGE.BLOCK.conv_dw``.
    """
    places = {tuple(map(int, match.groups())) for match in map(_TIMM_BLOCK.search, ours) if match}
    names = dict(_LITE_ENDS)
    for number, (stage, block) in enumerate(sorted(places)):
        inner = _LITE_SEPARABLE if stage == 0 else _LITE_INVERTED
        names |= {f"_blocks.{number}.{theirs}": f"blocks.{stage}.{block}.{name}" for theirs, name in inner}
    return names


_TIMM_BLOCK = re.compile(r"\.blocks\.(\d+)\.(\d+)\.")
_LITE_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_LITE_ENDS |= {"_fc": "classifier"}
_LITE_SEPARABLE = [
    ("_depthwise_conv", "conv_dw"),
    ("_bn1", "bn1"),
    ("_project_conv", "conv_pw"),
    ("_bn2", "bn2"),
]
_LITE_INVERTED = [
    ("_expand_conv", "conv_pw"),
    ("_bn0", "bn1"),
    ("_depthwise_conv", "conv_dw"),
    ("_bn1", "bn2"),
]
_LITE_INVERTED += [("_project_conv", "conv_pwl"), ("_bn2", "bn3")]


def _reshaped(tensor: Tensor, wanted: Tensor) -> Tensor:
    if tensor.shape == wanted.shape or tensor.numel() != wanted.numel():
        return tensor
    squeezed = [side for side in tensor.shape if side != 1] == [side for side in wanted.shape if side != 1]
    flattened = tensor.dim() == 4 and wanted.dim() == 2 and tensor.shape[0] == wanted.shape[0]
    return tensor.reshape(wanted.shape) if squeezed or flattened else tensor
