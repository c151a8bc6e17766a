"""The picture of R-CNN's crops: what is drawn is what the network would see."""

from __future__ import annotations

import numpy as np
import pytest

from detector.commands.draw import crop_every_way
from detector.visualize.pooling import draw_crops

BOX = (30.0, 20.0, 80.0, 40.0)


def test_four_ways_with_their_windows() -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    crops = crop_every_way(image, BOX, crop_size=60, context=5)
    expected = {
        "warp, context 0": BOX,
        "warp, context 5": (25, 18, 85, 42),
        "crop, context 0": (30, 5, 80, 55),
        "crop, context 5": (25, 0, 85, 60),
    }
    assert [crop.name for crop in crops] == list(expected)
    for crop in crops:
        assert crop.window == pytest.approx(expected[crop.name], abs=1e-4)
    assert (crops[3].crop == image[:, 25:85]).all()  # one pixel of the crop to one of the image
    drawn = draw_crops(image, BOX, crops)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (350, 1600, 3)
    assert (draw_crops(image, BOX, crops) == drawn).all()


def test_outside_the_image_is_the_mean_colour() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    crop = crop_every_way(image, (20, 0, 60, 40), crop_size=40, context=0)[0].crop
    assert not crop[:, :20].any()
    assert crop[:, 21:].reshape(-1, 3).mean(0).round().tolist() == [124, 116, 104]
