"""Pooling over masks: against slow references, and what must hold for every pool and mode."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.core.cell_masks import CellMasks, cell_masks
from detector.core.masks import Masks
from detector.core.structures import ImageMeta, stack_rois
from detector.models.region_pools import LevelPool, PyramidPooling, RoIAlignPooling, RoIPooling
from detector.ops import roi_pool, spp_pool
from detector.ops.roi_align import roi_align
from tests.ops import masked_reference as slow

STRIDE = 8
MODES = ("cells", "weighted")
Make = Callable[[str], LevelPool]
POOLS: dict[str, Make] = {
    "roi": lambda mask: RoIPooling(3, 3, STRIDE, mask=mask),
    "roi network": lambda mask: RoIPooling(3, 2, STRIDE, 2.5, mask=mask),
    "align": lambda mask: RoIAlignPooling(3, 3, STRIDE, mask=mask),
    "align 2 samples": lambda mask: RoIAlignPooling(3, 2, STRIDE, 5.0, sampling_ratio=2, mask=mask),
    "spp": lambda mask: PyramidPooling(3, (3, 1), STRIDE, center=3.5, mask=mask),
    "spp shrink": lambda mask: PyramidPooling(3, (2, 1), STRIDE, center=0.0, shrink=1.0, mask=mask),
    "spp roi": lambda mask: PyramidPooling(3, (4, 2), STRIDE, window="roi", mask=mask),
}
each_pool = pytest.mark.parametrize("make", POOLS.values(), ids=POOLS)
each_mode = pytest.mark.parametrize("mode", MODES)
META = ImageMeta(image_id="", original_size=(70, 90), input_size=(70, 90))
EXTENTS = (8, 11)  # fewer cells than the input has room for


def blobs(count: int, seed: int) -> np.ndarray:
    """Return ellipses and speckles (count, 70, 90), one of each three cut by the image's edge."""
    generator = np.random.default_rng(seed)
    y, x = np.ogrid[:70, :90]
    masks = np.zeros((count, 70, 90), bool)
    for number, mask in enumerate(masks):
        cy, cx, ry, rx = generator.random(4) * (70, 90, 30, 40)
        mask[:] = ((y - cy) / (ry + 1)) ** 2 + ((x - cx) / (rx + 1)) ** 2 < 1
        if number % 4 == 0:
            mask &= generator.random(mask.shape) < 0.5
    return masks


def regions(pool: LevelPool, masks: np.ndarray) -> tuple[Tensor, CellMasks]:
    """Return the RoIs of masks, all in the second image, and the masks at the map."""
    encoded = Masks.encode(masks)
    rois = torch.cat((torch.ones(len(masks), 1), encoded.boxes()), dim=1)
    return rois, cell_masks(encoded, META, pool.cell_grid(0, lambda _: EXTENTS))


def maps(covered: CellMasks) -> list[slow.Map]:
    found: list[slow.Map] = []
    for row, (x1, y1, x2, y2) in enumerate(covered.windows.tolist()):
        entries = slice(*covered.offsets[row : row + 2].tolist())
        whole = torch.zeros(EXTENTS), torch.zeros(EXTENTS, dtype=torch.bool)
        for part, numbers in zip(whole, (covered.coverage, covered.covered), strict=True):
            part[y1:y2, x1:x2] = numbers[entries].view(y2 - y1, x2 - x1)
        found.append(whole)
    return found


def slowly(pool: LevelPool, features: Tensor, rois: Tensor, covered: CellMasks) -> Tensor:
    _, center = pool.geometry(0)
    moved = torch.cat((rois[:, :1], rois[:, 1:] - center), dim=1)
    if isinstance(pool, RoIPooling):
        cut, sides = slow.caffe(1 / STRIDE), (pool.output_size,)
        return slow.bins(features, moved, maps(covered), sides, cut, pool.mask)
    if isinstance(pool, PyramidPooling):
        shrink = STRIDE / 2 if pool.shrink is None else pool.shrink
        cut = slow.spp(STRIDE, pool.window, center, shrink, EXTENTS)
        return slow.bins(features, rois, maps(covered), pool.grids, cut, pool.mask)
    assert isinstance(pool, RoIAlignPooling)
    settings = (pool.output_size, 1 / STRIDE, pool.sampling_ratio, pool.mask)
    return slow.align(features, moved + torch.tensor([0.0, 4, 4, 4, 4]), maps(covered), *settings)


def make_features(dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, *EXTENTS).to(dtype)


@each_pool
@each_mode
def test_equals_the_slow_reference(make: Make, mode: str) -> None:
    pool, features = make(mode), make_features()
    rois, covered = regions(pool, blobs(14, seed=1))
    kept = covered.windows.sum(1) > 0
    rois, covered = rois[kept], covered.select(kept)
    assert len(rois) > 8
    expected = slowly(pool, features, rois, covered).float()
    found = pool([features], rois, None, covered)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    assert found.any()


@each_pool
@each_mode
def test_gradcheck(make: Make, mode: str) -> None:
    pool = make(mode)
    features = torch.randperm(2 * 3 * 88).view(2, 3, *EXTENTS).double().div(50).requires_grad_()
    rois, covered = regions(pool, blobs(5, seed=2))
    covered = CellMasks.join([covered, CellMasks.absent(1)])
    rois = torch.cat((rois, rois[:1])).double()
    assert torch.autograd.gradcheck(
        lambda x: pool([x], rois, None, covered), (features,), eps=1e-5, fast_mode=True
    )


def unmasked(pool: LevelPool, features: Tensor, rois: Tensor) -> Tensor | None:
    """Return what the operator of boxes with the same maximum or average gives, None if there is none."""
    stride, center = pool.geometry(0)
    moved = torch.cat((rois[:, :1], rois[:, 1:] - center), dim=1)
    if isinstance(pool, PyramidPooling):
        reduction = "max" if pool.mask == "cells" else "avg"
        where = (pool.window, center, pool.shrink)
        return spp_pool(features, rois, pool.grids, 1 / stride, reduction, *where)
    if isinstance(pool, RoIPooling) and pool.mask == "cells":
        return roi_pool(features, moved, pool.output_size, 1 / stride).flatten(1)
    if isinstance(pool, RoIAlignPooling) and pool.mask == "weighted":
        rows = torch.cat((rois[:, :1], rois[:, 1:] - (center - stride / 2)), dim=1)
        return roi_align(features, rows, pool.output_size, 1 / stride, pool.sampling_ratio).flatten(1)
    return None


@each_pool
@each_mode
def test_a_mask_without_a_cell_and_a_region_without_a_mask_give_the_bits_of_the_box(
    make: Make, mode: str
) -> None:
    pool, features = make(mode), make_features()
    masks = blobs(6, seed=3)
    masks[1], masks[4] = False, False
    masks[1, 16, 33] = True  # no centre of a cell: those are at multiples of 8, plus 0, 2.5, 4 or 5
    rois, covered = regions(pool, masks)
    rois = torch.cat((rois, torch.tensor([[1, 5.0, 6, 60, 50]])))
    rois[4, 1:] = torch.tensor([40.0, 20, 80, 70])
    covered = CellMasks.join([covered, CellMasks.absent(1)])
    assert covered.fallbacks == 2
    found, boxes = pool([features], rois, None, covered), pool([features], rois)
    plain = unmasked(pool, features, rois)
    for row in (1, 4, 6):
        assert torch.equal(found[row], boxes[row])
        if plain is not None:
            assert torch.equal(found[row], plain[row])
    assert not all(torch.equal(found[row], boxes[row]) for row in (0, 2, 3, 5))


@each_pool
@each_mode
def test_boxes_equal_the_slow_reference(make: Make, mode: str) -> None:
    pool, features = make(mode), make_features()
    rois, _ = regions(pool, blobs(8, seed=4))
    everything = CellMasks(
        torch.tensor([[0, 0, EXTENTS[1], EXTENTS[0]]]).repeat(8, 1),
        torch.arange(9) * 88,
        torch.ones(8 * 88),
        torch.ones(8 * 88).bool(),
        torch.zeros(8).bool(),
    )
    rois[:, 1:3].clamp_(min=4)
    rois[:, 3:] = rois[:, 3:].maximum(rois[:, 1:3] + 2).minimum(torch.tensor([84.0, 60.0]))
    expected = slowly(pool, features, rois, everything).float()
    torch.testing.assert_close(pool([features], rois), expected, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(pool([features], rois, None, everything), expected, rtol=1e-5, atol=2e-6)
    if mode == "cells" and not isinstance(pool, RoIAlignPooling):
        assert torch.equal(pool([features], rois, None, everything), pool([features], rois))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(POOLS)), st.sampled_from(MODES), st.booleans())
def test_flips_and_scaling(seed: int, name: str, mode: str, flipped: bool) -> None:
    pool = POOLS[name](mode)
    features, masks = make_features(), blobs(4, seed)
    rois, covered = regions(pool, masks)
    found = pool([features], rois, None, covered)
    torch.testing.assert_close(pool([features * 4], rois, None, covered), found * 4)  # a power of 2 is exact

    # The map of 8 x 11 cells of the pool that puts cell k at (k + 0.5) * 8 mirrors an image of 88 pixels.
    if name != "align":
        return
    encoded = Masks.encode(np.ascontiguousarray(masks[:, :64, :88]))
    meta = ImageMeta(image_id="", original_size=(64, 88), input_size=(64, 88), flipped=flipped)
    boxes = meta.to_input(encoded.boxes())
    there = cell_masks(encoded, meta, pool.cell_grid(0))
    turned = cell_masks(
        Masks.encode(np.ascontiguousarray(masks[:, :64, :88][:, :, :: -1 if flipped else 1])),
        ImageMeta(image_id="", original_size=(64, 88), input_size=(64, 88)),
        pool.cell_grid(0),
    )
    rows = stack_rois([boxes])
    torch.testing.assert_close(
        pool([features], rows, None, there), pool([features], rows, None, turned), rtol=1e-5, atol=1e-6
    )


@each_pool
@each_mode
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_under_autocast(make: Make, mode: str, dtype: torch.dtype) -> None:
    pool, features = make(mode), make_features(dtype)
    rois, covered = regions(pool, blobs(6, seed=5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool([features.requires_grad_()], rois, None, covered)
    assert found.dtype == dtype
    expected = pool([features.detach().float()], rois, None, covered).to(dtype)
    torch.testing.assert_close(found, expected)
    found.sum().backward()


@each_pool
@each_mode
def test_several_levels_take_their_own_masks(make: Make, mode: str) -> None:
    pool = make(mode)
    levels = [make_features(), torch.randn(2, 3, *EXTENTS)]
    rois, covered = regions(pool, blobs(9, seed=6))
    roi_levels = torch.arange(9) % 2
    found = pool(levels, rois, roi_levels, covered)
    for number, level in enumerate(levels):
        mine = roi_levels == number
        alone = pool([level], rois[mine], None, covered.select(mine))
        torch.testing.assert_close(found[mine], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@each_pool
@each_mode
def test_cuda_gives_what_the_cpu_gives_and_the_same_gradient_on_every_run(make: Make, mode: str) -> None:
    pool, features = make(mode), make_features().requires_grad_()
    rois, covered = regions(pool, blobs(40, seed=8))
    covered = CellMasks.join([covered, CellMasks.absent(2)])
    rois = torch.cat((rois, rois[:2]))
    pooled = pool([features], rois, None, covered)
    grad = torch.randn_like(pooled)
    (expected,) = torch.autograd.grad(pooled, features, grad)
    there = features.detach().cuda().requires_grad_()
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(5):
            found = pool([there], rois.cuda(), None, covered.to("cuda"))
            torch.testing.assert_close(found.cpu(), pooled, rtol=1e-5, atol=2e-6)
            gradients.append(torch.autograd.grad(found, there, grad.cuda())[0])
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(gradients[0].cpu(), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(gradients[0], one) for one in gradients[1:])


def test_no_regions() -> None:
    for make in POOLS.values():
        for mode in MODES:
            pool = make(mode)
            found = pool([make_features()], torch.zeros(0, 5), None, CellMasks.absent(0))
            assert found.shape == (0, pool.out_features)


def test_a_pool_without_masks_leaves_them_out() -> None:
    pool = POOLS["roi"]("none")
    rois, covered = regions(pool, blobs(4, seed=7))
    features = make_features()
    assert torch.equal(pool([features], rois, None, covered), pool([features], rois))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="mask must be none, cells or weighted, not 'all'"):
        POOLS["roi"]("all")
    with pytest.raises(ValueError, match="1 masks for 2 RoIs"):
        POOLS["roi"]("cells")([make_features()], torch.ones(2, 5), None, CellMasks.absent(1))
