"""The properties of backbones that RoI pooling relies on: channels, size, stride and centre, by probing."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from detector.core.errors import InputError
from detector.models.backbones import Backbone, ChannelNorm, build_backbone
from tests.typed import gradient

STAGES = {
    "vgg16": ["conv1", "conv2", "conv3", "conv4", "conv5"],
    "alexnet": ["conv1", "conv2", "conv3", "conv4", "conv5"],
    "caffenet": ["conv1", "conv2", "conv3", "conv4", "conv5"],
    "squeezenet1_0": ["conv1", "fire2", "fire3", "fire4", "fire5", "fire6", "fire7", "fire8", "fire9"],
    "resnet18": ["conv1", "layer1", "layer2", "layer3", "layer4"],
    "resnet50": ["conv1", "layer1", "layer2", "layer3", "layer4"],
    "small": ["conv1", "conv2", "conv3", "conv4"],
}
DEFAULTS = {
    "vgg16": ("conv5", 512, 16, 7.5),
    "alexnet": ("conv5", 256, 16, 15.0),
    "caffenet": ("conv5", 256, 16, 0.0),
    "squeezenet1_0": ("fire9", 512, 16, 17.0),
    "resnet18": ("layer3", 256, 16, 0.0),
    "resnet50": ("layer3", 1024, 16, 0.0),
    "small": ("conv4", 96, 8, 3.0),
}
EVERY = [(name, stage) for name, stages in STAGES.items() for stage in stages]

each_stage = pytest.mark.parametrize(("name", "stage"), EVERY, ids=["-".join(pair) for pair in EVERY])


@cache
def on_meta(name: str, stage: str) -> Backbone:
    with torch.device("meta"):
        return build_backbone(name, stage=stage).eval()


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_known_ones(name: str) -> None:
    stage, channels, stride, center = DEFAULTS[name]
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert list(backbone.blocks)[-1] == stage
    assert (backbone.channels, backbone.stride, backbone.center) == (channels, stride, center)


@each_stage
def test_channels_and_extent_are_what_a_run_gives(name: str, stage: str) -> None:
    backbone = on_meta(name, stage)
    for size in [(33, 224), (64, 65), (101, 131), (375, 500), (600, 999)]:
        features = backbone(torch.zeros(1, 3, *size, device="meta"))
        assert features.shape == (1, backbone.channels, *backbone.map_size(size))


@pytest.mark.parametrize("name", STAGES)
def test_extent_of_small_inputs_down_to_the_refusal(name: str) -> None:
    backbone = on_meta(name, STAGES[name][-1])
    for side in (1, 2, 3, 6, 7, 8, 14, 15, 21, 31, 32, 33):
        extent = backbone.map_size((side, 64))
        images = torch.zeros(1, 3, side, 64, device="meta")
        if min(extent) < 1:
            with pytest.raises(InputError, match=f"an input of 64x{side} pixels is smaller than one cell"):
                backbone(images)
        else:
            assert backbone(images).shape[-2:] == extent


def as_column(backbone: Backbone) -> nn.Sequential:
    """The same windows on one channel, with weights of one, averages for maxima and no other layers.

    A cell's gradient is then positive exactly on its receptive field and falls off evenly around the centre.
    Shortcuts of residual blocks see less than the main branch does; leaving them out keeps the field.
    """

    def layers(module: nn.Module) -> list[nn.Module]:
        match module:
            case nn.Conv2d(kernel_size=(high, wide), stride=(down, right), padding=(int(above), int(before))):
                column = nn.Conv2d(1, 1, (high, wide), (down, right), (above, before), bias=False)
                nn.init.constant_(column.weight, 1 / column.weight.numel())
                return [column]
            case nn.MaxPool2d():
                return [
                    nn.AvgPool2d(
                        module.kernel_size, module.stride, module.padding, ceil_mode=module.ceil_mode
                    )
                ]
            case nn.ReLU() | nn.LocalResponseNorm() | nn.BatchNorm2d() | FrozenBatchNorm2d() | nn.Identity():
                return []
            case BasicBlock():
                return layers(module.conv1) + layers(module.conv2)
            case Bottleneck():
                return layers(module.conv1) + layers(module.conv2) + layers(module.conv3)
        if hasattr(module, "expand3x3"):
            return layers(module.get_submodule("squeeze")) + layers(module.get_submodule("expand3x3"))
        assert isinstance(module, nn.Sequential), f"the probe does not know {type(module).__name__}"
        return [part for child in module for part in layers(child)]

    return nn.Sequential(*layers(backbone.features)).double()


def field_of(column: nn.Module, extent: int, cell: int) -> Tensor:
    """Return the gradient (extent,) of one cell with respect to the rows of a wide input."""
    images = torch.zeros(1, 1, extent, extent, dtype=torch.float64, requires_grad=True)
    features = column(images)
    (gradient,) = torch.autograd.grad(features[0, 0, cell, cell], images)
    rows = gradient[0, 0].sum(dim=1)
    assert torch.allclose(rows, gradient[0, 0].sum(dim=0))  # the same for x and y
    return rows


@each_stage
def test_center_and_stride_by_probing(name: str, stage: str) -> None:
    backbone = on_meta(name, stage)
    column = as_column(backbone)
    extent = 40 * backbone.stride
    middle = backbone.map_size((extent, extent))[0] // 2
    for cell in (middle, middle + 1, middle - 3):
        rows = field_of(column, extent, cell)
        reached = torch.nonzero(rows)[:, 0]
        assert reached[0] > 0, "the probe's input has to be larger than the receptive field"
        assert reached[-1] < extent - 1
        expected = backbone.center + cell * backbone.stride
        assert (reached[0] + reached[-1]).item() / 2 == expected
        mass = (rows * torch.arange(extent)).sum() / rows.sum()
        assert mass.item() == pytest.approx(expected, abs=1e-6)


def test_the_real_network_sees_what_the_probe_says() -> None:
    backbone = build_backbone("small").double().eval()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.uniform_(module.weight, 0.1, 1.0)  # positive all the way, so that no ReLU cuts
    images = torch.rand(1, 3, 160, 160, dtype=torch.float64, requires_grad=True)
    total = torch.zeros(160, dtype=torch.float64)
    for seed in range(8):  # maxima pick one pixel; over random images they pick each
        torch.manual_seed(seed)
        images.data.uniform_()
        (gradient,) = torch.autograd.grad(backbone(images)[0, :, 10, 10].sum(), images)
        total += gradient.sum(dim=(0, 1, 3))
    reached = torch.nonzero(total)[:, 0]
    probe = torch.nonzero(field_of(as_column(backbone), 160, 10))[:, 0]
    assert (reached[0], reached[-1]) == (probe[0], probe[-1])
    assert (reached[0] + reached[-1]).item() / 2 == backbone.center + 10 * backbone.stride


@pytest.mark.parametrize(
    ("name", "freeze", "frozen"),
    [
        ("small", 0, []),
        ("small", "none", []),
        ("small", 2, ["0", "1", "3", "4", "5"]),
        ("resnet18", 1, ["conv1", "bn1"]),
        ("resnet18", 2, ["conv1", "bn1", "layer1"]),
        ("squeezenet1_0", 3, ["0", "3", "4"]),
        ("small", "all", None),
    ],
)
def test_frozen_blocks_get_no_gradient(name: str, freeze: int | str, frozen: list[str] | None) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, freeze=freeze, reduce_channels=8).train()
    backbone(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for child, module in backbone.features.named_children():
        still = frozen is None or child in frozen
        for parameter in module.parameters():
            assert parameter.requires_grad is not still
            assert (parameter.grad is None) is still
    assert all(parameter.grad is not None for parameter in backbone.reduce.parameters())


def test_batch_statistics_of_frozen_blocks_stay() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("small", freeze=2).train()
    before = {name: value.clone() for name, value in backbone.features.named_buffers()}
    backbone.train()
    backbone(torch.randn(2, 3, 64, 64) * 3 + 1)
    moved = {
        name.split(".")[0]
        for name, value in backbone.features.named_buffers()
        if not torch.equal(value, before[name])
    }
    assert moved == {"9", "12"}  # the norms of conv3 and conv4


def test_scale_and_reduction_come_after_the_features() -> None:
    torch.manual_seed(0)
    plain = build_backbone("small").eval()
    scaled = build_backbone("small", feature_scale=0.25, reduce_channels=5).eval()
    scaled.features.load_state_dict(plain.features.state_dict())
    images = torch.randn(1, 3, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(scaled(images), scaled.reduce(plain(images) * 0.25))
    assert scaled.channels == 5
    assert scaled(images).shape == (1, 5, *scaled.map_size((48, 40)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg19"}, r"'vgg19' is unknown \(did you mean 'vgg16'\?\); known: vgg16"),
        ({"name": "small", "stage": "conv5"}, r"'conv5' is not a block of small .*it has: conv1"),
        ({"name": "small", "freeze": 5}, r"small up to conv4 has 4 blocks; give a number from 0 to 4"),
        ({"name": "small", "freeze": -1}, "give a number from 0 to 4"),
        ({"name": "small", "freeze": "some"}, "freeze 'some'"),
        ({"name": "small", "stage": "conv2", "freeze": 3}, "small up to conv2 has 2 blocks"),
    ],
)
def test_wrong_names_and_numbers_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_backbone(**arguments)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [3, 96])
def test_normalisation_across_channels_and_its_gradient_are_torchs(
    memory_format: torch.memory_format, channels: int
) -> None:
    start = 30 * torch.randn(2, channels, 7, 9, generator=torch.Generator().manual_seed(channels))
    found, expected = (start.contiguous(memory_format=memory_format).requires_grad_() for _ in range(2))
    for images, layer in ((found, ChannelNorm), (expected, nn.LocalResponseNorm)):
        layer(5, alpha=1e-2, beta=0.75)(images).backward(torch.linspace(-1, 1, start.numel()).view_as(start))
    assert torch.equal(gradient(found), gradient(expected))
    norms = [layer(5, alpha=1e-2, beta=0.75)(start) for layer in (ChannelNorm, nn.LocalResponseNorm)]
    assert torch.equal(*norms)
