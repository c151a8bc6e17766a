"""Published weights: torchvision's layouts, both input conventions, and files that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from detector.data.transforms import ImageTransform
from detector.errors import InputError
from detector.models.backbones import build_backbone
from detector.models.heads import BoxHead
from detector.models.weights import load_backbone, load_head, normalization, read_state_dict
from tests.conftest import PROJECT

WEIGHTS = PROJECT / "data" / "weights"


def published(name: str) -> nn.Module:
    """A network of torchvision's with random weights, standing for the published one."""
    torch.manual_seed(3)
    network: nn.Module = getattr(models, name)()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that differ from those of a fresh network
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def published_features(name: str, network: nn.Module, images: Tensor) -> Tensor:
    if name == "resnet18":
        stem = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        return network.layer3(network.layer2(network.layer1(stem)))
    layers = list(network.features)
    return nn.Sequential(*layers[:-1] if name == "alexnet" else layers)(images)  # without the last pool


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_0", "resnet18"])
def test_features_are_those_of_torchvisions_network(tmp_path: Path, name: str) -> None:
    network = published(name)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone(name).eval()
    load_backbone(backbone, read_state_dict(tmp_path / "weights.pth"), "weights.pth")
    images = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(images), published_features(name, network, images))


def test_a_bare_stack_of_layers_loads_too() -> None:
    network = published("alexnet")
    backbone = build_backbone("alexnet", stage="conv2")
    load_backbone(backbone, network.features.state_dict(), "bare")
    assert torch.equal(backbone.features[3].weight, network.features[3].weight)


def test_vgg16_takes_torchvisions_names() -> None:
    with torch.device("meta"):
        theirs, ours = models.vgg16().state_dict(), build_backbone("vgg16").features.state_dict()
        head = BoxHead(512 * 49, [4096, 4096]).layers.state_dict()
    assert {f"features.{name}": value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items() if name.startswith("features.")
    }
    for theirs_name, ours_name in (("classifier.0", "fc6"), ("classifier.3", "fc7")):
        for kind in ("weight", "bias"):
            assert theirs[f"{theirs_name}.{kind}"].shape == head[f"{ours_name}.{kind}"].shape


def test_alexnets_fc6_and_fc7_compute_what_they_did() -> None:
    network = published("alexnet")
    head = BoxHead(256 * 36, [4096, 4096]).eval()
    load_head(head.layers, network.state_dict(), "alexnet", "weights.pth")
    pooled = torch.rand(2, 256, 6, 6)
    with torch.inference_mode():
        expected = network.classifier[:-1](pooled.flatten(1))  # all but the layer of 1000 classes
        torch.testing.assert_close(head(pooled.flatten(1)), expected)


def test_a_head_of_one_layer_takes_fc6_alone() -> None:
    state = {
        "classifier.1.weight": torch.rand(8, 4),
        "classifier.1.bias": torch.rand(8),
        "classifier.4.weight": torch.rand(6, 8),
        "classifier.4.bias": torch.rand(6),
    }
    head = BoxHead(4, [8])
    load_head(head.layers, state, "alexnet", "weights.pth")
    assert torch.equal(head.layers.fc6.weight, state["classifier.1.weight"])
    with pytest.raises(InputError, match=r"w\.pth: does not fit .*missing fc8\.weight; missing fc8\.bias"):
        load_head(BoxHead(4, [8, 6, 5]).layers, state, "alexnet", "w.pth")
    with pytest.raises(InputError, match=r"fc6\.weight \(8, 4\) where \(8, 9\) is needed"):
        load_head(BoxHead(9, [8]).layers, state, "alexnet", "w.pth")
    with pytest.raises(
        InputError, match=r"model\.head\.weights: resnet18 has no fc6 and fc7; set it to false"
    ):
        load_head(head.layers, state, "resnet18", "w.pth")


def test_what_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    state = published("resnet18").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    del state["bn1.running_mean"]
    backbone = build_backbone("resnet18")
    before = backbone.features.conv1.weight.clone()
    with pytest.raises(InputError) as caught:
        load_backbone(backbone, state, "bad.pth")
    assert str(caught.value) == (
        "bad.pth: does not fit the configured network: missing bn1.running_mean; "
        "layer1.0.conv1.weight (64, 64, 1, 1) where (64, 64, 3, 3) is needed"
    )
    assert torch.equal(backbone.features.conv1.weight, before)
    with pytest.raises(InputError, match=r"and [0-9]+ more"):
        load_backbone(backbone, published("alexnet").state_dict(), "alexnet.pth")


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.pth: no such weights file"):
        read_state_dict(tmp_path / "gone.pth")
    whole = tmp_path / "whole.pth"
    torch.save({"a": torch.zeros(1000)}, whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:-600])
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")  # a pickled object, which could run code
    for name in ("cut", "text", "empty", "module"):
        with pytest.raises(InputError, match=rf"{name}\.pth: not readable as a state dict of tensors"):
            read_state_dict(tmp_path / f"{name}.pth")
    for number, content in enumerate(([torch.zeros(1)], {"epoch": 3}, {"model": {"a": torch.zeros(1)}})):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(InputError, match="names to tensors, and nothing else"):
            read_state_dict(tmp_path / f"{number}.pth")


def test_conventions() -> None:
    rgb, bgr = normalization("torchvision"), normalization("caffe")
    assert (rgb.maximum, rgb.bgr, rgb.mean) == (255.0, False, (0.485, 0.456, 0.406))
    assert (bgr.maximum, bgr.bgr, bgr.mean) == (1.0, True, (102.9801, 115.9465, 122.7717))
    assert normalization("caffe", (104.0, 117.0, 123.0)).mean == (104.0, 117.0, 123.0)
    with pytest.raises(InputError, match="convention 'darknet' is unknown"):
        normalization("darknet")


def test_both_squeezenet_files_give_the_same_features() -> None:
    """The files hold one network; each gets its own input, so that features must agree."""
    found = {}
    for convention, name, mean in (
        ("torchvision", "squeezenet1_0-dc_tvnorm-fba6d0e6.pth", None),
        ("caffe", "squeezenet1_0-dc-71925592.pth", (104.0, 117.0, 123.0)),
    ):
        path = WEIGHTS / name
        if not path.exists():
            pytest.skip(f"{path.relative_to(PROJECT)} is not there")
        backbone = build_backbone("squeezenet1_0").eval()
        load_backbone(backbone, read_state_dict(path), name)
        transform = ImageTransform(normalization=normalization(convention, mean), scales=(128,), max_size=999)
        image = torch.randint(0, 256, (128, 160, 3), generator=torch.Generator().manual_seed(0))
        pixels, _ = transform(image.to(torch.uint8).numpy(), "noise")
        with torch.inference_mode():
            found[convention] = backbone(pixels[None])
    largest = found["caffe"].abs().max()
    assert largest > 10  # the network does answer
    assert (found["torchvision"] - found["caffe"]).abs().max() < 1e-4 * largest
