"""Labels of stored regions, against the rules of training on images written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from detector.core.boxes import iou
from detector.core.errors import InputError
from detector.models.box_coder import box_deltas
from detector.staged import region_rows
from detector.staged.region_rows import draw_background, draw_sample, label_regions
from tests.staged.stored_regions import SAMPLING, FakeFeatures, record, rows_of, synthetic


def test_every_region_has_the_label_that_its_iou_says() -> None:
    records, features, _ = synthetic()
    rows = rows_of(records, features)
    labels = dict(zip(rows.foreground.rows.tolist(), rows.foreground.labels.tolist(), strict=True))
    near, far = set(rows.near.tolist()), set(rows.far.tolist())
    row = 0
    for one in records:
        for box in torch.from_numpy(features.boxes(one.key)):
            overlaps = iou(box[None], one.targets.boxes)[0]
            best = float(overlaps.max())
            expected = int(one.targets.labels[overlaps.argmax()]) if best >= 0.5 else None
            assert labels.get(row) == expected
            assert (row in near, row in far) == (0.1 <= best < 0.5, best < 0.1)
            row += 1
    assert near
    assert far
    assert len(labels) == 6 * 3 * 4
    assert row == features.offsets[-1]


def test_objects_with_the_same_box_are_one_object_with_all_labels() -> None:
    same, other = [10, 10, 30, 30], [50, 50, 80, 80]
    regions = np.array([other, same, [0, 60, 10, 70], same])
    image = record("a", [same, other, same], [3, 2, 1])
    stored: Any = FakeFeatures([image], [regions], np.arange(4.0)[:, None])
    found = label_regions(stored, [image], SAMPLING, use_difficult=True, lowest_iou=0.5, multi_label=3)
    every = found.foreground
    assert every.rows.tolist() == [0, 1, 3]
    assert every.labels.tolist() == [2, 3, 3]
    assert every.label_sets is not None
    assert every.label_sets.tolist() == [[False, False, True, False], *[[False, True, False, True]] * 2]
    assert every.counts(3) == [2, 1, 2]
    sample = draw_sample(found, 3, max_examples=9, max_background=9, far=0.5, seed=0)
    assert sample.features[:, 0].tolist() == [0, 1, 2, 3]  # each region once, though two have two labels
    assert sample.label_sets is not None
    assert np.array_equal(sample.label_sets[[0, 1, 3]], every.label_sets)
    assert not sample.label_sets[2].any()


def test_deltas_lead_from_the_regions_to_their_objects() -> None:
    records, features, _ = synthetic(images=2)
    rows = rows_of(records, features)
    every = np.concatenate([features.boxes(one.key) for one in records])
    np.testing.assert_array_equal(rows.foreground.boxes, every[rows.foreground.rows])
    expected = box_deltas(torch.from_numpy(rows.foreground.boxes), torch.from_numpy(rows.foreground.objects))
    assert torch.equal(rows.foreground.deltas(), expected)


def test_images_without_objects_crowds_and_empty_boxes_follow_the_rules_of_the_sampler() -> None:
    boxes = np.array([[0, 0, 50, 50], [60, 60, 60, 90], [55, 55, 95, 95.0]])
    empty = record("empty", [], [])
    crowded = record("crowd", [[50, 50, 100, 100]], [1], crowd=torch.tensor([True]))
    features = FakeFeatures([empty, crowded], [boxes, boxes], np.zeros((6, 2)))
    rows = rows_of([empty, crowded], features)
    assert rows.near.tolist() == [0, 2, 3]  # the last box lies in the crowd region, the second has no area
    assert not len(rows.far)
    assert not len(rows.foreground.rows)


def test_records_may_come_in_another_order_and_be_fewer() -> None:
    records, features, _ = synthetic(images=3)
    rows = rows_of([records[2], records[0]], features)
    whole = rows_of(records, features)
    between = (whole.foreground.rows < features.offsets[1]) | (whole.foreground.rows >= features.offsets[2])
    np.testing.assert_array_equal(rows.foreground.rows, whole.foreground.rows[between])
    np.testing.assert_array_equal(rows.foreground.objects, whole.foreground.objects[between])


def test_an_image_without_features_or_of_another_size_is_named() -> None:
    records, features, _ = synthetic(images=2)
    with pytest.raises(InputError, match=r"no region features of 1 of 3 images, the first: 'new'.*head_only"):
        rows_of([*records, record("new", [], [])], features)
    features.manifest["images"][1]["width"] = 90
    with pytest.raises(InputError, match=r"annotated as 100x100 pixels, .* of 90x100"):
        label_regions(features, records, SAMPLING, use_difficult=True, lowest_iou=0.5)


def test_a_sample_is_bounded_seeded_and_has_the_features_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    records, features, _ = synthetic()
    rows = rows_of(records, features)
    limits: dict[str, Any] = {"max_examples": 5, "max_background": 9, "far": 1 / 3}
    sample = draw_sample(rows, 4, seed=1, **limits)
    assert np.bincount(sample.labels, minlength=5).tolist() == [9, 5, 5, 5, 0]
    again, other = draw_sample(rows, 4, seed=1, **limits), draw_sample(rows, 4, seed=2, **limits)
    np.testing.assert_array_equal(sample.features, again.features)
    assert not np.array_equal(sample.features, other.features)
    stored = {
        tuple(row): number for number, row in enumerate(features.all_features.astype(np.float32).tolist())
    }
    drawn = [stored[tuple(row)] for row in sample.features.tolist()]
    assert len(set(drawn)) == len(drawn)
    assert sum(row in set(rows.far.tolist()) for row in drawn) == 3
    by_row = dict(zip(rows.foreground.rows.tolist(), rows.foreground.labels.tolist(), strict=True))
    assert [by_row.get(row, 0) for row in drawn] == sample.labels.tolist()
    monkeypatch.setattr(region_rows, "MAX_FIT_BYTES", 12 * 4 * features.width)
    assert len(draw_sample(rows, 4, seed=1, **limits).labels) <= 12


def test_one_part_of_the_background_replaces_the_other() -> None:
    records, features, _ = synthetic(images=1)
    rows, rng = rows_of(records, features), np.random.default_rng(0)
    assert (len(rows.near), len(rows.far)) == (3, 8)
    assert set(draw_background(rows, 6, 0.0, rng)) == set(rows.near)  # far ones were not asked for
    assert len(draw_background(rows, 6, 0.25, rng)) == 6
    assert len(draw_background(rows, 50, 0.25, rng)) == 11
