"""R-CNN's crops against a slow reference, the paper's rule on ramps, and the convolutions on each region."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.core.errors import InputError
from detector.models.backbones import build_backbone, identity_backbone
from detector.models.crops import CropPooling, cut_windows, region_windows
from tests.typed import gradient

RAMP = torch.arange(200.0) + 0.5  # the value of a pixel is where its middle lies


def slow_crop(image: np.ndarray, box: list[float], size: int, context: int, square: bool) -> np.ndarray:
    """Cut ``box`` out of ``image`` (C, H, W), pixel by pixel, in double precision."""
    middle_x, middle_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    width, height = max(box[2] - box[0], 1), max(box[3] - box[1], 1)
    if square:
        width = height = max(width, height)
    step_x, step_y = width / (size - 2 * context), height / (size - 2 * context)
    crop = np.zeros((len(image), size, size))
    for row in range(size):
        for column in range(size):
            y = middle_y + (row + 0.5 - size / 2) * step_y - 0.5  # as an index of pixels
            x = middle_x + (column + 0.5 - size / 2) * step_x - 0.5
            for down in (int(np.floor(y)), int(np.floor(y)) + 1):
                for right in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= down < image.shape[1] and 0 <= right < image.shape[2]:
                        share = (1 - abs(y - down)) * (1 - abs(x - right))
                        crop[:, row, column] += share * image[:, down, right]
    return crop


@pytest.mark.parametrize("square", [False, True], ids=["warp", "crop"])
@pytest.mark.parametrize(("size", "context"), [(12, 3), (9, 0), (16, 7)])
def test_equals_the_slow_reference(square: bool, size: int, context: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 30, 44, generator=generator)
    corners = torch.rand(24, 2, 2, generator=generator) * torch.tensor([64.0, 50.0]) - 10
    rois = torch.cat((torch.arange(24)[:, None] % 3, corners.amin(1), corners.amax(1)), dim=1)
    rois = torch.cat((rois, torch.tensor([[1, 5, 5, 5, 5], [0, 3.2, 4, 3.5, 20], [2, 60, 60, 80, 70]])))
    pool = CropPooling(identity_backbone(), 4, crop_size=size, context=context, square=square)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        crops = pool.cut(images.contiguous(memory_format=memory_format), rois)
        for crop, (number, *box) in zip(crops, rois.tolist(), strict=True):
            expected = slow_crop(images[int(number)].numpy(), box, size, context, square)
            np.testing.assert_allclose(crop, expected, atol=2e-4)


def test_the_region_fills_all_but_the_context() -> None:
    """A crop of 56 pixels with 8 of context: pixels 8 to 47 cover the region, each 4 pixels of the image."""
    images = torch.stack((RAMP.expand(200, 200), RAMP[:, None].expand(200, 200)))[None]
    roi = torch.tensor([[40.0, 60.0, 80.0, 100.0]])
    x, y = cut_windows(images, region_windows(roi, 56, 8), torch.zeros(1), 56)[0]
    inside = torch.arange(40.0) + 0.5
    torch.testing.assert_close(x[0, 8:48], 40 + inside)
    torch.testing.assert_close(y[8:48, 0], 60 + inside)
    assert (x[0, 7], x[0, 48]) == pytest.approx((39.5, 80.5))


@pytest.mark.parametrize(("square", "window"), [(False, (12, 24, 108, 48)), (True, (12, -12, 108, 84))])
def test_warping_stretches_and_cropping_takes_the_tightest_square(
    square: bool, window: tuple[float, ...]
) -> None:
    """A region of 64 x 16 with p = 16 and S = 96: its window is 3/2 as large, and with "crop" a square."""
    found = region_windows(torch.tensor([[28.0, 28.0, 92.0, 44.0]]), 96, 16, square)
    torch.testing.assert_close(found, torch.tensor([window], dtype=torch.float32))


def test_a_region_of_the_crop_s_size_is_a_piece_of_the_image() -> None:
    image = torch.randn(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    pool = CropPooling(identity_backbone(), 2, crop_size=20, context=4)
    crop = pool.cut(image, torch.tensor([[0.0, 13.0, 9.0, 25.0, 21.0]]))
    torch.testing.assert_close(crop, image[:, :, 5:25, 9:29], atol=1e-5, rtol=1e-5)


def test_the_mean_colour_is_outside_the_image_and_a_region_without_size_is_a_pixel() -> None:
    image = torch.ones(1, 3, 20, 20)
    pool = CropPooling(identity_backbone(), 2, crop_size=10, context=1)
    boxes: list[list[float]] = [
        [30.0, 0, 50, 20],
        [-40, -40, -30, -30],
        [10, 10, 10, 10],
        [10.2, 10.2, 10.4, 10.9],
        [0, 0, 20, 20],
    ]
    rois = torch.tensor([[0.0, *box] for box in boxes])
    right, left, point, speck, whole = pool.cut(image, rois)
    assert not right.any()
    assert not left.any()
    assert (point == 1).all()
    torch.testing.assert_close(
        region_windows(rois[3:4, 1:], 10, 0), torch.tensor([[9.8, 10.05, 10.8, 11.05]])
    )
    assert (speck == 1).all()
    assert (whole[:, 1:-1, 1:-1] == 1).all()
    assert not whole[:, 0].any()


def crop_pool(crop_size: int = 24, output_size: int = 2) -> CropPooling:
    torch.manual_seed(0)
    return CropPooling(build_backbone("small"), output_size, crop_size=crop_size, context=4)


ROIS = torch.tensor([[0.0, 4, 4, 30, 40], [1, 0, 0, 60, 20], [0, 20, 10, 50, 60], [1, 30, 30, 31, 64]])


def test_each_region_goes_through_the_convolutions_by_itself() -> None:
    pool, images = crop_pool().eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = pool([images], ROIS)
        for row, crop in zip(pooled, pool.cut(images, ROIS), strict=True):
            cells = pool.convolutions(crop[None])[0]  # 3 x 3 cells; two bins of the adaptive rule overlap
            halves = (slice(0, 2), slice(1, 3))
            expected = torch.stack(
                [cells[:, down, right].amax((1, 2)) for down in halves for right in halves], 1
            )
            torch.testing.assert_close(row.view(-1, 4), expected)


def test_several_levels_are_several_sizes_of_the_image() -> None:
    pool, small, large = crop_pool().eval(), torch.randn(2, 3, 64, 64), torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        both = pool([small, large], ROIS, torch.tensor([0, 1, 1, 0]))
        torch.testing.assert_close(both[[0, 3]], pool([small], ROIS)[[0, 3]])
        torch.testing.assert_close(both[[1, 2]], pool([large], ROIS)[[1, 2]])


def test_gradients_reach_the_convolutions_and_not_the_image() -> None:
    pool, images = crop_pool().train(), torch.randn(2, 3, 64, 64, requires_grad=True)
    pool([images], ROIS).square().sum().backward()
    assert images.grad is None
    assert all(gradient(parameter).any() for parameter in pool.parameters())


def test_no_region_leaves_batch_statistics_alone() -> None:
    pool = crop_pool().train()
    before = {name: value.clone() for name, value in pool.state_dict().items()}
    assert pool([torch.randn(1, 3, 64, 64)], ROIS[:0]).shape == (0, 96 * 4)
    assert all(torch.equal(value, before[name]) for name, value in pool.state_dict().items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_stored_images_of_half_precision_are_cut_in_that_of_the_regions(kind: torch.dtype) -> None:
    images = torch.rand(2, 3, 64, 64).to(kind)
    crops = crop_pool().cut(images, ROIS)
    assert crops.dtype == torch.float32
    assert torch.equal(crops, crop_pool().cut(images.float(), ROIS))


@pytest.mark.parametrize("size", [32, 44])
def test_a_crop_is_pooled_as_adaptive_pooling_does_and_so_is_its_gradient(size: int) -> None:
    """If the map's side is not a multiple of theirs, bins overlap: a cell adds the gradients of several."""
    pools = [CropPooling(build_backbone("small"), 3, crop_size=size, context=4).eval() for _ in range(2)]
    pools[1].load_state_dict(pools[0].state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = pools[0]([images], ROIS)
    maps = pools[1].convolutions(pools[1].cut(images, ROIS))
    expected = torch.nn.functional.adaptive_max_pool2d(maps, 3).flatten(1)
    assert torch.equal(found, expected)
    for pooled in (found, expected):
        pooled.backward(torch.linspace(-1, 1, pooled.numel()).view_as(pooled))
    for first, second in zip(pools[0].parameters(), pools[1].parameters(), strict=True):
        assert torch.equal(gradient(first), gradient(second))


def test_crops_below_one_cell_are_refused() -> None:
    with pytest.raises(InputError, match=r"model\.pool\.crop_size 12: .* smaller than one cell"):
        CropPooling(build_backbone("vgg16"), 7, crop_size=12, context=2)


def test_autocast_keeps_the_precision_of_the_levels() -> None:
    def pooled(images: Tensor) -> Tensor:
        return crop_pool().eval()([images, images], ROIS, torch.tensor([0, 1, 0, 1]))

    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = pooled(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = pooled(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)
