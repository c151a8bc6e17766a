"""Samples and batches: the same bytes whatever thread makes them, drawn from seed, step and image only."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.core.errors import InputError
from detector.core.structures import (
    Batch,
    DrawnRegions,
    ImageMeta,
    ImageRecord,
    Proposals,
    Sample,
    Targets,
)
from detector.data.augmentation import Augmentation, ColorJitter, Crop, Cutout, Expand
from detector.data.images import open_image
from detector.data.loader import load
from detector.data.samples import InferenceViews, TrainingSamples, collate, region_stream
from detector.data.transforms import ImageTransform, transformed
from tests.conftest import MakeBoxes
from tests.typed import present

RANDOM = ImageTransform(
    scales=(32, 40, 48),
    max_size=90,
    flip=0.5,
    vertical_flip=0.5,
    scale_jitter=(0.8, 1.2),
)
EVERYTHING = Augmentation(
    color_jitter=ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    expand=Expand(probability=0.5, max_ratio=2.0),
    crop=Crop(probability=0.7, min_scale=0.3, aspect_ratio=(0.5, 2.0), min_coverage=0.5),
    cutout=Cutout(probability=0.5, count=2, size=(0.1, 0.3)),
    fill=(124, 116, 104),
)
Keys = Sequence[tuple[int, int]]


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(5):
        height, width = 40 + number, 60 - number
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        targets = Targets.make(torch.tensor([[5.0, 5.0, 25.0, 30.0 + number]]), torch.tensor([1]))
        record = ImageRecord(image_id=str(number), path=path, height=height, width=width, targets=targets)
        found.append(record)
    return found


def proposals(record: ImageRecord) -> Proposals:
    corners = torch.arange(30.0)[:, None].repeat(1, 2)
    boxes = torch.cat((corners, corners + torch.tensor([8.0, 9.0])), dim=1)
    whole = torch.tensor([[0.0, 0.0, record.width, record.height], [3.0, 4.0, 20.0, 21.0]])
    return Proposals(boxes=torch.cat((whole, boxes)))


def draw(rois: torch.Tensor, targets: Targets, rng: np.random.Generator) -> DrawnRegions:
    """Draw six of the regions, with their places as labels."""
    rows = torch.from_numpy(rng.permutation(len(rois))[:6])
    return DrawnRegions(rois[rows], rows, rois[rows] / 2, rows)


def samples(
    records: list[ImageRecord],
    seed: int = 11,
    draws_per_scale: int | None = None,
    augmentation: Augmentation | None = None,
) -> TrainingSamples:
    return TrainingSamples(records, proposals, RANDOM, seed, draws_per_scale, draw, augmentation)


KEYS: list[Keys] = [
    [(0, 0), (1, 1)],
    [(2, 2), (3, 3)],
    [(4, 4), (0, 5)],
    [(1, 6), (2, 7)],
    [(3, 8), (3, 9)],
]


def batches(records: list[ImageRecord], workers: int, keys: Sequence[Keys] = KEYS) -> list[Batch]:
    sample = samples(records)
    return list(load(keys, lambda pair: collate([sample(*key) for key in pair]), workers))


def drawn(sample: Sample) -> DrawnRegions:
    assert sample.drawn is not None
    return sample.drawn


def same_batch(one: Batch, other: Batch) -> None:
    assert torch.equal(one.images, other.images)
    assert one.metas == other.metas
    for mine, theirs in zip(one.rois_per_image, other.rois_per_image, strict=True):
        assert torch.equal(mine, theirs)
    for name in ("rois", "labels", "box_targets"):
        assert torch.equal(getattr(present(one.sampled), name), getattr(present(other.sampled), name))


def same_draw(one: Sample, other: Sample) -> None:
    assert one.meta == other.meta
    assert torch.equal(one.image, other.image)
    pairs = zip(drawn(one)[:4], drawn(other)[:4], strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_do_not_change_a_byte(records: list[ImageRecord], workers: int) -> None:
    for alone, helped in zip(batches(records, 0), batches(records, workers), strict=True):
        same_batch(alone, helped)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 3])
def test_batches_from_a_later_step_on_are_those_of_the_whole_run(
    records: list[ImageRecord], workers: int, step: int
) -> None:
    whole = batches(records, workers)
    for one, other in zip(whole[step:], batches(records, workers, KEYS[step:]), strict=True):
        same_batch(one, other)


def test_the_order_of_the_calls_does_not_matter(records: list[ImageRecord]) -> None:
    keys = [(index, number) for number in range(6) for index in range(5)]
    sample = samples(records)
    expected = {key: sample(*key) for key in keys}
    random.Random(0).shuffle(keys)
    for key in keys:
        same_draw(sample(*key), expected[key])


@pytest.mark.parametrize("augmentation", [None, EVERYTHING], ids=["plain", "augmented"])
def test_eight_threads_at_once_draw_what_one_does(
    records: list[ImageRecord], augmentation: Augmentation | None
) -> None:
    sample, keys = samples(records, augmentation=augmentation), [(number % 5, number) for number in range(80)]
    expected = [sample(*key) for key in keys]
    together = threading.Barrier(8, timeout=20)

    def make(key: tuple[int, int]) -> Sample:
        if key[1] < 8:
            together.wait()
        return sample(*key)

    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(pool.map(make, keys), expected, strict=True):
            same_draw(one, other)


def test_seed_step_and_image_decide_all_that_is_random(records: list[ImageRecord]) -> None:
    sample = samples(records)
    first = sample(0, 3)
    same_draw(first, samples(records)(0, 3))
    places = [drawn(sample(0, number)).labels.tolist() for number in range(12)]
    assert len({tuple(row) for row in places}) == 12  # another step draws other regions
    assert drawn(samples(records, seed=12)(0, 3)).labels.tolist() != places[3]
    assert len({sample(0, number).meta.input_size for number in range(12)}) > 3
    sizes = [sample(0, number).meta.input_size for number in range(12)]
    assert [samples(records, seed=12)(0, number).meta.input_size for number in range(12)] != sizes


def test_two_images_of_a_batch_draw_apart(records: list[ImageRecord]) -> None:
    """Each has a number of its own in the run, also where one image occurs twice."""
    sampled = present(batches(records, 0)[4].sampled)
    one, other = sampled.labels.split(6)
    assert one.tolist() != other.tolist()


def test_regions_and_transforms_have_streams_of_their_own() -> None:
    """Otherwise an image that is flipped would get certain regions."""
    ours = np.random.default_rng((11, 3)).random(8)
    assert not np.isin(region_stream(11, 3).random(8), ours).any()
    assert np.array_equal(region_stream(11, 3).random(8), region_stream(11, 3).random(8))
    assert not np.array_equal(region_stream(11, 4).random(8), region_stream(11, 3).random(8))
    assert not np.array_equal(region_stream(12, 3).random(8), region_stream(11, 3).random(8))


def test_drawing_does_not_change_the_image(records: list[ImageRecord]) -> None:
    without = TrainingSamples(records, proposals, RANDOM, 11)
    for number in range(6):
        bare, full = without(1, number), samples(records)(1, number)
        assert bare.drawn is None
        same_draw(replace(bare, drawn=full.drawn), full)


def test_drawn_regions_are_in_the_pixels_of_the_input(records: list[ImageRecord]) -> None:
    for number in range(12):
        found = samples(records)(2, number)
        boxes = found.meta.to_input(proposals(records[2]).boxes)
        assert torch.equal(drawn(found).boxes, boxes[drawn(found).labels])
        assert torch.equal(found.rois, boxes)


def test_the_regions_of_a_batch_carry_the_number_of_their_image(records: list[ImageRecord]) -> None:
    sample = samples(records)
    parts = [sample(2, 0), sample(4, 1), sample(0, 2)]
    sampled = present(collate(parts).sampled)
    assert sampled.rois[:, 0].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    for part, rows, labels, targets in zip(
        parts,
        sampled.rois[:, 1:].split(6),
        sampled.labels.split(6),
        sampled.box_targets.split(6),
        strict=True,
    ):
        assert torch.equal(rows, drawn(part).boxes)
        assert torch.equal(labels, drawn(part).labels)
        assert torch.equal(targets, drawn(part).box_targets)


def test_an_image_of_which_nothing_is_drawn_keeps_its_number(make_boxes: MakeBoxes) -> None:
    parts = [
        replace(
            sample(4, 4, make_boxes(1)),
            drawn=DrawnRegions(
                make_boxes(count),
                torch.zeros(count, dtype=torch.int64),
                make_boxes(count),
                torch.arange(count),
            ),
        )
        for count in (2, 0, 1)
    ]
    assert present(collate(parts).sampled).rois[:, 0].tolist() == [0, 0, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_clean_error(records: list[ImageRecord], workers: int) -> None:
    records[3].path.write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        batches(records, workers)
    assert str(caught.value) == (
        f"{records[3].path}: not a readable image; replace the file or leave its id out of the split "
        "(tools/check_data.py --fix-list LIST finds all such images, data.leave_out=LIST leaves them out)"
    )


def test_inference_gives_one_sample_a_scale_with_the_same_proposals(records: list[ImageRecord]) -> None:
    transforms = [ImageTransform(scales=(side,), max_size=200) for side in (40, 80)]
    views = InferenceViews(records, proposals, transforms)
    small, large = views(1)
    assert (small.meta.input_size, large.meta.input_size) == ((40, 58), (80, 115))
    assert torch.equal(small.proposals.boxes, large.proposals.boxes)
    assert torch.equal(small.rois, small.meta.to_input(small.proposals.boxes))
    assert large.rois[0].tolist() == [0, 0, 115, 80]
    assert small.drawn is None
    records[1].path.unlink()
    with pytest.raises(InputError, match=r"1\.png: no such file"):
        views(1)


def test_consecutive_samples_share_a_scale_as_configured(records: list[ImageRecord]) -> None:
    shared = samples(records, draws_per_scale=4)
    scales = [shared(0, number).meta.input_size for number in range(80)]
    groups = [set(scales[start : start + 4]) for start in range(0, 80, 4)]
    assert all(len(group) == 1 for group in groups)
    assert len(set.union(*groups)) > 10  # and each group draws again
    assert scales[7::-1] == [shared(0, number).meta.input_size for number in range(7, -1, -1)]
    flips = {shared(0, number).meta.flipped for number in range(4)}
    assert flips == {True, False}


def test_without_augmentation_a_sample_has_the_bits_of_its_own_steps(records: list[ImageRecord]) -> None:
    """The same draws in the same order: scale, flips, and regions; nothing in between."""
    for number in range(20):
        record = records[number % 5]
        rng = np.random.default_rng((11, number))
        side = (32, 40, 48)[rng.integers(3)] * float(np.exp(rng.uniform(*np.log((0.8, 1.2)))))
        flips = rng.random() < 0.5, rng.random() < 0.5
        size = record.height, record.width
        meta = replace(
            ImageTransform(scales=(1,), max_size=90).plan(size, record.image_id),
            input_size=RANDOM.size_of(size, side),
            flipped=bool(flips[0]),
            flipped_vertically=bool(flips[1]),
        )
        rois = meta.to_input(proposals(record).boxes)
        regions = draw(rois, record.targets, region_stream(11, number))
        for augmentation in (None, Augmentation()):
            found = samples(records, augmentation=augmentation)(number % 5, number)
            assert found.meta == meta
            pixels = open_image(record.path, size, meta.input_size).pixels(meta.input_size)
            assert torch.equal(found.image, transformed(pixels, meta))
            assert torch.equal(found.rois, rois)
            assert torch.equal(found.targets.boxes, meta.to_input(record.targets.boxes))
            pairs = zip(drawn(found)[:4], regions[:4], strict=True)
            assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_augmentation_changes_neither_flips_nor_shared_scales(records: list[ImageRecord]) -> None:
    for number in range(30):
        plain = samples(records, draws_per_scale=4).plan(1, number)
        changed = samples(records, draws_per_scale=4, augmentation=EVERYTHING).plan(1, number)
        assert (plain.flipped, plain.flipped_vertically) == (changed.flipped, changed.flipped_vertically)
        if changed.window is None:
            assert changed == plain
        elif max(changed.input_size) < 90:
            assert abs(min(changed.input_size) - min(plain.input_size)) <= 1


def test_a_plan_needs_no_image_and_is_what_is_made(records: list[ImageRecord]) -> None:
    sample = samples(records, augmentation=EVERYTHING)
    made = [sample(number % 5, number).meta for number in range(30)]
    for record in records:
        record.path.unlink()
    assert [sample.plan(number % 5, number) for number in range(30)] == made
    assert len({meta.window for meta in made}) > 15


def test_augmented_boxes_are_in_the_image_and_objects_stay(records: list[ImageRecord]) -> None:
    sample = samples(records, augmentation=EVERYTHING)
    fewer = 0
    for number in range(120):
        found = sample(number % 5, number)
        height, width = found.meta.input_size
        assert len(found.targets) == 1
        assert len(found.proposals) == len(found.rois)
        assert torch.equal(found.meta.to_input(found.proposals.boxes), found.rois)
        for boxes in (found.rois, found.targets.boxes):
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert (boxes >= -1e-3).all()
            assert (boxes <= torch.tensor([width, height] * 2) + 1e-3).all()
        fewer += len(found.rois) < 32
    assert 30 < fewer < 120


def test_each_kind_of_augmentation_has_draws_of_its_own(records: list[ImageRecord]) -> None:
    """Another one that is added, or another strength, changes only what it is about."""
    crops = Augmentation(crop=EVERYTHING.crop)
    jittered = replace(crops, color_jitter=EVERYTHING.color_jitter)
    painted = replace(jittered, cutout=EVERYTHING.cutout)
    for number in range(20):
        alone, colours, both = (
            samples(records, augmentation=one)(2, number) for one in (crops, jittered, painted)
        )
        assert alone.meta == colours.meta == both.meta
        same_draw(replace(alone, image=colours.image), colours)
        same = (both.image == colours.image).all(dim=2)
        assert (both.image[~same] == 0).all()  # only the holes differ


def test_colours_and_holes_are_drawn_for_each_sample(records: list[ImageRecord]) -> None:
    plain = ImageTransform(scales=(40,), max_size=90)
    for kind in ("color_jitter", "cutout"):
        augmentation = Augmentation(**{kind: getattr(EVERYTHING, kind)})
        sample = TrainingSamples(records, proposals, plain, 11, augmentation=augmentation)
        images = [sample(0, number).image for number in range(20)]
        assert len({image.numpy().tobytes() for image in images}) > 7
        other = TrainingSamples(records, proposals, plain, 12, augmentation=augmentation)
        assert any(not torch.equal(other(0, number).image, images[number]) for number in range(20))


def test_expanded_images_and_holes_have_the_same_colour(records: list[ImageRecord]) -> None:
    for kind in ("expand", "cutout"):
        part = replace(getattr(EVERYTHING, kind), probability=1.0)
        augmentation = replace(Augmentation(**{kind: part}), fill=(1, 2, 3))
        image = samples(records, augmentation=augmentation)(0, 3).image
        assert (image == torch.tensor([1, 2, 3], dtype=torch.uint8)).all(dim=2).float().mean() > 0.02


def test_a_class_that_a_crop_does_not_show_is_no_label(records: list[ImageRecord]) -> None:
    boxes = torch.tensor([[2.0, 2, 12, 12], [40, 25, 55, 38]])
    record = replace(records[0], targets=Targets.make(boxes, torch.tensor([1, 2])))
    crops = Augmentation(crop=replace(present(EVERYTHING.crop), probability=1.0))
    sample = TrainingSamples([record], no_proposals, RANDOM, 11, augmentation=crops)
    seen = set()
    for number in range(40):
        found = sample(0, number)
        x1, y1, x2, y2 = present(found.meta.window)
        shown = [
            x1 <= (box[0] + box[2]) / 2 < x2 and y1 <= (box[1] + box[3]) / 2 < y2 for box in boxes.tolist()
        ]
        assert found.targets.presence(2).tolist() == [1 if there else -1 for there in shown]
        seen.add(tuple(shown))
    assert {(True, False), (False, True)} <= seen


def no_proposals(_record: ImageRecord) -> Proposals:
    return Proposals(boxes=torch.zeros(0, 4))


def sample(height: int, width: int, boxes: torch.Tensor) -> Sample:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return Sample(
        image=torch.randint(1, 256, (height, width, 3), generator=generator, dtype=torch.uint8),
        proposals=Proposals(boxes=boxes),
        rois=boxes * 2,
        targets=Targets.empty(),
        meta=ImageMeta(image_id=f"{height}x{width}", original_size=(9, 9), input_size=(height, width)),
    )


def test_images_are_padded_right_and_bottom_with_zeros(make_boxes: MakeBoxes) -> None:
    parts = [sample(4, 9, make_boxes(3)), sample(7, 5, make_boxes(0)), sample(7, 9, make_boxes(1))]
    batch = collate(parts)
    assert (batch.images.shape, batch.images.dtype) == ((3, 7, 9, 3), torch.uint8)
    for image, one in zip(batch.images, parts, strict=True):
        height, width = one.meta.input_size
        assert torch.equal(image[:height, :width], one.image)
        assert not image[height:].any()
        assert not image[:, width:].any()
    assert [meta.image_id for meta in batch.metas] == ["4x9", "7x5", "7x9"]
    assert batch.sizes == [(4, 9), (7, 5), (7, 9)]
    assert all(mine is one.rois for mine, one in zip(batch.rois_per_image, parts, strict=True))
    assert batch.sampled is None


def test_a_batch_of_one_image_has_memory_of_its_own(make_boxes: MakeBoxes) -> None:
    """The pixels of a view that was not resized are those of the decoded image, which has other views."""
    one = sample(4, 9, make_boxes(3))
    batch = collate([one])
    batch.images.zero_()
    assert one.image.any()
