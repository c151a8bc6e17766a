"""Selective search as its users see it: what it promises about boxes, order, input and threads."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import detector.ops
from detector.core.errors import InputError
from detector.ops import SelectiveSearchConfig, SelectiveSearchResult, selective_search
from detector.ops.selective_search_config import COLOR_SPACES, PRESETS, SIMILARITIES

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "selective_search"
SINGLE = PRESETS["reference_single"]


def picture(height: int = 120, width: int = 160, seed: int = 0) -> np.ndarray:
    """Shaded, noisy rectangles (H, W, 3) uint8, the same on every machine."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), dtype=np.int64) + rng.integers(0, 256, 3)
    for _ in range(25):
        y, x = rng.integers(0, height), rng.integers(0, width)
        part = image[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)]
        part[:] = rng.integers(0, 256, 3) + np.arange(part.shape[1])[:, None]
    return np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


def rows(boxes: Tensor) -> set[tuple[float, ...]]:
    return {tuple(box) for box in boxes.tolist()}


@pytest.mark.parametrize("mode", PRESETS)
def test_presets_keep_the_promises_about_boxes(mode: str) -> None:
    boxes, scores = selective_search(picture(), mode)
    config = PRESETS[mode]
    assert boxes.dtype == scores.dtype == torch.float32
    assert boxes.shape == (len(scores), 4)
    assert len(scores) > 10
    assert len(rows(boxes)) == len(boxes)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([160.0, 120.0])).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= max(config.min_side, 1)).all()
    assert (0.0, 0.0, 160.0, 120.0) in rows(boxes)
    assert scores[0] == 1
    assert (scores[1:] < scores[:-1]).all()
    assert scores[-1] > 0


def test_strategies_of_the_presets() -> None:
    counts = {name: len(c.color_spaces) * len(c.scales) * len(c.similarities) for name, c in PRESETS.items()}
    assert counts["reference_single"] == 1
    assert counts["fast"] == counts["reference_fast"] == 8
    assert counts["quality"] == counts["reference_quality"] == 80
    assert (counts["opencv_fast"], counts["opencv_quality"]) == (12, 100)


def test_the_seed_orders_and_does_not_choose() -> None:
    image = picture()
    first, again, other = (selective_search(image, seed=seed).boxes for seed in (3, 3, -4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert rows(first) == rows(other)


@pytest.mark.parametrize("mode", ["fast", "opencv_quality"])
def test_threads_change_nothing(mode: str) -> None:
    image = picture()
    alone = selective_search(image, mode)
    for num_threads in (2, 3, 16):
        assert torch.equal(selective_search(image, mode, num_threads=num_threads).boxes, alone.boxes)


def test_calls_at_the_same_time_change_nothing() -> None:
    images = [picture(seed=seed) for seed in range(4)]
    alone = [selective_search(image).boxes for image in images]
    together: dict[int, Tensor] = {}

    def search(index: int) -> None:
        together[index] = selective_search(images[index], num_threads=2).boxes

    threads = [threading.Thread(target=search, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(together[i], alone[i]) for i in range(4))


def test_result_is_the_same_on_every_machine() -> None:
    """A digest of all boxes in order; it changes only when the algorithm does."""
    digest = hashlib.sha256()
    for mode in ("quality", "opencv_quality"):
        digest.update(selective_search(picture(), mode, seed=1).boxes.numpy().astype("<f4").tobytes())
    assert digest.hexdigest()[:16] == "d4a2e29ed1a34487"


def ranked_by_hand(image: np.ndarray, config: SelectiveSearchConfig, seed: int) -> list[tuple[float, ...]]:
    """Priority times SplitMix64's random number, ascending; small boxes and later copies dropped."""
    boxes, priorities = torch.ops.detector.selective_search_hierarchies(
        torch.from_numpy(image), num_threads=1, **config.strategy_arguments()
    )
    state, keyed = seed % 2**64, []
    for priority in priorities.tolist():
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        keyed.append((((z ^ z >> 31) >> 12) + 0.5) / 2**52 * priority)
    kept: dict[tuple[float, ...], None] = {}
    for index in np.argsort(keyed, kind="stable"):
        x1, y1, x2, y2 = boxes[index].tolist()
        if min(x2 - x1, y2 - y1) >= config.min_side:
            kept.setdefault((x1, y1, x2, y2))
    return list(kept)


@pytest.mark.parametrize("mode", ["reference_single", "fast", "opencv_fast"])
def test_ranking_equals_the_rule_by_hand(mode: str) -> None:
    for seed in (0, 7, -1):
        boxes = selective_search(picture(), mode, seed=seed).boxes
        assert [tuple(box) for box in boxes.tolist()] == ranked_by_hand(picture(), PRESETS[mode], seed)


def test_max_proposals_takes_the_first() -> None:
    everything = selective_search(picture())
    for count in (0, 1, 17, len(everything.boxes), 10**6):
        few = selective_search(picture(), max_proposals=count)
        assert torch.equal(few.boxes, everything.boxes[:count])
        assert torch.equal(few.scores, everything.scores[:count])


def test_strategies_are_the_product_of_the_lists() -> None:
    """More strategies only add boxes, and a quirk that says it changes ``fill`` alone does."""
    both = SelectiveSearchConfig(color_spaces=("hsv", "rgi"), scales=(50.0,))
    parts = [replace(both, color_spaces=(space,)) for space in both.color_spaces]
    image = picture()
    assert rows(selective_search(image, both).boxes) == set().union(
        *(rows(selective_search(image, part).boxes) for part in parts)
    )
    for name in SIMILARITIES:
        thirds = replace(both, similarities=(name,))
        same = rows(selective_search(image, thirds).boxes) == rows(
            selective_search(image, replace(thirds, size_in_thirds=False)).boxes
        )
        assert same == (name != "fill")


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3), (19, 500), (500, 25), (4000, 21)])
@pytest.mark.parametrize("mode", ["fast", "opencv_quality"])
def test_any_size_and_aspect(shape: tuple[int, int], mode: str) -> None:
    boxes = selective_search(picture(*shape), mode).boxes
    whole = (0.0, 0.0, float(shape[1]), float(shape[0]))
    assert (whole in rows(boxes)) == (min(shape) >= PRESETS[mode].min_side)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_constant_image_is_one_region(value: int) -> None:
    found = selective_search(np.full((40, 50, 3), value, np.uint8), "quality")
    assert found.boxes.tolist() == [[0, 0, 50, 40]]
    assert found.scores.tolist() == [1]


def test_grey_alpha_strides_and_tensors_are_the_same_picture() -> None:
    image = picture()
    expected = selective_search(image).boxes
    alpha = np.dstack([image, np.arange(160, dtype=np.uint8).repeat(120).reshape(120, 160)])
    strided = np.asfortranarray(image)
    reversed_twice = image[:, ::-1].copy()[:, ::-1]
    for same in (torch.from_numpy(image), alpha, strided, reversed_twice, torch.from_numpy(strided)):
        assert torch.equal(selective_search(same).boxes, expected)
    grey = image[..., 1]
    repeated = selective_search(np.dstack([grey] * 3)).boxes
    assert torch.equal(selective_search(grey).boxes, repeated)
    assert torch.equal(selective_search(grey[..., None]).boxes, repeated)


def test_large_images_are_searched_small_and_boxes_scaled_back() -> None:
    image = picture(300, 500)
    config = replace(SINGLE, max_pixels=15_000)
    height, width = config.working_size((300, 500))
    assert height * width <= 15_000 < (height + 1) * (width + 1)
    small = torch.ops.detector.selective_search_resize(torch.from_numpy(image), height, width)
    boxes = selective_search(small, SINGLE).boxes
    expected = boxes * torch.tensor([500 / width, 300 / height] * 2)
    found = selective_search(image, config).boxes
    torch.testing.assert_close(found, expected)
    assert (0.0, 0.0, 500.0, 300.0) in rows(found)


def test_working_sizes() -> None:
    assert SINGLE.working_size((1000, 1000)) == (1000, 1000)
    assert SINGLE.working_size((2000, 2000)) == (1000, 1000)
    assert SINGLE.working_size((1, 5_000_000)) == (1, 1_000_000)
    assert replace(SINGLE, width=500).working_size((375, 1000)) == (188, 500)
    assert replace(SINGLE, width=500).working_size((30, 100)) == (150, 500)
    assert replace(SINGLE, width=2000).working_size((3000, 4000)) == (1500, 2000)  # smaller: as asked for
    assert replace(SINGLE, width=333).working_size((3000, 1)) == (54772, 18)  # enlarged: to max_pixels
    assert replace(SINGLE, width=101).working_size((20000, 100)) == (20000, 100)  # or not at all
    width: Any = np.int16(500)
    assert replace(SINGLE, width=width).working_size((375, 1000)) == (188, 500)
    assert replace(SINGLE, max_pixels=None).working_size((8192, 8192)) == (8192, 8192)
    with pytest.raises(InputError, match="Set max_pixels or a smaller width"):
        replace(SINGLE, max_pixels=None).working_size((8193, 8192))


def test_the_interpreter_runs_on_meanwhile() -> None:
    image = picture(600, 800)
    results: list[SelectiveSearchResult] = []
    worker = threading.Thread(target=lambda: results.append(selective_search(image)))
    worker.start()
    ticks = 0
    while worker.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert len(results) == 1
    assert ticks > 20  # with the lock held there would be one or two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "fsat"}, "did you mean 'fast'"),
        ({"mode": None}, "no selective search mode None"),
        ({"mode": ["fast"]}, r"no selective search mode \['fast'\]"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"max_proposals": -1}, "max_proposals is -1"),
        ({"max_proposals": 2.5}, "max_proposals is 2.5"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"num_threads": 2.0}, "num_threads is 2.0"),
        ({"image": np.zeros((4, 4, 3), object)}, "not object"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "not float32"),
        ({"image": torch.zeros(4, 4, 3)}, "not torch.float32"),
        ({"image": [[1, 2], [3, 4]]}, "not list"),
        ({"image": np.zeros((3, 40, 40), np.uint8)}, r"not \(3, 40, 40\)"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, r"not \(0, 4, 3\)"),
        ({"image": np.zeros(4, np.uint8)}, r"not \(4, 1\)|not \(4,\)"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        selective_search(**{"image": picture(8, 8), **arguments})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("color_spaces", ("hsv", "lba")),
        ("color_spaces", ()),
        ("color_spaces", "h"),  # a text, whose letters are names too
        ("color_spaces", None),
        ("similarities", (3,)),
        ("similarities", ("colour",)),
        ("scales", ()),
        ("scales", (float("nan"),)),
        ("scales", (-1.0,)),
        ("scales", 50),
        ("scales", ("a",)),
        ("sigma", "0.8"),
        ("min_size", 2.5),
        ("min_side", 1.5),
        ("min_side", None),
        ("width", 500.0),
        ("max_pixels", 1e6),
        ("diagonal_neighbours", "no"),
        ("sigma", 101.0),
        ("min_size", -1),
        ("connectivity", 6),
        ("min_side", -1),
        ("width", 0),
        ("max_pixels", 0),
    ],
)
def test_wrong_configurations_are_named(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"SelectiveSearchConfig.{field}"):
        replace(SINGLE, **{field: value})


@pytest.mark.filterwarnings("error")
def test_arrays_that_may_not_be_written_and_numbers_of_numpy() -> None:
    image = picture()
    expected = selective_search(image, seed=3, max_proposals=9)
    image.flags.writeable = False  # as PIL's arrays are
    numbers: dict[str, Any] = {
        "scales": np.array([50.0, 100.0]), "min_side": np.int64(20), "connectivity": np.int64(8)
    }  # fmt: skip
    counts: dict[str, Any] = {"seed": np.int64(3), "max_proposals": np.int32(9)}
    found = selective_search(image, SelectiveSearchConfig(**numbers), **counts)
    assert torch.equal(found.boxes, expected.boxes)
    assert not image.flags.writeable


def test_the_package_offers_all_that_a_call_needs() -> None:
    assert detector.ops.selective_search is selective_search
    assert detector.ops.SelectiveSearchConfig is SelectiveSearchConfig
    assert detector.ops.SelectiveSearchResult is SelectiveSearchResult


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    levels=st.sampled_from([1, 2, 3, 256]),
    data=st.data(),
)
def test_any_content(height: int, width: int, levels: int, data: st.DataObject) -> None:
    """Few levels make ties everywhere: among edges, among similarities, among boxes."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    image = (rng.integers(0, levels, (height, width, 3)) * (255 // max(levels - 1, 1))).astype(np.uint8)
    config = SelectiveSearchConfig(
        color_spaces=tuple(data.draw(st.sets(st.sampled_from([*COLOR_SPACES]), min_size=1))),
        scales=tuple(data.draw(st.sets(st.floats(0, 500, width=32), min_size=1, max_size=3))),
        similarities=tuple(data.draw(st.sets(st.sampled_from([*SIMILARITIES]), min_size=1))),
        sigma=data.draw(st.floats(0, 3)),
        min_size=data.draw(st.one_of(st.none(), st.integers(0, 30))),
        connectivity=data.draw(st.sampled_from((4, 8))),
        diagonal_neighbours=data.draw(st.booleans()),
        all_texture_channels=data.draw(st.booleans()),
        min_side=data.draw(st.integers(0, 5)),
    )
    boxes = selective_search(image, config, num_threads=2).boxes
    assert torch.equal(selective_search(image, config).boxes, boxes)
    assert len(rows(boxes)) == len(boxes)
    assert (boxes[:, 2:] - boxes[:, :2] >= max(config.min_side, 1)).all()
    assert ((0.0, 0.0, float(width), float(height)) in rows(boxes)) == (min(height, width) >= config.min_side)


@pytest.mark.slow
def test_no_sanitizer_complains_and_the_portable_build_agrees(tmp_path: Path) -> None:
    """The core built with AddressSanitizer and UBSan, and without processor-specific code."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-fsanitize=address,undefined"]
    flags.append("-fno-sanitize-recover=all")
    program = tmp_path / "run"
    source = SOURCES / "sanitizer" / "run.cpp"
    subprocess.run([compiler, *flags, source, "-o", program], check=True)
    image = picture(60, 80)
    done = subprocess.run([program, "60", "80", "2"], input=image.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    boxes, priorities = torch.ops.detector.selective_search_hierarchies(
        torch.from_numpy(image),
        color_spaces=[*COLOR_SPACES.values()],
        scales=[20.0, 150.0],
        min_sizes=[20, 5],
        similarities=[*SIMILARITIES.values()],
        sigma=0.8,
        connectivity=8,
        diagonal_neighbours=True,
        all_texture_channels=True,
        pixels_per_size=3.0,
        num_threads=1,
    )
    printed = np.array([line.split() for line in done.stdout.decode().splitlines()], dtype=np.int64)
    assert np.array_equal(printed[:, 0], priorities.numpy())
    assert np.array_equal(printed[:, 1:], boxes.numpy())
