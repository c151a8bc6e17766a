"""Probed geometry, against the geometry that follows from the layers, and against gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detector.models.backbones import NAMES, build_backbone
from detector.models.probing import Misplaced, pad_to_multiple, probe

Layers = Callable[[], nn.Module]


def probed(make: Callable[[], nn.Module], run: Callable[[nn.Module, Tensor], Tensor] | None = None) -> list:
    with torch.device("meta"):
        network = make().eval()
    return probe(lambda images: [run(network, images) if run else network(images)])


@pytest.mark.parametrize("name", NAMES)
def test_probing_agrees_with_the_geometry_of_the_layers(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name).eval()
    (place,) = probe(backbone.run)
    assert (place.channels, place.stride, place.center) == (
        backbone.channels,
        backbone.stride,
        backbone.center,
    )
    lengths = range(1, 400)
    assert [place.size(length) for length in lengths] == [
        backbone.geometry.size(length) for length in lengths
    ]


class Same(nn.Conv2d):
    """A convolution with TensorFlow's padding, which depends on the size of its input."""

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        more = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in images.shape[-2:]]
        pads = [more[1] // 2, more[1] - more[1] // 2, more[0] // 2, more[0] - more[0] // 2]
        return functional.conv2d(functional.pad(images, pads), self.weight, stride=self.stride)


class Merging(nn.Module):
    """Patches, merged two by two as Swin does, with channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, stride=4)
        self.reduction = nn.Linear(16, 8)

    def forward(self, images: Tensor) -> Tensor:
        cells = self.patches(images).permute(0, 2, 3, 1)
        parts = [cells[:, down::2, right::2] for right in (0, 1) for down in (0, 1)]
        return self.reduction(torch.cat(parts, dim=-1)).permute(0, 3, 1, 2)


class Branches(nn.Module):
    """A strided convolution beside a shortcut that sees less, and a gate that sees the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 1), nn.Conv2d(4, 4, (1, 3), padding=(0, 1)))
        self.main.append(nn.Conv2d(4, 4, (3, 1), padding=(1, 0)))
        self.shortcut = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        cells = self.main(images) + self.shortcut(images)
        return cells * cells.mean((2, 3), keepdim=True).sigmoid()


NETWORKS: dict[str, Layers] = {
    "same": lambda: nn.Sequential(Same(3, 4, 3, stride=2), nn.ReLU(), Same(4, 4, 5, stride=2), Same(4, 4, 3)),
    "merging": Merging,
    "branches": Branches,
    "dilated": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, dilation=2), nn.AvgPool2d(2, ceil_mode=True)),
    "padding": lambda: nn.Sequential(nn.ZeroPad2d((3, 0, 3, 0)), nn.Conv2d(3, 4, 4, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cell_sees_the_pixels_around_its_centre(name: str) -> None:
    (place,) = probed(NETWORKS[name])
    torch.manual_seed(0)
    network = NETWORKS[name]().double().eval()
    images = torch.randn(1, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    for cell in (5, 6):
        features = network(pad_to_multiple(images, place.multiple))
        assert features.shape[1] == place.channels
        (gradient,) = torch.autograd.grad(features[0, :, cell, cell].sum(), images)
        reached = gradient[0].abs().amax(dim=0)
        expected = place.center + cell * place.stride
        for seen in (reached.amax(dim=0), reached.amax(dim=1)):
            # The gate's gradient reaches the whole image but is an order of magnitude smaller.
            places = torch.nonzero(seen > 0.02 * seen.max())[:, 0]
            assert (places[0] + places[-1]).item() / 2 == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_those_of_a_run(name: str) -> None:
    (place,) = probed(NETWORKS[name])
    network = NETWORKS[name]().to("meta")
    for length in [*range(1, 40), 99, 100, 101]:
        whole = pad_to_multiple(torch.zeros(1, 3, length, 128, device="meta"), place.multiple)
        try:
            cells = network(whole).shape[2]
        except RuntimeError:  # smaller than the first window
            cells = 0
        assert place.size(length) == cells


def fixed(network: nn.Module, images: Tensor) -> Tensor:
    return network(images).reshape(1, 4, 224, 224)


def misaligned(network: nn.Module, images: Tensor) -> Tensor:
    cells = network(images)
    coarse = cells[:, :, ::2, ::2]
    return cells[:, :, : coarse.shape[2], : coarse.shape[3]] + coarse


def narrow(network: nn.Module, images: Tensor) -> Tensor:
    return functional.max_pool2d(network(images), (1, 2))


def shuffled(network: nn.Module, images: Tensor) -> Tensor:
    cells = network(images)
    return cells[:, :, torch.arange(cells.shape[2], device="meta")][..., ::3]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (fixed, "an input of 672x448 pixels makes it fail"),
        (misaligned, "cells 1 pixels apart and cells 2 pixels apart are added"),
        (narrow, "its rows and its columns differ"),
        (shuffled, "in a way that cannot be followed"),
        (lambda network, images: network(images).mean((2, 3)), r"it gives \(1, 4\) and not maps"),
        (lambda network, images: [network(images)], "it gives list and not maps"),
    ],
)
def test_a_map_that_is_no_grid_over_the_image_is_refused(run: Callable, message: str) -> None:
    with pytest.raises(Misplaced, match=message):
        probed(partial(nn.Conv2d, 3, 4, 1), run)
