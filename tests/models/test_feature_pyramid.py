"""The feature pyramid and the rule for its levels, against torchvision's and plain convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops.poolers import LevelMapper

from detector.core.errors import InputError
from detector.models.backbones import build_backbone
from detector.models.feature_pyramid import FeaturePyramid, pyramid_level


def random_boxes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * 100
    sides = torch.exp(torch.rand(count, 2, generator=generator) * 8)
    edges = torch.tensor([28.0, 56, 112, 224, 448, 896])[:, None].expand(-1, 2)
    boxes = torch.cat((corners, corners + sides), dim=1)
    return torch.cat((boxes, torch.cat((torch.zeros(6, 2), edges), dim=1), torch.zeros(1, 4)))


@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (8, 16), (4, 8, 16), (16, 32, 64)])
def test_levels_are_those_of_torchvision(strides: tuple[int, ...]) -> None:
    boxes = random_boxes(500)
    powers = [stride.bit_length() - 1 for stride in strides]
    expected = LevelMapper(powers[0], powers[-1])([boxes])
    assert torch.equal(pyramid_level(boxes, strides), expected)
    assert len(expected.unique()) == len(strides)


def test_a_missing_stride_is_replaced_by_the_next_finer_one() -> None:
    boxes = torch.tensor([[0.0, 0, side, side] for side in (50, 100, 150, 300, 600)])
    assert pyramid_level(boxes, (4, 16)).tolist() == [0, 0, 0, 1, 1]


def test_levels_of_several_scales_follow_each_other() -> None:
    pyramid = FeaturePyramid([3, 3], (8, 16), (0.0, 0.0), 4)
    rois = torch.tensor([[0.0, 0, 0, 50, 50], [0, 0, 0, 300, 300], [0, 0, 0, 50, 50], [0, 0, 0, 300, 300]])
    assert pyramid.place(rois, None).tolist() == [0, 1, 0, 1]
    assert pyramid.place(rois, torch.tensor([0, 0, 1, 2])).tolist() == [0, 1, 2, 5]


def test_the_levels_are_sums_of_lateral_maps_and_enlarged_coarser_ones() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid([3, 5, 7], (4, 8, 16), (0.0, 0.0, 0.0), 4)
    maps = [torch.randn(2, 3, 13, 20), torch.randn(2, 5, 7, 10), torch.randn(2, 7, 4, 5)]
    state = {
        name.rpartition(".layers.")[2].removeprefix("layers."): t for name, t in pyramid.state_dict().items()
    }
    total = torch.zeros(())
    for number in (2, 1, 0):
        lateral = functional.conv2d(
            maps[number], state[f"inner_blocks.{number}.0.weight"], state[f"inner_blocks.{number}.0.bias"]
        )
        if number < 2:  # cell (i, j) of the finer map takes the cell of the coarser one that covers it
            height, width = lateral.shape[-2:]
            rows = torch.arange(height) * total.shape[2] // height
            columns = torch.arange(width) * total.shape[3] // width
            lateral = lateral + total[:, :, rows][..., columns]
        total = lateral
        weight, bias = (state[f"layer_blocks.{number}.0.{kind}"] for kind in ("weight", "bias"))
        expected = functional.conv2d(total, weight, bias, padding=1)
        torch.testing.assert_close(pyramid(maps)[number], expected)


def test_the_maps_are_those_of_the_last_block_of_each_stride() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", pyramid=True, freeze=2, feature_scale=0.5).eval()
    images = torch.rand(1, 3, 64, 96)
    layers = dict(backbone.features.named_children())
    expected = []
    features = images
    for name, layer in layers.items():
        features = layer(features)
        if name.startswith("layer"):
            expected.append(features * 0.5)
    assert [(each.stride, each.channels) for each in backbone.maps] == [
        (4, 64),
        (8, 128),
        (16, 256),
        (32, 512),
    ]
    found = backbone.pyramid(images)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert [each.size((64, 96)) for each in backbone.maps] == [tuple(map.shape[2:]) for map in found]
    assert torch.equal(backbone(images), expected[-1])


def test_without_two_strides_there_is_no_pyramid() -> None:
    with pytest.raises(InputError, match="the strides 2, 4; take another backbone"):
        build_backbone("small", stage="conv2", pyramid=True)
    with pytest.raises(InputError, match="smaller than one cell"):
        build_backbone("squeezenet1_0", pyramid=True).pyramid(torch.zeros(1, 3, 15, 64))
