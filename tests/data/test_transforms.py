"""Resize and flip: sizes by the release's rule, boxes on the same pixels as before."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core.structures import ImageMeta, ImageRecord, Proposals, Targets
from detector.data.images import LoadedImage
from detector.data.samples import make_sample
from detector.data.transforms import ImageTransform, input_size, place_of_image, transformed

side = st.integers(48, 3000)


@settings(max_examples=200, deadline=None)
@given(side, side, st.integers(16, 1200), st.integers(64, 2000))
def test_input_size_is_the_releases_rule(height: int, width: int, target: int, cap: int) -> None:
    # prep_im_for_blob: the scale of the shorter side, or of the cap where the longer side would pass it,
    # then OpenCV's own rounding of the size.
    scale = np.float64(target) / min(height, width)
    if np.round(scale * max(height, width)) > cap:
        scale = np.float64(cap) / max(height, width)
    resized = cv2.resize(np.zeros((height, width), np.uint8), None, fx=scale, fy=scale)
    assert input_size((height, width), target, cap) == resized.shape
    assert max(resized.shape) <= cap


def test_input_size_of_well_known_images() -> None:
    assert input_size((375, 500), 600, 1000) == (600, 800)
    assert input_size((500, 375), 600, 1000) == (800, 600)
    assert input_size((333, 500), 600, 1000) == (600, 901)
    assert input_size((200, 500), 600, 1000) == (400, 1000)  # capped
    assert input_size((600, 1000), 600, 1000) == (600, 1000)
    assert input_size((1, 5000), 600, 1000) == (1, 1000)  # never less than a pixel


def test_resizing_is_opencvs_bilinear() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    found = transformed(image, ImageTransform(scales=(45,), max_size=100).plan((60, 90), "a"))
    expected = cv2.resize(image, (68, 45), interpolation=cv2.INTER_LINEAR)
    assert (found.dtype, found.is_contiguous()) == (torch.uint8, True)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("given", [(60, 90), (45, 68), (30, 45)])
def test_pixels_of_any_size_become_the_input(
    given: tuple[int, int], flipped: bool, upside_down: bool
) -> None:
    """A photograph may have been decoded in a smaller size; its own size is that of the boxes."""
    image = np.random.default_rng(0).integers(0, 256, (*given, 3), dtype=np.uint8)
    before = image.copy()
    meta = ImageMeta(
        image_id="a",
        original_size=(60, 90),
        input_size=(45, 68),
        flipped=flipped,
        flipped_vertically=upside_down,
    )
    found = transformed(image, meta)
    expected = cv2.resize(image, (68, 45), interpolation=cv2.INTER_LINEAR)
    expected = expected[:: -1 if upside_down else 1, :: -1 if flipped else 1]
    assert found.is_contiguous()
    assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(image, before)  # several views are made of the same pixels


@pytest.mark.parametrize("flips", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize(("shorter", "cap"), [(100, 1000), (150, 1000), (40, 1000), (300, 240)])
def test_boxes_stay_on_their_pixels(flips: tuple[float, float], shorter: int, cap: int) -> None:
    """Paint a block, transform, and look for it where the boxes say that it is."""
    image = np.zeros((100, 140, 3), np.uint8)
    box = torch.tensor([[20.0, 60.0, 50.0, 90.0]])
    image[60:90, 20:50] = 255
    transform = ImageTransform(scales=(shorter,), max_size=cap, flip=flips[0], vertical_flip=flips[1])
    record = ImageRecord(
        image_id="a", path=Path("a.png"), height=100, width=140, targets=Targets.make(box, torch.tensor([1]))
    )
    meta = transform.plan((100, 140), "a", np.random.default_rng(0))
    sample = make_sample(record, LoadedImage.of(image), Proposals(boxes=box), meta)
    assert (sample.meta.flipped, sample.meta.flipped_vertically) == tuple(map(bool, flips))
    ys, xs = np.nonzero(sample.image[..., 0].numpy() > 127)
    painted = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert np.abs(sample.rois[0].numpy() - painted).max() <= 1
    assert torch.equal(sample.targets.boxes, sample.rois)
    assert torch.equal(sample.proposals.boxes, box)  # these stay in original pixels


def test_without_a_generator_nothing_is_random() -> None:
    transform = ImageTransform(
        scales=(48, 24), max_size=100, flip=1.0, vertical_flip=1.0, scale_jitter=(0.5, 2.0)
    )
    meta = transform.plan((40, 60), "a")
    assert meta.input_size == (48, 72)
    assert not meta.flipped
    assert not meta.flipped_vertically


def test_random_choices_cover_what_they_should() -> None:
    transform = ImageTransform(scales=(20, 40), max_size=200, flip=0.5, scale_jitter=(0.5, 2.0))
    metas = [transform.plan((40, 40), "a", np.random.default_rng((7, draw))) for draw in range(400)]
    flipped = np.mean([meta.flipped for meta in metas])
    assert 0.42 < flipped < 0.58
    sides = np.array([meta.input_size[0] for meta in metas])
    assert sides.min() >= 10
    assert sides.max() <= 80
    # A log-uniform factor on 20 or 40: the median of log2(side / 20) lies in the middle of -1 .. 2.
    assert abs(np.median(np.log2(sides / 20)) - 0.5) < 0.2


@pytest.mark.parametrize(
    ("resize", "wanted"),
    [("shorter", (48, 72)), ("square", (48, 48)), ("none", (40, 60))],
)
def test_resize_says_what_becomes_of_the_size(
    resize: Literal["shorter", "square", "none"], wanted: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    transform = ImageTransform(scales=(48,), max_size=100, resize=resize)
    meta = transform.plan((40, 60), "a")
    assert (
        meta.input_size == transform.size_of((40, 60)) == tuple(transformed(image, meta).shape[:2]) == wanted
    )


def test_an_image_of_its_own_size_is_still_capped() -> None:
    transform = ImageTransform(scales=(48,), max_size=100, resize="none")
    assert transform.plan((150, 200), "a").input_size == (75, 100)


def test_a_generator_for_scales_decides_only_these() -> None:
    transform = ImageTransform(scales=(20, 40, 60), max_size=200, flip=0.5, scale_jitter=(0.8, 1.25))
    draws = [
        transform.plan((40, 40), "a", np.random.default_rng(draw), np.random.default_rng(9))
        for draw in range(20)
    ]
    assert len({meta.input_size for meta in draws}) == 1
    assert {meta.flipped for meta in draws} == {True, False}


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1)])
def test_an_input_of_one_pixel_can_be_flipped(size: tuple[int, int]) -> None:
    """Numpy calls an axis of one pixel contiguous whichever way it runs; torch takes no negative strides."""
    transform = ImageTransform(
        scales=(1,),
        max_size=4,
        flip=1.0,
        vertical_flip=1.0,
    )
    meta = transform.plan(size, "a", np.random.default_rng(0))
    pixels = transformed(np.full((*size, 3), 255, np.uint8), meta)
    assert meta.input_size == size
    assert pixels.shape == (*size, 3)
    assert (pixels == 255).all()


# Windows

FILL = (3, 200, 90)
corner = st.integers(-60, 60)
window_sides = st.integers(20, 160)


def windowed(
    window: tuple[int, int, int, int], scale: int, flips: tuple[bool, bool], size: tuple[int, int] = (90, 120)
) -> ImageMeta:
    transform = ImageTransform(scales=(scale,), max_size=400, flip=flips[0], vertical_flip=flips[1])
    return transform.plan(size, "a", np.random.default_rng(0), window=window)


@settings(max_examples=150, deadline=None)
@given(corner, corner, window_sides, window_sides, st.integers(16, 200), st.booleans(), st.booleans())
def test_boxes_of_a_window_are_moved_scaled_and_flipped(
    left: int, top: int, width: int, height: int, scale: int, flipped: bool, upside_down: bool
) -> None:
    meta = windowed((left, top, left + width, top + height), scale, (flipped, upside_down))
    assert meta.input_size == input_size((height, width), scale, 400)
    boxes = torch.from_numpy(np.random.default_rng(0).uniform(-20, 140, (9, 4))).float()
    tall, wide = meta.input_size
    for box, found in zip(boxes.double().tolist(), meta.to_input(boxes).tolist(), strict=True):
        x1, x2 = ((x - left) / width * wide for x in (box[0], box[2]))
        y1, y2 = ((y - top) / height * tall for y in (box[1], box[3]))
        x1, x2 = (wide - x2, wide - x1) if flipped else (x1, x2)
        y1, y2 = (tall - y2, tall - y1) if upside_down else (y1, y2)
        np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=2e-3)


@settings(max_examples=150, deadline=None)
@given(
    *(st.integers(-50, 30), st.integers(-40, 20), st.integers(40, 150), st.integers(40, 150)),
    *(st.integers(30, 200), st.sampled_from([1, 2, 3]), st.booleans(), st.booleans()),
)
def test_a_block_stays_in_its_box_in_every_window(
    left: int,
    top: int,
    width: int,
    height: int,
    scale: int,
    reduced: int,
    flipped: bool,
    upside_down: bool,
) -> None:
    """Also where the pixels were decoded with shorter sides, here by a factor of 2 or 3."""
    image = np.full((90, 120, 3), (10, 10, 10), np.uint8)
    x1, y1, x2, y2 = max(left, 0) + 6, max(top, 0) + 6, max(left, 0) + 30, max(top, 0) + 24
    image[y1:y2, x1:x2] = (250, 10, 10)
    window = left, top, max(left + width, x2 + 6), max(top + height, y2 + 6)
    meta = windowed(window, scale, (flipped, upside_down))
    small = cv2.resize(image, (120 // reduced, 90 // reduced), interpolation=cv2.INTER_AREA)
    found = transformed(small, meta, FILL).numpy()
    assert found.shape == (*meta.input_size, 3)
    ys, xs = np.nonzero(found[..., 0] > 130)
    painted = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    (expected,) = meta.to_input(torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32)).numpy()
    pixel = np.array(meta.scale[::-1] * 2) * reduced  # of the decoded image, in input pixels
    assert (np.abs(painted - expected) <= 1 + pixel).all()


@pytest.mark.parametrize("flipped", [False, True])
def test_a_crop_is_cut_out_and_resized_by_opencv(flipped: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    meta = windowed((11, 7, 101, 67), 45, (flipped, False))
    expected = cv2.resize(image[7:67, 11:101], (68, 45), interpolation=cv2.INTER_LINEAR)
    found = transformed(image, meta, FILL)
    assert found.is_contiguous()
    assert np.array_equal(found.numpy(), expected[:, ::-1] if flipped else expected)


@settings(max_examples=100, deadline=None)
@given(corner, corner, window_sides, window_sides, st.integers(1, 200))
def test_what_lies_outside_the_image_is_filled(
    left: int, top: int, width: int, height: int, scale: int
) -> None:
    window = left, top, left + width, top + height
    if left + width <= 0 or top + height <= 0:
        return
    meta = windowed(window, scale, (False, False))
    found = transformed(np.full((90, 120, 3), 77, np.uint8), meta, FILL).numpy()
    x1, y1, x2, y2 = place_of_image(meta)
    tall, wide = meta.input_size
    assert 0 <= x1 < x2 <= wide
    assert 0 <= y1 < y2 <= tall
    assert (found[y1:y2, x1:x2] == 77).all()
    outside = np.ones((tall, wide), bool)
    outside[y1:y2, x1:x2] = False
    assert (found[outside] == FILL).all()
    exact = meta.to_input(
        torch.tensor([[max(left, 0), max(top, 0), min(left + width, 120), min(top + height, 90)]]).float()
    )
    assert np.abs(exact[0].numpy() - (x1, y1, x2, y2)).max() <= 1  # half a pixel, but at least one is shown


@pytest.mark.parametrize(
    ("window", "x", "y"), [((-400, -300, 1, 1), 26, 19), ((119, 89, 520, 390), 0, 0)], ids=["end", "start"]
)
def test_of_a_strip_that_is_too_narrow_for_the_scale_one_pixel_is_shown(
    window: tuple[int, int, int, int], x: int, y: int
) -> None:
    meta = windowed(window, 20, (False, False))
    found = transformed(np.full((90, 120, 3), 77, np.uint8), meta, FILL).numpy()
    assert place_of_image(meta) == (x, y, x + 1, y + 1)
    assert (found[y, x] == 77).all()
    assert (found != 77).any(axis=2).sum() == 20 * 27 - 1


def test_a_window_of_the_whole_image_is_the_whole_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    meta = windowed((0, 0, 120, 90), 45, (True, True))
    whole = ImageTransform(scales=(45,), max_size=400, flip=1.0, vertical_flip=1.0).plan(
        (90, 120), "a", np.random.default_rng(0)
    )
    boxes = torch.tensor([[3.0, 4.0, 50.0, 60.0]])
    assert (meta.input_size, meta.scale, meta.full_size) == (whole.input_size, whole.scale, whole.full_size)
    assert torch.equal(transformed(image, meta), transformed(image, whole))
    assert torch.equal(meta.to_input(boxes), whole.to_input(boxes))


def test_the_full_size_is_that_of_the_image_at_the_scale_of_the_window() -> None:
    crop = windowed((30, 20, 90, 65), 90, (False, False))
    assert (crop.scale, crop.full_size) == ((2.0, 2.0), (180, 240))
    canvas = windowed((-60, -45, 180, 135), 45, (False, False))
    assert (canvas.scale, canvas.full_size) == ((0.25, 0.25), (23, 30))
