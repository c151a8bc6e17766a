"""Clips of moving shapes: the same for a seed, smooth, and annotated as the pixels show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from detector.data.generated.clip import moving_shapes


def test_the_same_arguments_give_the_same_frames() -> None:
    first, again = (list(moving_shapes(5, seed=4)) for _ in range(2))
    assert all(np.array_equal(one.image, other.image) for one, other in zip(first, again, strict=True))
    other = next(moving_shapes(1, seed=5))
    assert not np.array_equal(first[0].image, other.image)


@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_where_pixels_differ_from_the_background(seed: int) -> None:
    """A clip without shapes has the same background, which the first random numbers decide."""
    size = (120, 170)
    scenes = list(moving_shapes(60, size, shapes=1, seed=seed))
    empty = next(moving_shapes(1, size, shapes=0, seed=seed)).image.astype(int)
    for scene in scenes[::10]:
        assert scene.image.shape == (*size, 3)
        (found,) = scene.objects()
        x1, y1, x2, y2 = found.box
        inside = np.zeros(size, bool)
        inside[y1:y2, x1:x2] = True
        change = np.abs(scene.image - empty).sum(axis=2)
        assert np.median(change[scene.shapes[0].mask]) > 60
        assert np.median(change[~inside]) < 30


def test_shapes_move_smoothly_keep_their_class_and_stay_in_sight() -> None:
    for shapes in itertools.pairwise(scene.shapes for scene in moving_shapes(200, (100, 130), seed=1)):
        for before, after in zip(*shapes, strict=True):
            assert before.name == after.name
            moved = after.outlines[0][0] - before.outlines[0][0]
            assert np.abs(moved).max() <= 3
            assert after.mask.sum() > 0.3 * after.area
    first, last = list(moving_shapes(200, (100, 130), seed=1))[::199]
    assert all(a.box != b.box for a, b in zip(first.shapes, last.shapes, strict=True))
