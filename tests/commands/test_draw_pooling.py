"""The picture of pooling: bins read off the kernels, values, geometry on the image, files."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import color_sequences
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from detector.commands.draw import pool_every_way, pooled_region, pooling_rules
from detector.config import load_config
from detector.core.errors import InputError
from detector.visualize.pooling import (
    PooledRegion,
    PoolingScene,
    animation_frames,
    draw_pooling,
    save_animation,
)
from tests.conftest import PROJECT
from tests.ops import reference

QUICKSTART = PROJECT / "configs" / "quickstart.yaml"


@pytest.mark.parametrize("bins", [1, 2, 3, 7])
@pytest.mark.parametrize("box", [(5.0, 30, 200, 90), (-40.0, -10, 70, 500), (33.0, 33, 40, 41)])
def test_the_bins_shown_are_those_of_the_rules(bins: int, box: tuple[float, float, float, float]) -> None:
    features = torch.randn(1, 2, 12, 20)
    rules = {
        "Caffe": lambda first, last, extent: reference.caffe_bins(first, last, 1 / 16, bins, np.float32),
        "exact": lambda first, last, extent: reference.exact_bins(first, last, 1 / 16, bins, np.float32),
        "partition": lambda first, last, extent: reference.partition_bins(
            first, last, 1 / 16, bins, np.float32
        ),
    }

    def spp(first: float, last: float, extent: int) -> Any:
        left, right = reference.spp_window(first, last, 16, 7.5, 8, extent)
        return reference.exact_cut(left, right - left + 1, bins)

    roi = torch.tensor([[0.0, *box]])
    for name, pool in pooling_rules(bins, 16, 7.5).items():
        region = pooled_region(name, pool, features, roi, channel=1)
        cut = rules.get(name, spp)
        for shown, first, last, extent in (
            (region.rows, box[1], box[3], 12),
            (region.columns, box[0], box[2], 20),
        ):
            clipped = [(max(begin, 0), min(end, extent)) for begin, end in cut(first, last, extent)]
            expected = [span if span[0] < span[1] else (0, 0) for span in clipped]
            if all(begin < end for edges in (region.rows, region.columns) for begin, end in edges):
                assert list(shown) == expected, name
        for number, down, across in region.bins():
            cells = features[0, 1, slice(*down), slice(*across)]
            assert region.values.flat[number] == cells.max().item()


def scene() -> PoolingScene:
    image = np.full((96, 128, 3), 90, np.uint8)
    plane = np.arange(48.0).reshape(6, 8)
    return PoolingScene(image=image, plane=plane, box=(16, 16, 80, 64), stride=(16, 16), center=(8, 8))


def region(name: str) -> PooledRegion:
    return PooledRegion(
        name=name, rows=[(1, 3), (2, 4)], columns=[(1, 3), (0, 0)], values=np.arange(4.0).reshape(2, 2)
    )


def test_a_cell_lies_where_its_receptive_field_is_centred() -> None:
    assert scene().pixels((0, 1), (2, 4)) == (32, 0, 64, 16)


def test_every_rule_has_its_column_and_bins_light_one_by_one() -> None:
    one, two = draw_pooling(scene(), [region("a")]), draw_pooling(scene(), [region("a"), region("b")])
    assert one.dtype == np.uint8
    assert two.shape[1] == 2 * one.shape[1]
    frames = [draw_pooling(scene(), [region("a")], shown) for shown in range(5)]
    assert all((first != second).any() for first, second in pairwise(frames))
    assert (frames[-1] == one).all()


def test_the_animation_has_a_frame_a_bin(tmp_path: Path) -> None:
    save_animation(tmp_path / "deep" / "pooling.gif", scene(), [region("a")])
    with Image.open(tmp_path / "deep" / "pooling.gif") as animation:
        assert isinstance(animation, GifImageFile)
        assert animation.n_frames == 4
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["pooling.gif"]
    with pytest.raises(InputError, match=r"written as \.gif, not '\.mp4'"):
        save_animation(tmp_path / "pooling.mp4", scene(), [region("a")])


def test_bins_keep_their_colours_in_an_animation_of_a_photograph() -> None:
    """However many colours the image has, a frame's few include that of every bin's rim."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    photo = np.asarray(Image.fromarray(noise).resize((128, 96), Image.Resampling.BICUBIC))
    edges = [(1, 3), (2, 4), (3, 5)]
    nine = PooledRegion(name="a", rows=edges, columns=edges, values=np.arange(9.0).reshape(3, 3))
    (frame,) = animation_frames([draw_pooling(replace(scene(), image=photo), [nine, nine])])
    pixels = np.asarray(frame.convert("RGB")).reshape(-1, 3).astype(int)
    values = pixels[len(pixels) * 3 // 4 :]  # the pooled values and their rims, far from the photograph
    for rim in color_sequences["tab10"][:9]:
        assert np.abs(values - np.multiply(rim, 255)).max(axis=1).min() < 24, rim


def test_a_box_outside_the_image_or_an_absent_channel_is_refused() -> None:
    config, image = load_config(QUICKSTART, []), np.zeros((80, 100, 3), np.uint8)
    with pytest.raises(InputError, match="which is 100 pixels wide and 80 high"):
        pool_every_way(config, image, (10, 10, 101, 20))
    with pytest.raises(InputError, match=r"channel 100000: the map has channels 0 to \d+"):
        pool_every_way(config, image, (10, 10, 60, 70), channel=100_000)


def test_the_whole_way_from_a_config_to_four_regions() -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    shown, regions, channel = pool_every_way(load_config(QUICKSTART, []), image, (20, 10, 100, 80), bins=2)
    assert [region.name for region in regions] == ["Caffe", "exact", "partition", "SPP-net"]
    left, top, right, bottom = shown.pixels(
        (regions[-1].rows[0][0], regions[-1].rows[-1][1]),
        (regions[-1].columns[0][0], regions[-1].columns[-1][1]),
    )
    assert abs(left - 20) <= shown.stride[1]
    assert abs(bottom - 80) <= shown.stride[0]
    assert (top, right) > (0, left)
    assert channel >= 0
