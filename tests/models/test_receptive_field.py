"""Extent, stride and centre of any stack of windows, against running it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from detector.models.receptive_field import geometry, out_channels

window = st.tuples(
    st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.sampled_from(["pool", "conv"])
).filter(lambda drawn: drawn[2] <= drawn[0] // 2)


def layer(kernel: int, stride: int, padding: int, ceil_mode: bool, kind: str) -> nn.Module:
    if kind == "pool":
        return nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    return nn.Conv2d(1, 1, kernel, stride, padding)


@settings(max_examples=150, deadline=None)
@given(st.lists(window, min_size=1, max_size=4), st.integers(20, 90))
def test_size_is_what_a_run_gives(windows: list, length: int) -> None:
    layers = nn.Sequential(*(layer(*drawn) for drawn in windows)).to("meta")
    found = geometry(layers).size(length)
    images = torch.zeros(1, 1, length, length, device="meta")
    if found == 0:
        with pytest.raises(RuntimeError, match="size"):  # torch refuses an empty map
            layers(images)
    else:
        assert layers(images).shape[-2:] == (found, found)


def test_padding_around_no_cells_gives_no_cells() -> None:
    """The first window does not fit; the padding of the second must not give a map again."""
    assert geometry([nn.Conv2d(1, 1, 5), nn.Conv2d(1, 1, 4, padding=2)]).size(4) == 0


def test_a_last_window_that_starts_in_the_padding_is_dropped() -> None:
    pool = nn.MaxPool2d(2, 2, 1, ceil_mode=True)
    for length in range(3, 12):
        assert geometry([pool]).size(length) == pool(torch.zeros(1, 1, length, length)).shape[-1]


@settings(max_examples=60, deadline=None)
@given(st.lists(window, min_size=1, max_size=3))
def test_cells_stand_where_an_average_of_pixel_places_says(windows: list) -> None:
    """With averages of pixel numbers, each inner cell gets the number of the pixel at its centre."""
    layers = nn.Sequential(
        *(nn.AvgPool2d(kernel, stride, padding) for kernel, stride, padding, _, _ in windows)
    )
    found = geometry(
        nn.Sequential(
            *(layer(kernel, stride, padding, False, "pool") for kernel, stride, padding, _, _ in windows)
        )
    )
    places = torch.arange(200, dtype=torch.float64).repeat(200, 1)[None, None]
    cells = layers(places)[0, 0, 100 // found.stride]
    for cell in range(60 // found.stride, 120 // found.stride):
        assert cells[cell].item() == pytest.approx(found.center + cell * found.stride, abs=1e-9)


def test_channels_follow_the_last_layer_that_changes_them() -> None:
    stack = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Sequential(nn.Conv2d(5, 7, 1)), nn.MaxPool2d(2))
    assert out_channels(stack) == 7
    assert out_channels([nn.ReLU()]) == 3


def test_windows_that_differ_in_x_and_y_are_refused() -> None:
    with pytest.raises(ValueError, match="windows must be square and padding numeric"):
        geometry([nn.Conv2d(3, 3, (3, 5))])
    with pytest.raises(ValueError, match="'same'"):
        geometry([nn.Conv2d(3, 3, 3, padding="same")])
