"""Masks at the cells of a map, against sums over the pixels of decoded masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detector.core.cell_masks import CellGrid, CellMasks, cell_masks, cell_masks_by_level
from detector.core.masks import Masks
from detector.core.structures import ImageMeta

Array = NDArray[Any]


def view(mask: Array, meta: ImageMeta) -> Array:
    """Cut the window out of a mask (H, W) and flip it."""
    x1, y1, x2, y2 = meta.window or (0, 0, mask.shape[1], mask.shape[0])
    shown = np.zeros((y2 - y1, x2 - x1), bool)
    for y in range(y1, y2):
        for x in range(x1, x2):
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
                shown[y - y1, x - x1] = mask[y, x]
    shown = shown[:, ::-1] if meta.flipped else shown
    return shown[::-1] if meta.flipped_vertically else shown


def shares(pixels: int, size: int, grid: CellGrid, cells: int) -> Array:
    """Return (cells, pixels): which share of each cell, along one axis, each pixel takes."""
    found = np.zeros((cells, pixels))
    for k in range(cells):
        low = grid.center + (k - 0.5) * grid.stride
        for p in range(pixels):
            first, last = p * size / pixels, (p + 1) * size / pixels
            found[k, p] = max(min(last, low + grid.stride) - max(first, low), 0) / grid.stride
    return found


def extents(meta: ImageMeta, grid: CellGrid) -> tuple[int, int]:
    if grid.map_size is not None:
        return grid.map_size(meta.input_size)
    edge = grid.center - grid.stride / 2
    height, width = (max(math.ceil((side - edge) / grid.stride), 0) for side in meta.input_size)
    return height, width


def slowly(mask: Array, meta: ImageMeta, grid: CellGrid) -> tuple[Array, Array]:
    """Return coverage and covered centres of the whole map, (h, w)."""
    shown = view(mask, meta)
    height, width = extents(meta, grid)
    rows = shares(shown.shape[0], meta.input_size[0], grid, height)
    columns = shares(shown.shape[1], meta.input_size[1], grid, width)
    covered = np.zeros((height, width), bool)
    for j in range(height):
        y = math.floor((grid.center + j * grid.stride) * shown.shape[0] / meta.input_size[0])
        for k in range(width):
            x = math.floor((grid.center + k * grid.stride) * shown.shape[1] / meta.input_size[1])
            if 0 <= y < shown.shape[0] and 0 <= x < shown.shape[1]:
                covered[j, k] = shown[y, x]
    return rows @ shown @ columns.T, covered


def on_map(found: CellMasks, row: int, size: tuple[int, int]) -> tuple[Array, Array]:
    """Return coverage and covered centres of one mask on the whole map, (h, w)."""
    x1, y1, x2, y2 = found.windows[row].tolist()
    entries = slice(*found.offsets[row : row + 2].tolist())
    coverage, covered = np.zeros(size), np.zeros(size, bool)
    coverage[y1:y2, x1:x2] = found.coverage[entries].reshape(y2 - y1, x2 - x1)
    covered[y1:y2, x1:x2] = found.covered[entries].reshape(y2 - y1, x2 - x1)
    return coverage, covered


METAS = {
    "plain": ((20, 30), (20, 30), False, False, None),
    "scaled": ((20, 30), (47, 71), False, False, None),
    "shrunk and flipped": ((40, 31), (20, 16), True, False, None),
    "enlarged": ((9, 7), (90, 70), True, True, None),
    "cropped": ((20, 30), (40, 50), True, True, (5, 3, 25, 19)),
    "expanded": ((20, 30), (60, 70), False, True, (-6, -4, 35, 31)),
}
GRIDS = {
    "edge": CellGrid(8, 4.0),
    "caffe": CellGrid(8, 0.0),
    "inside": CellGrid(4, 9.5, lambda size: (max(size[0] // 4 - 3, 1), max(size[1] // 4 - 2, 1))),
    "coarse": CellGrid(16, 3.5),
}


def make_meta(name: str) -> ImageMeta:
    original, size, flipped, vertically, window = METAS[name]
    return ImageMeta(
        image_id=name,
        original_size=original,
        input_size=size,
        flipped=flipped,
        flipped_vertically=vertically,
        window=window,
    )


def random_masks(count: int, size: tuple[int, int], seed: int = 0) -> Array:
    """Return blobs, speckles, an empty mask and a full one, (count, H, W)."""
    generator = np.random.default_rng(seed)
    y, x = np.ogrid[: size[0], : size[1]]
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        cy, cx, ry, rx = generator.random(4) * [*size, size[0] / 2, size[1] / 2]
        mask[:] = ((y - cy) / (ry + 0.5)) ** 2 + ((x - cx) / (rx + 0.5)) ** 2 < 1
    masks[0] = generator.random(size) < 0.3
    masks[1], masks[2] = False, True
    return masks


@pytest.mark.parametrize("name", METAS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_equals_sums_over_the_pixels(name: str, grid: CellGrid) -> None:
    meta = make_meta(name)
    masks = random_masks(8, meta.original_size)
    found = cell_masks(Masks.encode(masks), meta, grid)
    for row, mask in enumerate(masks):
        coverage, covered = slowly(mask, meta, grid)
        assert bool(found.fell_back[row]) == (not covered.any())
        if not covered.any():
            assert found.windows[row].tolist() == [0] * 4
            continue
        ours = on_map(found, row, extents(meta, grid))
        np.testing.assert_allclose(ours[0], coverage, atol=1e-6)
        assert np.array_equal(ours[1], covered)
    assert found.fallbacks == int(found.fell_back.sum()) >= 1
    assert found.coverage.min() >= 0
    assert found.coverage.max() <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(METAS)), st.booleans(), st.booleans())
def test_flips_of_image_and_mask_commute(seed: int, name: str, flipped: bool, vertically: bool) -> None:
    original, size, *_ = METAS[name]
    masks = random_masks(4, original, seed)
    grid = CellGrid(4, 2.0)

    def laid(array: Array, *flips: bool) -> CellMasks:
        meta = ImageMeta(
            image_id="",
            original_size=original,
            input_size=size,
            flipped=flips[0],
            flipped_vertically=flips[1],
        )
        return cell_masks(Masks.encode(array), meta, grid)

    turned = masks[:, :, ::-1] if flipped else masks
    turned = turned[:, ::-1] if vertically else turned
    one, other = laid(masks, flipped, vertically), laid(turned, False, False)
    assert torch.equal(one.windows, other.windows)
    assert torch.equal(one.covered, other.covered)
    torch.testing.assert_close(one.coverage, other.coverage, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 60), st.sampled_from([2, 4, 7.5]))
def test_the_coverage_sums_to_the_area(seed: int, height: int, width: int, stride: float) -> None:
    masks = random_masks(4, (13, 17), seed)
    meta = ImageMeta(image_id="", original_size=(13, 17), input_size=(height, width))
    found = cell_masks(Masks.encode(masks), meta, CellGrid(stride, stride / 2))
    for row in range(4):
        if not found.fell_back[row]:
            cells = found.coverage[slice(*found.offsets[row : row + 2].tolist())]
            area = masks[row].sum() * height * width / (13 * 17)
            assert math.isclose(float(cells.sum()) * stride**2, area, rel_tol=1e-4)


def example() -> CellMasks:
    masks = Masks.join([Masks.encode(random_masks(6, (20, 30))), Masks.absent(2, (20, 30))])
    return cell_masks(masks, make_meta("scaled"), GRIDS["edge"])


def test_a_region_without_a_mask_is_no_fallback() -> None:
    found = example()
    assert found.fell_back.tolist()[6:] == [False, False]
    assert found.windows[6:].sum() == 0
    assert found.offsets[6:].unique().tolist() == [len(found.coverage)]
    assert CellMasks.absent(3).offsets.tolist() == [0] * 4


@pytest.mark.parametrize("rows", [[5, 0, 7, 0], [], list(range(8))])
def test_select_and_join(rows: list[int]) -> None:
    found = example()
    chosen = found.select(torch.tensor(rows, dtype=torch.int64))
    parts = CellMasks.join([found.select(slice(row, row + 1)) for row in rows])
    for name in ("windows", "offsets", "coverage", "covered", "fell_back"):
        assert torch.equal(getattr(chosen, name), getattr(parts, name)), name
    flags = torch.zeros(8, dtype=torch.bool)
    flags[[1, 3]] = True
    assert found.select(flags).fallbacks == found.select(torch.tensor([1, 3])).fallbacks == 1
    for row, place in enumerate(rows):
        assert all(map(np.array_equal, on_map(chosen, row, (6, 9)), on_map(found, place, (6, 9))))


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="masks of an image of"):
        cell_masks(Masks.absent(1, (3, 4)), make_meta("plain"), GRIDS["edge"])


def test_each_mask_is_laid_on_the_map_of_its_level() -> None:
    masks = Masks.encode(random_masks(8, (20, 30)))
    metas = [make_meta("plain"), make_meta("scaled")]
    grids, roi_levels = [GRIDS["edge"], GRIDS["coarse"]], torch.tensor([3, 0, 1, 2, 3, 0, 0, 2])
    found = cell_masks_by_level(masks, metas, grids, roi_levels)
    for row, level in enumerate(roi_levels.tolist()):
        alone = cell_masks(masks.select(np.array([row])), metas[level // 2], grids[level % 2])
        assert torch.equal(found.windows[row], alone.windows[0])
        assert torch.equal(found.select(slice(row, row + 1)).coverage, alone.coverage)
    alone = cell_masks_by_level(masks, metas, grids, None)
    assert torch.equal(alone.windows, cell_masks(masks, metas[0], grids[0]).windows)
