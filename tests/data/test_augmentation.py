"""Augmentation: what each kind may draw, compared with torchvision and with slow loops over the boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from detector.core import boxes as box_ops
from detector.core.structures import ImageMeta, ImageRecord, Proposals, Sample, Targets, Window
from detector.data.augmentation import (
    HIDDEN,
    Augmentation,
    ColorJitter,
    Crop,
    Cutout,
    Expand,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    clip_to_window,
    shown_in_window,
)
from detector.data.images import LoadedImage
from detector.data.samples import make_sample
from tests.conftest import MakeBoxes
from tests.typed import present

FILL = (124, 116, 104)
CROP = Crop(probability=1.0, min_scale=0.3, aspect_ratio=(0.5, 2.0), min_coverage=0.5)
EXPAND = Expand(probability=1.0, max_ratio=3.0)
SIZE = (90, 120)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def some_targets(boxes: Tensor, seed: int = 0) -> Targets:
    rng = np.random.default_rng(seed)
    flags = torch.from_numpy(rng.random((2, len(boxes))) < 0.25)
    return Targets.make(boxes, torch.from_numpy(rng.integers(1, 4, len(boxes))), flags[0], flags[1])


# Colours


@pytest.fixture
def threads() -> Iterator[None]:
    before = cv2.getNumThreads(), torch.get_num_threads()
    yield
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


KINDS = ("brightness", "contrast", "saturation", "hue")


def by_torchvision(kind: str, image: np.ndarray, amount: float) -> np.ndarray:
    change = getattr(v2.functional, f"adjust_{kind}")
    found: Tensor = change(torch.from_numpy(image).permute(2, 0, 1), amount)
    return found.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("amount", [-0.5, -0.3, -0.02, 0.0, 0.1, 0.5])
def test_each_change_of_colours_is_torchvisions_up_to_rounding(kind: str, amount: float) -> None:
    image = noise(60, 80)
    image[:3, :3] = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0]])  # grey has no hue
    given = image.copy()
    value = amount if kind == "hue" else 1 + 2 * amount
    found = {
        "brightness": adjust_brightness,
        "contrast": adjust_contrast,
        "saturation": adjust_saturation,
        "hue": adjust_hue,
    }[kind](image, value)
    difference = np.abs(found.astype(int) - by_torchvision(kind, image, value))
    assert found.dtype == np.uint8
    # torchvision cuts digits off where we round, for saturation twice.
    assert difference.max() <= {"brightness": 0, "saturation": 2}.get(kind, 1)
    assert np.array_equal(image, given)
    if amount == 0:
        assert np.abs(found.astype(int) - image).max() <= 1


def test_factors_are_uniform_and_changes_come_in_every_order() -> None:
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    jitter, image, orders = ColorJitter(**strengths), noise(16, 20), set()
    drawn = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        amounts = [rng.uniform(-strength, strength) for strength in strengths.values()]
        drawn.append(amounts)
        expected = image
        order = tuple(rng.permutation(4).tolist())
        for number in order:
            value = amounts[number] + (KINDS[number] != "hue")
            expected = by_torchvision(KINDS[number], expected, value)
        orders.add(order)
        difference = np.abs(jitter(image, np.random.default_rng(seed)).astype(int) - expected)
        assert difference.mean() < 2  # each change rounds by 1 at most, and the next ones enlarge that
        assert difference.max() <= 12
    assert len(orders) == 24
    assert np.abs(np.max(drawn, axis=0) - list(strengths.values())).max() < 0.01
    assert np.abs(np.min(drawn, axis=0) + list(strengths.values())).max() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_strength_of_zero_changes_nothing_of_its_kind(kind: str) -> None:
    image = noise(16, 20)
    value = np.random.default_rng(4).uniform(-1, 1, 4)[KINDS.index(kind)] * 0.3
    found = ColorJitter(**{kind: 0.3})(image, np.random.default_rng(4))
    expected = by_torchvision(kind, image, value + (kind != "hue"))
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert ColorJitter()(image, np.random.default_rng(4)) is image


def test_colours_do_not_depend_on_the_number_of_threads(threads: None) -> None:
    jitter = ColorJitter(brightness=0.3, contrast=0.8, saturation=0.3, hue=0.1)
    for seed in range(3):
        image, found = noise(301, 407, seed), []
        for count in (1, 2, 3):
            cv2.setNumThreads(count)
            torch.set_num_threads(count)
            found.append(jitter(image, np.random.default_rng(seed)))
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[0], found[2])


def test_colours_leave_the_argument_and_the_filled_part_alone() -> None:
    image = torch.from_numpy(noise(*SIZE))
    sample = sample_of(image, torch.zeros(0, 4), window=(-30, -20, 150, 115), flipped=True)
    before = sample.image.clone()
    augmentation = Augmentation(color_jitter=ColorJitter(brightness=0.9), fill=FILL)
    changed = augmentation.paint(sample, np.random.default_rng(3))
    assert torch.equal(sample.image, before)
    inside = torch.zeros(before.shape[:2], dtype=torch.bool)
    inside[20:110, 30:150] = True  # the window is 180 wide and has 30 on both sides
    assert (changed.image[inside] != before[inside]).any(dim=1).float().mean() > 0.8
    assert (changed.image[~inside] == torch.tensor(FILL, dtype=torch.uint8)).all()


# Windows


def sample_of(image: Tensor, boxes: Tensor, window: Window | None = None, flipped: bool = False) -> Sample:
    """A sample in the image's own resolution."""
    height, width = image.shape[:2]
    shown = window or (0, 0, width, height)
    meta = ImageMeta(
        image_id="a",
        original_size=(height, width),
        input_size=(shown[3] - shown[1], shown[2] - shown[0]),
        flipped=flipped,
        window=window,
    )
    targets = Targets.make(boxes, torch.ones(len(boxes), dtype=torch.int64))
    record = ImageRecord(image_id="a", path=Path("a"), height=height, width=width, targets=targets)
    return make_sample(record, LoadedImage.of(image.numpy()), Proposals(boxes=boxes), meta, FILL)


def test_a_canvas_contains_the_image_and_grows_by_one_factor() -> None:
    ratios, lefts = [], []
    for seed in range(300):
        x1, y1, x2, y2 = EXPAND(SIZE, np.random.default_rng(seed))
        assert x1 <= 0 <= SIZE[1] <= x2
        assert y1 <= 0 <= SIZE[0] <= y2
        ratio = (x2 - x1) / SIZE[1]
        assert abs((y2 - y1) / SIZE[0] - ratio) < 0.02
        ratios.append(ratio)
        lefts.append(-x1 / max(x2 - x1 - SIZE[1], 1))
    assert min(ratios) >= 1
    assert max(ratios) <= 3
    assert abs(np.mean(ratios) - 2) < 0.1
    assert abs(np.mean(lefts) - 0.5) < 0.06


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 8), st.booleans())
def test_a_crop_shows_an_object_and_keeps_its_limits(seed: int, count: int, expanded: bool) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 80, (count, 2))
    boxes = torch.from_numpy(np.hstack((corners, corners + rng.uniform(2, 40, (count, 2))))).float()
    targets = some_targets(box_ops.clip(boxes, SIZE), seed)
    whole = EXPAND(SIZE, rng) if expanded else (0, 0, SIZE[1], SIZE[0])
    crop = CROP(whole, SIZE, targets, np.random.default_rng(seed))
    if crop == whole:
        return
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    assert whole[0] <= crop[0] < crop[2] <= whole[2]
    assert whole[1] <= crop[1] < crop[3] <= whole[3]
    assert 0.5 <= width / height <= 2
    assert width >= 0.3 * (whole[2] - whole[0]) - 0.5
    assert height >= 0.3 * (whole[3] - whole[1]) - 0.5
    if not count:
        assert 0 <= (crop[0] + crop[2]) / 2 < SIZE[1]
        assert 0 <= (crop[1] + crop[3]) / 2 < SIZE[0]
        return
    plain = ~(targets.difficult | targets.crowd)
    counted = targets.select(plain) if plain.any() else targets
    shares = []
    for x1, y1, x2, y2 in counted.boxes.tolist():
        inside = crop[0] <= (x1 + x2) / 2 < crop[2] and crop[1] <= (y1 + y2) / 2 < crop[3]
        wide, tall = min(x2, crop[2]) - max(x1, crop[0]), min(y2, crop[3]) - max(y1, crop[1])
        shares.append(inside * max(wide, 0) * max(tall, 0) / ((x2 - x1) * (y2 - y1)))
    assert max(shares) >= 0.5 - 1e-5


def test_most_crops_are_found_and_of_all_sizes() -> None:
    targets = Targets.make(torch.tensor([[10.0, 10, 40, 40], [80, 50, 110, 80]]), torch.tensor([1, 2]))
    whole = (0, 0, SIZE[1], SIZE[0])
    crops = np.array([CROP(whole, SIZE, targets, np.random.default_rng(seed)) for seed in range(300)])
    assert (crops != whole).any(axis=1).mean() > 0.98
    widths = (crops[:, 2] - crops[:, 0]) / SIZE[1]
    assert np.histogram(widths, bins=5, range=(0.3, 1))[0].min() > 20


def test_where_no_crop_shows_enough_the_image_stays_whole() -> None:
    """The image is three times as wide as high, and no crop may be wider than half its height."""
    narrow = replace(CROP, aspect_ratio=(0.1, 0.1))
    targets = Targets.make(torch.tensor([[0.0, 0, 300, 100]]), torch.tensor([1]))
    whole = (0, 0, 300, 100)
    assert narrow(whole, (100, 300), targets, np.random.default_rng(0)) == whole


@pytest.mark.parametrize("kind", ["expand", "crop", "cutout"])
def test_as_many_images_are_changed_as_the_probability_says(kind: str) -> None:
    boxes = torch.tensor([[10.0, 10, 40, 40]])
    targets, sample = Targets.make(boxes, torch.tensor([1])), sample_of(torch.from_numpy(noise(*SIZE)), boxes)
    augmentation = {
        "expand": Augmentation(expand=replace(EXPAND, probability=0.3)),
        "crop": Augmentation(crop=replace(CROP, probability=0.3)),
        "cutout": Augmentation(cutout=Cutout(probability=0.3, count=1, size=(0.1, 0.2))),
    }[kind]
    changed = 0
    for seed in range(400):
        window = augmentation.window(SIZE, targets, np.random.default_rng(seed))
        painted = augmentation.paint(sample, np.random.default_rng(seed))
        changed += window is not None or not torch.equal(painted.image, sample.image)
    assert 0.22 < changed / 400 < 0.38


def test_an_object_without_a_place_keeps_the_image_whole() -> None:
    """As classification allows: nobody knows whether a crop would show it."""
    good = [10.0, 10, 40, 40]
    augmentation = Augmentation(expand=EXPAND, crop=CROP)
    for bad in ([40.0, 10, 10, 40], [200.0, 10, 220, 40], [10.0, 10, 10, 10], [float("nan")] * 4):
        targets = Targets.make(torch.tensor([good, bad]), torch.tensor([1, 2]))
        assert augmentation.window(SIZE, targets, np.random.default_rng(1)) is None
    one = Targets.make(torch.tensor([good]), torch.tensor([1]))
    assert augmentation.window(SIZE, one, np.random.default_rng(1)) is not None


def test_expanding_and_cropping_do_not_disturb_each_other() -> None:
    targets = Targets.make(torch.tensor([[10.0, 10, 40, 40]]), torch.tensor([1]))
    for seed in range(20):
        expanded = Augmentation(expand=EXPAND).window(SIZE, targets, np.random.default_rng(seed))
        both = Augmentation(expand=EXPAND, crop=CROP).window(SIZE, targets, np.random.default_rng(seed))
        x1, y1, x2, y2 = present(expanded)
        inner = present(both)
        assert x1 <= inner[0] < inner[2] <= x2
        assert y1 <= inner[1] < inner[3] <= y2


# Boxes in windows


@pytest.mark.parametrize(
    "window", [(30, 20, 100, 75), (0, 0, 120, 90), (-20, -10, 70, 60), (60, 30, 160, 120)]
)
def test_what_a_window_shows_follows_the_rules(window: Window, make_boxes: MakeBoxes) -> None:
    boxes = torch.cat((make_boxes(60, extent=90.0), torch.tensor([[50.0, 40, 50, 60], [60, 30, 60, 30]])))
    targets = some_targets(boxes)
    scores = torch.arange(float(len(boxes)))
    proposals, shown = shown_in_window(Proposals(boxes=boxes, scores=scores), targets, window)
    kept: list[int] = []
    objects: list[int] = []
    clipped = []
    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        part = [max(x1, window[0]), max(y1, window[1]), min(x2, window[2]), min(y2, window[3])]
        visible = part[2] > part[0] and part[3] > part[1]
        centred = window[0] <= (x1 + x2) / 2 < window[2] and window[1] <= (y1 + y2) / 2 < window[3]
        clipped.append(part)
        kept += [number] if visible and centred else []
        objects += [number] if visible and (centred or bool(targets.crowd[number])) else []
    rows = torch.tensor(clipped)
    assert present(proposals.scores).tolist() == kept
    torch.testing.assert_close(proposals.boxes, rows[kept])
    torch.testing.assert_close(shown.boxes, rows[objects])
    for name in ("labels", "difficult", "crowd", "area"):
        assert torch.equal(getattr(shown, name), getattr(targets, name)[objects])
    assert len(objects) > len(kept) or window == (0, 0, 120, 90)  # parts of crowds


def test_the_whole_image_shows_everything(make_boxes: MakeBoxes) -> None:
    proposals, targets = Proposals(boxes=make_boxes(5)), some_targets(make_boxes(4))
    assert shown_in_window(proposals, targets, None) == (proposals, targets)


def test_no_boxes_stay_no_boxes() -> None:
    clipped, kept = clip_to_window(torch.zeros(0, 4), (3, 4, 20, 30))
    assert (clipped.shape, kept.shape) == ((0, 4), (0,))


def test_a_crop_in_the_images_own_resolution_is_torchvisions(make_boxes: MakeBoxes) -> None:
    image, boxes = torch.from_numpy(noise(*SIZE)), make_boxes(40, extent=90.0)
    window = x1, y1, x2, y2 = 25, 10, 95, 80
    sample = sample_of(image, boxes, window)
    planes, frame = v2.functional.crop(image.permute(2, 0, 1), y1, x1, y2 - y1, x2 - x1), (y1, x1)
    moved, _ = v2.functional.crop_bounding_boxes(
        boxes, v2_format(), top=frame[0], left=frame[1], height=y2 - y1, width=x2 - x1
    )
    _, kept = clip_to_window(boxes, window)
    assert torch.equal(sample.image, planes.permute(1, 2, 0))
    torch.testing.assert_close(sample.rois, moved[kept])
    torch.testing.assert_close(sample.targets.boxes, moved[kept])


def test_an_expanded_image_is_torchvisions(make_boxes: MakeBoxes) -> None:
    image, boxes = torch.from_numpy(noise(*SIZE)), make_boxes(10, extent=90.0)
    sample = sample_of(image, boxes, (-30, -20, 150, 115))
    border = [30, 20, 30, 25]
    planes = v2.functional.pad(image.permute(2, 0, 1), border, fill=list(FILL))
    moved, _ = v2.functional.pad_bounding_boxes(boxes, v2_format(), SIZE, border)
    assert torch.equal(sample.image, planes.permute(1, 2, 0))
    torch.testing.assert_close(sample.rois, moved)


def v2_format() -> object:
    from torchvision.tv_tensors import BoundingBoxFormat

    return BoundingBoxFormat.XYXY


# Holes


def holes_of(before: Tensor, after: Tensor) -> Tensor:
    """The pixels (h, w) that are painted; the images of the tests do not have the colour of a hole."""
    painted = (after == torch.tensor(FILL, dtype=torch.uint8)).all(dim=2)
    assert torch.equal(before[~painted], after[~painted])
    return painted


def test_holes_are_squares_of_the_drawn_sizes() -> None:
    sample = sample_of(torch.full((*SIZE, 3), 9, dtype=torch.uint8), torch.zeros(0, 4))
    cutout = Cutout(probability=1.0, count=1, size=(0.2, 0.5))
    sides, cut, centres = [], 0, []
    for seed in range(200):
        painted = holes_of(sample.image, cutout(sample, FILL, np.random.default_rng(seed)).image)
        ys, xs = np.nonzero(painted.numpy())
        height, width = np.ptp(ys) + 1, np.ptp(xs) + 1
        assert len(ys) == height * width
        if height == width:
            sides.append(height)
            centres.append(xs.mean())
        else:  # it reaches beyond the edge of the image
            cut += 1
            assert {0, SIZE[0] - 1} & {ys.min(), ys.max()} or {0, SIZE[1] - 1} & {xs.min(), xs.max()}
    assert min(sides) >= 18
    assert max(sides) <= 45
    assert 20 < cut < 140
    assert abs(np.mean(centres) - SIZE[1] / 2) < 8


def test_hidden_boxes_are_left_out(make_boxes: MakeBoxes) -> None:
    boxes = make_boxes(60, extent=90.0)
    sample = sample_of(torch.full((*SIZE, 3), 9, dtype=torch.uint8), boxes)
    sample = replace(
        sample, targets=some_targets(boxes), proposals=Proposals(boxes=boxes, scores=torch.arange(60.0))
    )
    cutout, lost = Cutout(probability=1.0, count=1, size=(0.3, 0.6)), 0
    for seed in range(30):
        found = cutout(sample, FILL, np.random.default_rng(seed))
        ys, xs = np.nonzero(holes_of(sample.image, found.image).numpy())
        hole = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        kept = []
        for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            wide, tall = min(x2, hole[2]) - max(x1, hole[0]), min(y2, hole[3]) - max(y1, hole[1])
            hidden = max(wide, 0) * max(tall, 0) / ((x2 - x1) * (y2 - y1))
            assert abs(hidden - HIDDEN) > 1e-5
            kept += [number] if hidden < HIDDEN else []
        lost += 60 - len(kept)
        assert present(found.proposals.scores).tolist() == kept
        assert torch.equal(found.rois, boxes[kept])
        assert torch.equal(found.targets.boxes, boxes[kept])
        assert torch.equal(found.targets.crowd, sample.targets.crowd[kept])
    assert lost > 60
    assert len(sample.rois) == 60


def test_the_last_object_is_never_hidden() -> None:
    boxes = torch.tensor([[50.0, 40, 60, 50], [20, 20, 30, 30], [90, 60, 100, 70]])
    flags = torch.tensor([False, True, False])
    targets = Targets.make(boxes, torch.tensor([1, 1, 2]), flags, torch.tensor([False, False, True]))
    sample = sample_of(torch.full((*SIZE, 3), 9, dtype=torch.uint8), boxes)
    sample = replace(sample, targets=targets)
    cutout, others = Cutout(probability=1.0, count=6, size=(0.3, 0.5)), set()
    for seed in range(60):
        found = cutout(sample, FILL, np.random.default_rng(seed)).targets
        assert not (found.difficult | found.crowd).all()  # the only plain object is there
        others.add(len(found))
    assert others == {1, 2, 3}


def test_holes_lie_in_the_image_and_not_in_what_is_filled() -> None:
    image = torch.full((*SIZE, 3), 9, dtype=torch.uint8)
    sample = sample_of(image, torch.zeros(0, 4), window=(-10, -20, 300, 200), flipped=True)
    cutout = Cutout(probability=1.0, count=1, size=(0.2, 0.4))
    for seed in range(40):
        found = cutout(sample, FILL, np.random.default_rng(seed))
        changed = (found.image != sample.image).any(dim=2)
        assert changed.any()
        assert changed[20:110, 310 - 130 : 310 - 10].sum() == changed.sum()
