"""Masks against pycocotools and plain loops over pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from detector.core.errors import InputError
from detector.core.masks import Masks


def random_masks(seed: int) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    count, height, width = rng.integers(0, 5), *rng.integers(1, 40, 2)
    density = rng.choice([0.0, 0.02, 0.5, 0.97, 1.0], count)
    return rng.random((count, height, width)) < density[:, None, None]


def runs_of(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed counts: the lengths of runs of zeros and ones in turn, down the columns."""
    runs, value, length = [], False, 0
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(length)
            value, length = bool(pixel), 0
        length += 1
    return [*runs, length]


def decoded(masks: Masks) -> NDArray[np.bool_]:
    result = np.zeros((len(masks), *masks.size), bool)
    for rows, part in masks.dense():
        result[rows] = part.transpose(2, 0, 1)
    return result


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_masks_come_back_with_their_exact_boxes_and_areas(seed: int) -> None:
    dense = random_masks(seed)
    masks = Masks.encode(dense)
    size = (dense.shape[1], dense.shape[2])
    assert np.array_equal(decoded(masks), dense)
    assert masks.areas().tolist() == [int(one.sum()) for one in dense]
    for box, one in zip(masks.boxes().tolist(), dense, strict=True):
        rows, columns = np.nonzero(one)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4
        assert box == expected
    for form in (
        masks.rles(),
        [{"size": list(size), "counts": runs_of(one)} for one in dense],
        [{"size": size, "counts": counts.decode()} for counts in masks.counts],
    ):
        assert Masks.from_rles(form, size, "file") == masks


@given(st.integers(0, 10**6), st.tuples(*[st.integers(-5, 45)] * 4))
@settings(max_examples=60, deadline=None)
def test_a_window_cuts_masks_off(seed: int, corners: tuple[int, int, int, int]) -> None:
    dense = random_masks(seed)
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    expected = dense.copy()
    for row in range(dense.shape[1]):
        for column in range(dense.shape[2]):
            if not (x1 <= column < x2 and y1 <= row < y2):
                expected[:, row, column] = False
    assert np.array_equal(decoded(Masks.encode(dense).within((x1, y1, x2, y2))), expected)


def test_regions_without_a_mask_stay_among_the_others() -> None:
    dense = np.zeros((2, 4, 6), bool)
    dense[0, 1:3, 2] = True
    dense[1] = True
    masks = Masks.join([Masks.encode(dense), Masks.absent(1, (4, 6))])
    assert masks.present.tolist() == [True, True, False]
    chosen = masks.select(torch.tensor([2, 0]))
    assert chosen.boxes().tolist() == [[0, 0, 0, 0], [2, 1, 3, 3]]
    assert chosen.areas().tolist() == [0, 2]
    assert chosen.within((0, 0, 6, 2)).present.tolist() == [False, True]
    assert [None if rle is None else rle["size"] for rle in chosen.rles()] == [None, [4, 6]]
    assert Masks.from_rles(chosen.rles(), (4, 6), "file") == chosen
    assert masks.select(torch.tensor([True, False, True])) == masks.select(np.array([0, 2]))
    with pytest.raises(ValueError, match="2 sizes"):
        Masks.join([masks, Masks.absent(1, (6, 4))])


@pytest.mark.parametrize(
    ("rle", "fault"),
    [
        ({"counts": [24]}, "expected a run-length encoding"),
        ({"segmentation": {}, "bbox": []}, "give what it has under 'segmentation'"),
        ({"size": [6, 4], "counts": [24]}, r"its size \[6, 4\] is not the image's, \[4, 6\]"),
        ({"size": [4, 6], "counts": [23]}, "do not fill an image of 6x4"),
        ({"size": [4, 6], "counts": [-1, 25]}, "do not fill"),
        ({"size": [4, 6], "counts": [12.0, 12]}, "do not fill"),
        ({"size": [4, 6], "counts": [2**40]}, "do not fill"),
        ({"size": [4, 6], "counts": 3}, "counts must be text"),
        ({"size": [4, 6], "counts": "é"}, "no encoder writes"),
        ({"size": [4, 6], "counts": ""}, "damaged"),
        ({"size": [4, 6], "counts": "h"}, "damaged"),
        ({"size": [4, 6], "counts": "!!"}, "damaged"),
        ({"size": [4, 6], "counts": "oooooooooooo0"}, "damaged"),
        ({"size": [4, 6], "counts": "H0"}, "damaged"),
        ({"size": [4, 6], "counts": "n0"}, "do not fill"),
    ],
)
def test_damaged_encodings_are_refused(rle: Any, fault: str) -> None:
    with pytest.raises(InputError, match=rf"file, mask 0: .*{fault}"):
        Masks.from_rles([rle], (4, 6), "file")


def test_changed_counts_are_refused_or_fill_the_image() -> None:
    """Whatever is accepted, pycocotools can decode: it checks nothing itself."""
    rng = np.random.default_rng(5)
    mask = rng.random((1, 50, 70)) < 0.4
    counts = bytearray(Masks.encode(mask).counts[0])
    accepted = 0
    for _ in range(2000):
        changed = bytearray(counts)
        for place in rng.integers(0, len(counts), rng.integers(1, 4)):
            changed[place] = rng.integers(0, 256)
        try:
            masks = Masks.from_rles([{"size": [50, 70], "counts": bytes(changed)}], (50, 70), "file")
        except InputError:
            continue
        accepted += 1
        assert int(masks.areas()[0]) == int(coco_mask.decode(masks.rles()[0]).sum())
    assert accepted


def test_an_image_has_pixels_and_not_too_many() -> None:
    for size in ((0, 5), (5, 0), (2**16, 2**16)):
        with pytest.raises(ValueError, match="masks of an image of"):
            Masks(size, ())
    with pytest.raises(ValueError, match=r"expected \(P, H, W\)"):
        Masks.encode(np.zeros((3, 3), bool))


def test_areas_and_boxes_of_more_than_255_masks() -> None:
    """pycocotools counts the masks of one call with 8 bits where it returns their areas."""
    dense = np.random.default_rng(0).random((600, 5, 7)) < 0.5
    masks = Masks.encode(dense)
    assert masks.areas().tolist() == dense.sum(axis=(1, 2)).tolist()
    assert masks.boxes().shape == (600, 4)
