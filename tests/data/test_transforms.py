"""Resize, flip and normalisation: sizes by the release's rule, boxes on the same pixels as before."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from detector.core.structures import ImageRecord, Normalization, Proposals, Targets
from detector.data.samples import make_sample
from detector.data.transforms import ImageTransform, input_size

RGB = Normalization(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225), maximum=255.0, bgr=False)
CAFFE = Normalization(mean=(102.9801, 115.9465, 122.7717), deviation=(1.0, 1.0, 1.0), maximum=1.0, bgr=True)
PLAIN = Normalization(mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0), maximum=1.0, bgr=False)

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


def test_normalisation_equals_torchvisions_transforms() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    found, meta = ImageTransform(normalization=RGB, scales=(30,), max_size=100)(image, "a")
    reference = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(RGB.mean, RGB.deviation)]
    )
    torch.testing.assert_close(found, reference(image), rtol=1e-5, atol=1e-6)
    assert meta.input_size == meta.original_size == (30, 40)


def test_caffe_normalisation_is_bgr_minus_the_mean() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    found, _ = ImageTransform(normalization=CAFFE, scales=(30,), max_size=100)(image, "a")
    blue, green, red = (image[:, :, channel].astype(np.float32) for channel in (2, 1, 0))
    expected = np.stack((blue - 102.9801, green - 115.9465, red - 122.7717))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-5)


def test_resizing_is_opencvs_bilinear() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    found, _ = ImageTransform(normalization=PLAIN, scales=(45,), max_size=100)(image, "a")
    expected = cv2.resize(image, (68, 45), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("flips", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize(("shorter", "cap"), [(100, 1000), (150, 1000), (40, 1000), (300, 240)])
def test_boxes_stay_on_their_pixels(flips: tuple[float, float], shorter: int, cap: int) -> None:
    """Paint a block, transform, and look for it where the boxes say that it is."""
    image = np.zeros((100, 140, 3), np.uint8)
    box = torch.tensor([[20.0, 60.0, 50.0, 90.0]])
    image[60:90, 20:50] = 255
    transform = ImageTransform(
        normalization=PLAIN, scales=(shorter,), max_size=cap, flip=flips[0], vertical_flip=flips[1]
    )
    record = ImageRecord(
        image_id="a", path=Path("a.png"), height=100, width=140, targets=Targets.make(box, torch.tensor([1]))
    )
    sample = make_sample(record, image, Proposals(boxes=box), transform, np.random.default_rng(0))
    assert (sample.meta.flipped, sample.meta.flipped_vertically) == tuple(map(bool, flips))
    ys, xs = np.nonzero(sample.image[0].numpy() > 127)
    painted = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert np.abs(sample.rois[0].numpy() - painted).max() <= 1
    assert torch.equal(sample.targets.boxes, sample.rois)
    assert torch.equal(sample.proposals.boxes, box)  # these stay in original pixels


def test_without_a_generator_nothing_is_random() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    transform = ImageTransform(
        normalization=RGB, scales=(48, 24), max_size=100, flip=1.0, vertical_flip=1.0, scale_jitter=(0.5, 2.0)
    )
    _, meta = transform(image, "a")
    assert meta.input_size == (48, 72)
    assert not meta.flipped
    assert not meta.flipped_vertically


def test_random_choices_cover_what_they_should() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    transform = ImageTransform(
        normalization=PLAIN, scales=(20, 40), max_size=200, flip=0.5, scale_jitter=(0.5, 2.0)
    )
    metas = [transform(image, "a", np.random.default_rng((7, draw)))[1] for draw in range(400)]
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
    transform = ImageTransform(normalization=RGB, scales=(48,), max_size=100, resize=resize)
    pixels, meta = transform(image, "a")
    assert meta.input_size == tuple(pixels.shape[1:]) == wanted


def test_an_image_of_its_own_size_is_still_capped() -> None:
    transform = ImageTransform(normalization=RGB, scales=(48,), max_size=100, resize="none")
    assert transform(np.zeros((150, 200, 3), np.uint8), "a")[1].input_size == (75, 100)


def test_a_generator_for_scales_decides_only_these() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    transform = ImageTransform(
        normalization=PLAIN, scales=(20, 40, 60), max_size=200, flip=0.5, scale_jitter=(0.8, 1.25)
    )
    draws = [
        transform(image, "a", np.random.default_rng(draw), np.random.default_rng(9))[1] for draw in range(20)
    ]
    assert len({meta.input_size for meta in draws}) == 1
    assert {meta.flipped for meta in draws} == {True, False}


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1)])
def test_an_input_of_one_pixel_can_be_flipped(size: tuple[int, int]) -> None:
    """Numpy calls an axis of one pixel contiguous whichever way it runs; torch takes no negative strides."""
    transform = ImageTransform(
        normalization=Normalization(mean=(0.0,) * 3, deviation=(1.0,) * 3, maximum=255.0, bgr=False),
        scales=(1,),
        max_size=4,
        flip=1.0,
        vertical_flip=1.0,
    )
    pixels, meta = transform(np.full((*size, 3), 255, np.uint8), "a", np.random.default_rng(0))
    assert meta.input_size == size
    assert pixels.shape == (3, *size)
    assert (pixels == 1).all()
