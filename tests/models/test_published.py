"""Names and shapes in published weights, against the networks of torchvision and lists written out here."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from torchvision import models

from detector.models.backbones import build_backbone
from detector.models.heads import BoxHead
from detector.models.published import our_names
from detector.models.transfer import Transfer, plan_transfer

WITH_HEAD = {"vgg16": 512 * 49, "alexnet": 256 * 36, "caffenet": 256 * 36}
VGG16 = [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3]


def wanted(family: str, stage: str | None = None, *, head: bool = False) -> dict[str, Tensor]:
    with torch.device("meta"):
        names = {
            f"backbone.{key}": tensor
            for key, tensor in build_backbone(family, stage=stage).state_dict().items()
        }
        if head:
            layers = BoxHead(WITH_HEAD[family], [4096, 4096]).state_dict()
            names |= {f"box_head.{key}": tensor for key, tensor in layers.items()}
    return names


def planned(family: str, state: dict[str, Tensor], goal: dict[str, Tensor]) -> Transfer:
    named, spare = our_names(family, state, goal)
    return plan_transfer(goal, named, spare=spare)


def on_meta(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(getattr(models, name)().state_dict())


@pytest.mark.parametrize("stage", ["first", None, "last"])
@pytest.mark.parametrize("family", ["vgg16", "alexnet", "squeezenet1_0", "resnet18", "resnet50"])
def test_torchvisions_files_fit_whatever_the_cut(family: str, stage: str | None) -> None:
    last = "layer4" if "resnet" in family else None
    goal = wanted(family, {"first": "conv1", "last": last, None: None}[stage])
    transfer = planned(family, on_meta(family), goal)
    assert not transfer.faults
    assert transfer.tensors.keys() == goal.keys()


@pytest.mark.parametrize("family", ["vgg16", "alexnet"])
def test_torchvisions_fully_connected_layers_fit(family: str) -> None:
    goal = wanted(family, head=True)
    transfer = planned(family, on_meta(family), goal)
    assert not transfer.faults
    assert transfer.tensors.keys() == goal.keys()
    left = [row.name for row in transfer.rows if row.outcome == "left out"]
    assert left == ["classifier.6.weight", "classifier.6.bias"]


@pytest.mark.parametrize(
    ("family", "other"),
    [
        ("vgg16", "vgg19"),
        ("vgg16", "vgg13"),
        ("vgg16", "vgg16_bn"),
        ("squeezenet1_0", "squeezenet1_1"),
        ("alexnet", "vgg16"),
        ("caffenet", "alexnet"),
        ("resnet50", "resnet101"),  # every tensor that is wanted is there; those that are not give it away
        ("resnet18", "resnet34"),
        ("resnet50", "wide_resnet50_2"),
        ("resnet50", "resnext50_32x4d"),
    ],
)
def test_another_network_is_recognised(family: str, other: str) -> None:
    assert planned(family, on_meta(other), wanted(family)).faults


def parameters(layers: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    state = {}
    for name, shape in layers:
        state[f"{name}.weight"] = torch.zeros(shape, device="meta")
        state[f"{name}.bias"] = torch.zeros(shape[0], device="meta")
    return state


def caffe_vgg16() -> dict[str, Tensor]:
    before = 3
    layers: list[tuple[str, tuple[int, ...]]] = []
    for stage, widths in enumerate(VGG16, start=1):
        for number, width in enumerate(widths, start=1):
            layers.append((f"conv{stage}_{number}", (width, before, 3, 3)))
            before = width
    layers += [("fc6", (4096, 25088)), ("fc7", (4096, 4096)), ("fc8", (1000, 4096))]
    return parameters(layers)


def test_vgg16_under_caffes_names_and_in_its_first_files_shapes() -> None:
    state, goal = caffe_vgg16(), wanted("vgg16", head=True)
    four = {
        name: tensor.reshape((1,) * (4 - tensor.dim()) + tuple(tensor.shape))
        for name, tensor in state.items()
    }
    for content in (state, four):
        transfer = planned("vgg16", content, goal)
        assert not transfer.faults
        assert transfer.tensors.keys() == goal.keys()
        assert all(transfer.tensors[name].shape == goal[name].shape for name in goal)


def test_caffes_order_of_layers_is_torchvisions() -> None:
    """Every tensor holds its position in the file, which must be torchvision's under this project's names."""
    state = {name: torch.full((1,), float(place)) for place, name in enumerate(caffe_vgg16())}
    theirs = {name: torch.full((1,), float(place)) for place, name in enumerate(on_meta("vgg16"))}
    goal = wanted("vgg16", head=True)
    ours, _ = our_names("vgg16", state, goal)
    expected, _ = our_names("vgg16", theirs, goal)
    assert {name: ours[name].item() for name in goal} == {name: expected[name].item() for name in goal}


def test_vgg16_as_it_was_first_converted_for_torch() -> None:
    state = on_meta("vgg16")
    moved = {"classifier.0": "classifier.1", "classifier.3": "classifier.4"}
    old = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        old[f"{moved.get(layer, layer)}.{kind}"] = tensor
    goal = wanted("vgg16", head=True)
    transfer = planned("vgg16", old, goal)
    assert not transfer.faults
    assert transfer.tensors.keys() == goal.keys()


def test_timms_vgg16_has_its_fully_connected_layers_as_convolutions() -> None:
    state = {name: tensor for name, tensor in on_meta("vgg16").items() if name.startswith("features.")}
    layers = [("pre_logits.fc1", (4096, 512, 7, 7)), ("pre_logits.fc2", (4096, 4096, 1, 1))]
    state |= parameters([*layers, ("head.fc", (1000, 4096))])
    goal = wanted("vgg16", head=True)
    transfer = planned("vgg16", state, goal)
    assert not transfer.faults
    assert {name: tensor.shape for name, tensor in transfer.tensors.items()} == {
        name: tensor.shape for name, tensor in goal.items()
    }


def test_flattening_a_convolution_keeps_what_it_computes() -> None:
    convolution = torch.nn.Conv2d(5, 4, 7)
    with torch.device("meta"):
        goal = {
            f"box_head.layers.{name}": tensor
            for name, tensor in BoxHead(245, [4]).layers.state_dict().items()
        }
    state = {f"pre_logits.fc1.{name}": tensor for name, tensor in convolution.state_dict().items()}
    taken = planned("vgg16", state, goal).tensors
    pooled = torch.rand(3, 5, 7, 7)
    weight, bias = taken["box_head.layers.fc6.weight"], taken["box_head.layers.fc6.bias"]
    expected = convolution(pooled).flatten(1)
    torch.testing.assert_close(torch.nn.functional.linear(pooled.flatten(1), weight, bias), expected)


def test_caffenet_under_caffes_names() -> None:
    shapes = [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)]
    layers: list[tuple[str, tuple[int, ...]]] = [
        (f"conv{number}", shape) for number, shape in enumerate(shapes, start=1)
    ]
    layers += [("fc6", (4096, 9216)), ("fc7", (4096, 4096)), ("fc8", (1000, 4096))]
    goal = wanted("caffenet", head=True)
    transfer = planned("caffenet", parameters(layers), goal)
    assert not transfer.faults
    assert transfer.tensors.keys() == goal.keys()


def test_a_bare_stack_of_layers_fits_too() -> None:
    state = {name.removeprefix("features."): tensor for name, tensor in on_meta("alexnet").items()}
    goal = wanted("alexnet", "conv2")
    assert planned("alexnet", state, goal).tensors.keys() == goal.keys()


def test_two_layers_of_a_file_with_one_name_here_are_both_reported() -> None:
    state = on_meta("alexnet") | parameters([("0", (64, 3, 11, 11))])
    faults = planned("alexnet", state, wanted("alexnet")).faults
    assert [(row.outcome, row.name) for row in faults] == [
        ("unexpected", "0.weight"),
        ("unexpected", "0.bias"),
    ]
