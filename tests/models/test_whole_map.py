"""Whole-map pyramid pooling against torch's adaptive pooling and against windows slid by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from detector.core.errors import InputError
from detector.core.structures import ImageMeta
from detector.models.backbones import build_backbone
from detector.models.whole_map import WholeMapPool, sliding_window, whole_image_rois
from detector.ops.spp_pool import SpatialPyramidPool, whole_map_rois

ADAPTIVE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "max": functional.adaptive_max_pool2d,
    "avg": functional.adaptive_avg_pool2d,
}


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def meta(height: int, width: int, image_id: str = "a") -> ImageMeta:
    return ImageMeta(image_id=image_id, original_size=(height, width), input_size=(height, width))


@pytest.mark.parametrize("reduction", ["max", "avg"])
@pytest.mark.parametrize("levels", [(1, 2, 4), (1, 2, 3, 6), (6, 3, 2, 1), (1,), (5, 7)])
def test_adaptive_bins_are_torchs_over_each_images_own_cells(levels: tuple[int, ...], reduction: str) -> None:
    sizes = [(9, 13), (4, 6), (1, 2), (13, 3)]
    maps = random_maps(4, 3, 13, 13)
    pool = WholeMapPool(3, levels, reduction)
    found = pool([maps], whole_map_rois(sizes))
    assert found.shape == (4, pool.out_features)
    for row, features, (height, width) in zip(found, maps, sizes, strict=True):
        own = features[:, :height, :width]
        wanted = torch.cat([ADAPTIVE[reduction](own, level).flatten() for level in levels])
        torch.testing.assert_close(row, wanted)


@pytest.mark.parametrize("rule", ["adaptive", "sliding"])
@pytest.mark.parametrize("reduction", ["max", "avg"])
@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 1e30])
def test_padding_is_never_pooled_and_gets_no_gradient(padding: float, reduction: str, rule: str) -> None:
    sizes = [(12, 8), (8, 12), (4, 4)]
    clean = random_maps(3, 2, 12, 12)
    spoilt = clean.clone()
    inside = torch.zeros(3, 1, 12, 12, dtype=torch.bool)
    for number, (height, width) in enumerate(sizes):
        inside[number, :, :height, :width] = True
    spoilt[~inside.expand_as(spoilt)] = padding
    pool = WholeMapPool(2, (1, 2, 4), reduction, rule)
    found = pool([spoilt.requires_grad_()], whole_map_rois(sizes))
    assert torch.equal(found, pool([clean], whole_map_rois(sizes)))
    (gradient,) = torch.autograd.grad(found.sum(), spoilt)
    assert not gradient[~inside.expand_as(gradient)].any()
    assert gradient[inside.expand_as(gradient)].sum() == pytest.approx(found.numel())


def slide(plane: Tensor, bins: int, reduction: str) -> Tensor:
    """The windows of the paper, cell by cell: plane (a, b) -> (bins, bins)."""
    (a, b), out = plane.shape, torch.zeros(bins, bins)
    for i in range(bins):
        for j in range(bins):
            top, left = i * (a // bins), j * (b // bins)
            window = plane[top : top + math.ceil(a / bins), left : left + math.ceil(b / bins)]
            out[i, j] = window.max() if reduction == "max" else window.mean()
    return out


@pytest.mark.parametrize("reduction", ["max", "avg"])
@pytest.mark.parametrize(
    ("size", "levels"), [((13, 13), (1, 2, 3, 6)), ((8, 13), (1, 2, 4)), ((14, 10), (3,))]
)
def test_sliding_windows_equal_those_of_the_paper(
    size: tuple[int, int], levels: tuple[int, ...], reduction: str
) -> None:
    maps = random_maps(2, 3, 15, 15, seed=1)
    found = WholeMapPool(3, levels, reduction, "sliding")([maps], whole_map_rois([size, size]))
    for row, features in zip(found, maps, strict=True):
        planes = [plane[: size[0], : size[1]] for plane in features]
        wanted = [slide(plane, level, reduction).flatten() for level in levels for plane in planes]
        torch.testing.assert_close(row, torch.cat(wanted))


# Counted for sides 1 to 64 with a plain sliding pool: where the formula gives another number of bins.
WRONG = {
    1: set(),
    2: {1},
    3: {1, 2, 5},
    4: {1, 2, 3, 6, 7, 11},
    6: {*range(1, 6), *range(8, 12), *range(15, 18), 22, 23, 29},
}


@pytest.mark.parametrize("bins", WRONG)
def test_the_formula_is_refused_where_it_gives_another_number_of_bins(bins: int) -> None:
    for side in sorted(WRONG[bins]):
        with pytest.raises(InputError, match=rf"\(a, n\) = \({side}, {bins}\)"):
            sliding_window(side, bins)
    for side in sorted({*range(1, 65)} - WRONG[bins]):
        pooled = functional.max_pool1d(torch.zeros(1, 1, side), *sliding_window(side, bins))
        assert pooled.shape[-1] == bins


def test_sliding_names_the_side_that_does_not_fit() -> None:
    pool = WholeMapPool(1, (1, 2, 3, 6), rule="sliding")
    with pytest.raises(InputError, match=r"\(a, n\) = \(10, 6\).*give 9 bins instead of 6.*adaptive"):
        pool([torch.zeros(1, 1, 13, 10)], whole_map_rois([(13, 10)]))


def test_adaptive_and_sliding_agree_where_the_side_is_a_multiple() -> None:
    maps, whole = random_maps(2, 4, 12, 12, seed=2), whole_map_rois([(12, 12)] * 2)
    for reduction in ("max", "avg"):
        adaptive, sliding = (WholeMapPool(4, (1, 2, 4), reduction, rule) for rule in ("adaptive", "sliding"))
        torch.testing.assert_close(adaptive([maps], whole), sliding([maps], whole))


def test_the_layout_is_the_region_pyramids() -> None:
    """A region that covers the whole map gives the same row, so fc6 can go to a detector."""
    maps = random_maps(2, 3, 10, 14, seed=3)
    region = torch.tensor([[0.0, 0, 0, 14 * 8, 10 * 8], [1.0, 0, 0, 14 * 8, 10 * 8]])
    regions = SpatialPyramidPool((6, 3, 2, 1), 1 / 8, window="spp", center=3.5)(maps, region)
    assert torch.equal(WholeMapPool(3, (6, 3, 2, 1))([maps], whole_map_rois([(10, 14)] * 2)), regions)


def test_rois_cover_what_the_backbone_makes_of_each_image() -> None:
    backbone = build_backbone("squeezenet1_0")  # its pools round up
    sizes = [(97, 130), (131, 64), (64, 64)]
    rois = whole_image_rois(backbone, [meta(*size) for size in sizes])
    for number, size in enumerate(sizes):
        height, width = backbone(torch.zeros(1, 3, *size)).shape[-2:]
        assert rois[number].tolist() == [number, 0, 0, width, height]


def test_an_image_without_a_cell_is_named() -> None:
    backbone = build_backbone("alexnet")
    with pytest.raises(InputError, match=r"'tiny': 300x9 pixels .* less than one cell"):
        whole_image_rois(backbone, [meta(200, 200), meta(9, 300, "tiny")])
