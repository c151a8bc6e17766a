"""Networks of torchvision, of timm and of the user as backbones, against the networks themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from detector.core import libraries
from detector.core.errors import InputError
from detector.models.backbones import Backbone, build_backbone
from detector.models.batch_norm import SharedBatchNorm2d
from detector.models.networks import _run_vision_transformer, open_network, positions
from detector.models.published import our_names
from detector.models.transfer import plan_transfer
from detector.models.weights import read_state_dict
from tests.conftest import PROJECT

MOBILENET = PROJECT / "data/weights/mobilenet_v2_features.pth"
LITE = PROJECT / "data/weights/efficientnet-lite0-57934424.pth"
has_timm = pytest.mark.skipif(not libraries.has_timm(), reason="the package timm is not installed")

CUTS = {
    "torchvision:mobilenet_v2": ("features.13", 96, 16, 0.0),
    "torchvision:efficientnet_b0": ("features.5", 112, 16, 0.0),
    "torchvision:resnet34": ("layer3", 256, 16, 0.0),
    "torchvision:regnet_x_400mf": ("trunk_output.block3", 160, 16, 0.0),
    "torchvision:shufflenet_v2_x0_5": ("stage3", 96, 16, 0.0),
    "torchvision:mnasnet0_5": ("layers.11", 48, 16, 0.0),
    "torchvision:vgg11_bn": ("features.25", 512, 16, 7.5),
    "torchvision:inception_v3": ("Mixed_6e", 768, 16, 21.0),
    "torchvision:googlenet": ("inception4e", 832, 16, 14.0),
    "torchvision:convnext_tiny": ("features.5", 384, 16, 7.5),
    "torchvision:swin_t": ("features.5", 384, 16, 7.5),
    "torchvision:vit_b_32": ("encoder.layers.encoder_layer_11", 768, 32, 15.5),
}
OF_TIMM = {
    "timm:tf_efficientnet_lite0": ("blocks.4", 112, 16, 15.0),
    "timm:resnet10t": ("layer3", 256, 16, 0.0),
    "timm:vit_tiny_patch16_224": ("blocks.11", 192, 16, 7.5),
    "timm:vit_tiny_patch16_dinov3_qkvb": ("blocks.11", 192, 16, 7.5),
}
EVERY = [*CUTS.items(), *(pytest.param(*item, marks=has_timm, id=item[0]) for item in OF_TIMM.items())]


@pytest.mark.parametrize(("name", "expected"), EVERY)
def test_the_default_cut_and_its_geometry(name: str, expected: tuple[str, int, int, float]) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name).eval()
    found = (list(backbone.blocks)[-1], backbone.channels, backbone.stride, backbone.center)
    assert found == expected
    for size in ((75, 333), (200, 129)):
        features = backbone(torch.zeros(1, 3, *size, device="meta"))
        assert features.shape == (1, backbone.channels, *backbone.map_size(size))


def randomised(network: nn.Module) -> nn.Module:
    """Return ``network`` with statistics that differ from channel to channel."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mobilenet_v2", "features.13"),
        ("resnet18", "layer3"),
        ("regnet_y_400mf", "trunk_output.block3"),
        ("densenet121", "features.denseblock3"),
        ("shufflenet_v2_x0_5", "stage3"),
        ("mnasnet0_5", "layers.11"),
        ("googlenet", "inception4e"),
        ("squeezenet1_1", "features.12"),
    ],
)
def test_features_are_those_within_torchvisions_network(name: str, path: str) -> None:
    torch.manual_seed(0)
    extra = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    network = randomised(getattr(models, name)(**extra)).eval()
    seen: list[Tensor] = []
    network.get_submodule(path).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    images = torch.randn(1, 3, 64, 80)
    backbone = build_backbone(f"torchvision:{name}", stage=None)
    assert list(backbone.blocks)[-1] == path
    assert taken(backbone, f"torchvision:{name}", dict(network.state_dict())) == []
    with torch.no_grad():
        network(images)
        torch.testing.assert_close(backbone.eval()(images), seen[0], rtol=1e-4, atol=1e-5)


def taken(backbone: Backbone, name: str, state: dict[str, Tensor]) -> list[str]:
    """Copy the published ``state`` and return the names that do not fit."""
    wanted = dict(backbone.features.state_dict(prefix="backbone.features."))
    named, spare = our_names(name, state, wanted)
    transfer = plan_transfer(wanted, named, spare=spare)
    for key, tensor in transfer.tensors.items():
        wanted[key].copy_(tensor)
    return [row.name for row in transfer.faults]


@pytest.mark.skipif(not MOBILENET.is_file(), reason="data/weights/mobilenet_v2_features.pth is not there")
@pytest.mark.parametrize("stage", ["features.6", "features.18"])
def test_mobilenet_computes_what_torchvisions_does_with_its_weights(stage: str) -> None:
    state = read_state_dict(MOBILENET)
    backbone = build_backbone("torchvision:mobilenet_v2", stage=stage)
    assert taken(backbone, "torchvision:mobilenet_v2", state) == []
    network = models.mobilenet_v2()
    network.load_state_dict(state, strict=False)
    images = torch.randn(1, 3, 70, 101, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.eval().features[: int(stage.rpartition(".")[2]) + 1](images)
        assert torch.equal(backbone.train()(images), expected)  # batch norms are frozen in training too


def test_a_state_without_versions_loads_where_batch_norms_rest() -> None:
    backbone = build_backbone("torchvision:mobilenet_v2", stage="features.2", freeze=2)
    state = dict(backbone.state_dict())  # as a checkpoint stores it: without torch's numbers of versions
    assert not [name for name in state if name.endswith("num_batches_tracked")]
    backbone.load_state_dict(state)
    assert backbone.state_dict().keys() == state.keys()


LITE_STAGES = [(1, 3, 1, 16), (2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80), (3, 5, 1, 112), (4, 5, 2, 192)]
"""Of EfficientNet-Lite0: blocks, kernel, stride of the first block, channels; up to the last at stride 32."""


def lite_features(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Compute the features at stride 32 from the tensors of the file, with TensorFlow's padding."""

    def convolved(values: Tensor, weight: str, norm: str, stride: int = 1, active: bool = True) -> Tensor:
        kernel = state[f"{weight}.weight"]
        pads: list[int] = []
        for side in (values.shape[3], values.shape[2]):
            more = max((-(-side // stride) - 1) * stride + kernel.shape[2] - side, 0)
            pads += [more // 2, more - more // 2]
        groups = values.shape[1] // kernel.shape[1]
        values = functional.conv2d(functional.pad(values, pads), kernel, stride=stride, groups=groups)
        mean, variance, scale, shift = (
            state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        values = functional.batch_norm(values, mean, variance, scale, shift, eps=1e-3)
        return values.clamp(0, 6) if active else values

    values = convolved(images, "_conv_stem", "_bn0", 2)
    number = 0
    for count, _, first_stride, channels in LITE_STAGES:
        for index in range(count):
            name, before = f"_blocks.{number}", values
            if f"{name}._expand_conv.weight" in state:
                values = convolved(values, f"{name}._expand_conv", f"{name}._bn0")
            stride = first_stride if index == 0 else 1
            values = convolved(values, f"{name}._depthwise_conv", f"{name}._bn1", stride)
            values = convolved(values, f"{name}._project_conv", f"{name}._bn2", active=False)
            assert values.shape[1] == channels
            values = values + before if index else values
            number += 1
    return convolved_last(state, values, convolved)


def convolved_last(state: dict[str, Tensor], values: Tensor, convolved: object) -> Tensor:
    assert callable(convolved)
    for part in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1")):
        values = convolved(values, f"_blocks.15.{part[0]}", f"_blocks.15.{part[1]}")
    result: Tensor = convolved(values, "_blocks.15._project_conv", "_blocks.15._bn2", active=False)
    return result


@has_timm
@pytest.mark.skipif(not LITE.is_file(), reason="data/weights/efficientnet-lite0-57934424.pth is not there")
def test_efficientnet_lite0_computes_what_its_tensors_say() -> None:
    state = read_state_dict(LITE)
    name = "timm:tf_efficientnet_lite0"
    backbone = build_backbone(name, stage="blocks.6").eval()
    assert taken(backbone, name, state) == []
    images = torch.randn(1, 3, 90, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = lite_features(state, functional.pad(images, (0, 0, 0, 6)))  # to whole multiples of 32
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)
    assert backbone.map_size((90, 128)) == (3, 4)


def small_transformer() -> models.VisionTransformer:
    torch.manual_seed(0)
    network = models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32)
    return network.eval()


def test_patch_tokens_of_torchvisions_transformer() -> None:
    network = small_transformer()
    seen: list[Tensor] = []
    network.encoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        network(images)
        wanted = ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_2"]
        first, last = _run_vision_transformer(network, images, wanted)
        larger = _run_vision_transformer(network, torch.randn(1, 3, 40, 64), wanted[1:])[0]
    expected = seen[0][:, 1:].transpose(1, 2).reshape(2, 16, 4, 4)
    torch.testing.assert_close(last, expected)
    assert first.shape == last.shape
    assert not torch.equal(first, last)
    assert larger.shape == (1, 16, 5, 8)


def test_positional_embeddings_are_interpolated_without_the_class_token() -> None:
    ramp = torch.linspace(0, 1, 8)[None, :].expand(8, 8)  # a number per cell that grows from left to right
    embedding = torch.cat((torch.full((1, 1, 1), 9.0), ramp.reshape(1, 64, 1)), dim=1)
    assert positions(embedding, (8, 8), extra=1) is embedding
    found = positions(embedding, (4, 16), extra=1)
    assert found[0, 0] == 9
    grid = found[0, 1:, 0].view(4, 16)
    assert torch.allclose(grid, grid[:1].expand(4, 16), atol=1e-5)
    assert (grid[0].diff() > 0).all()
    torch.testing.assert_close(
        grid[0, 2:-2], ((torch.arange(16) + 0.5) / 2 - 0.5)[2:-2] / 7, rtol=0, atol=0.01
    )


@has_timm
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_patch16_dinov3_qkvb"])
def test_patch_tokens_of_timms_transformers(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(f"timm:{name}", freeze="all").eval()
    images = torch.randn(1, 3, 64, 90)
    with torch.no_grad():
        network = backbone.features
        tokens = network.forward_features(functional.pad(images, (0, 6)))  # type: ignore[operator]
        extra = tokens.shape[1] - 4 * 6
        expected = tokens[:, extra:].transpose(1, 2).reshape(1, 192, 4, 6)
        torch.testing.assert_close(backbone(images), expected)
    assert extra >= 1


@pytest.mark.parametrize(
    ("name", "freeze", "trains", "rests"),
    [
        ("torchvision:mobilenet_v2", 2, "features.2.conv.0.0.weight", "features.1.conv.0.0.weight"),
        ("torchvision:mobilenet_v2", 0, "features.0.0.weight", "features.0.1.weight"),
        ("torchvision:vit_b_32", 1, "encoder.layers.encoder_layer_1.ln_1.weight", "class_token"),
        pytest.param("timm:resnet10t", 1, "layer1.0.conv1.weight", "conv1.0.weight", marks=has_timm),
        pytest.param("timm:vit_tiny_patch16_224", 0, "cls_token", "pos_embed", marks=has_timm),
    ],
)
def test_frozen_blocks_batch_norms_and_positions_rest(
    name: str, freeze: int, trains: str, rests: str
) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, freeze=freeze).train()
    parameters = dict(backbone.features.named_parameters())
    assert parameters[trains].requires_grad
    assert not parameters[rests].requires_grad
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.training
            assert module.num_batches_tracked is None
    with torch.device("meta"):
        whole = build_backbone(name, freeze="all").train()
    assert not any(parameter.requires_grad for parameter in whole.parameters())
    assert not any(module.training for module in whole.features.modules() if list(module.parameters(False)))


MINE = """
import torch
from torch import nn
from detector.models.batch_norm import SharedBatchNorm2d

def chain():
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(4, 6, 3, 1, 1), SharedBatchNorm2d(6))

class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 8, 8)
    def forward(self, images):
        return self.layer(images)

def tokens():
    return nn.Sequential(nn.Conv2d(3, 5, 8, 8), nn.Flatten(2))

def number():
    return 3

def fails():
    raise KeyError("weights")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_networks.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return "my_networks"


def test_networks_of_the_user(mine: str) -> None:
    backbone = build_backbone(f"{mine}:chain")
    assert list(backbone.blocks) == ["0", "4"]
    assert (backbone.channels, backbone.stride, backbone.center) == (6, 4, 1.0)
    assert build_backbone(f"{mine}:chain", stage="0").map_size((33, 20)) == (17, 10)
    assert [
        module.training for module in backbone.train().modules() if isinstance(module, nn.BatchNorm2d)
    ] == [
        False,
        True,
    ]
    assert isinstance(list(backbone.features.children())[-1], SharedBatchNorm2d)
    whole = build_backbone(f"{mine}:Whole", freeze="all")
    assert (list(whole.blocks), whole.stride, whole.center) == (["network"], 8, 3.5)
    state = {name: torch.ones_like(tensor) for name, tensor in whole.features.state_dict().items()}
    assert taken(whole, f"{mine}:Whole", state) == []
    assert whole(torch.ones(1, 3, 8, 8))[0, 0, 0, 0] == 3 * 64 + 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:mobilenet_v4", r"no classification network 'mobilenet_v4' \(did you mean 'mobilenet_v"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no classification network"),
        ("torchvision:maxvit_t", "maxvit_t cannot be a backbone: an input of 672x448 pixels makes it fail"),
        pytest.param("timm:hf-hub:someone/net", "timm has no classification network", marks=has_timm),
        ("my_networks:gone", "model.backbone.name 'my_networks:gone' cannot be loaded: AttributeError"),
        ("my_networks:number", "my_networks:number returned a int; it must return a torch.nn.Module"),
        ("my_networks:fails", "my_networks:fails failed: KeyError: 'weights'"),
        ("my_networks:tokens", "cannot be a backbone: it gives .* and not maps"),
    ],
)
def test_what_is_no_backbone_is_refused(mine: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message), torch.device("meta"):
        build_backbone(name)


def test_without_timm_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries.timm_library.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"needs the package timm.*pip install 'region-detector\[timm\]'"):
        open_network("timm:resnet10t")
    libraries.timm_library.cache_clear()


def test_probing_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    first = build_backbone("torchvision:squeezenet1_1")
    after = torch.rand(1)
    torch.manual_seed(3)
    torchvision.models.squeezenet1_1()
    assert torch.equal(after, torch.rand(1))
    assert np.isfinite(first.center)
