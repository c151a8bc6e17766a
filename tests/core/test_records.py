"""Records as columns give back exactly the records that they were made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.core.records import Records, Texts
from detector.core.structures import ImageRecord, Targets


def record(number: int, objects: int) -> ImageRecord:
    generator = torch.Generator().manual_seed(number)
    corners = torch.rand(objects, 2, generator=generator) * 50
    boxes = torch.cat((corners, corners + 10), dim=1)
    labels = torch.randint(1, 4, (objects,), generator=generator)
    flags = torch.rand(objects, generator=generator) < 0.5
    targets = Targets.make(boxes, labels, difficult=flags, crowd=~flags)
    key = f"images/b{number}.png"
    return ImageRecord(
        image_id=f"{number:03d}",
        path=Path("set", key),
        height=60 + number,
        width=80,
        targets=targets,
        key=key,
    )


def assert_same(one: ImageRecord, other: ImageRecord) -> None:
    assert (one.image_id, one.path, one.key) == (other.image_id, other.path, other.key)
    assert (one.height, one.width) == (other.height, other.width)
    for name in ("boxes", "labels", "difficult", "crowd", "area"):
        before, after = getattr(one.targets, name), getattr(other.targets, name)
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


@given(st.lists(st.integers(0, 4), max_size=8), st.data())
def test_records_and_their_parts_are_those_they_were_made_of(counts: list[int], data: st.DataObject) -> None:
    originals = [record(number, count) for number, count in enumerate(counts)]
    columns = Records.of(originals)
    assert len(columns) == len(originals)
    assert len(columns.objects) == sum(counts)
    for one, other in zip(originals, columns, strict=True):
        assert_same(one, other)
    rows = data.draw(st.lists(st.integers(0, max(len(counts) - 1, 0)), max_size=6 if counts else 0))
    for row, other in zip(rows, columns.take(rows), strict=True):
        assert_same(originals[row], other)
    assert columns.paths() == [str(one.path) for one in originals]
    for one, other in zip(originals[1::2], columns[1::2], strict=True):
        assert_same(one, other)
    assert columns.objects.image_numbers().tolist() == [
        number for number, count in enumerate(counts) for _ in range(count)
    ]


def test_indices_count_as_those_of_a_list() -> None:
    columns = Records.of([record(number, 1) for number in range(3)])
    assert columns[-1].image_id == "002"
    assert Records.of(columns) is columns
    assert columns[:3] is columns
    with pytest.raises(IndexError):
        columns[3]


@given(st.lists(st.text(max_size=5), max_size=8))
def test_texts_are_kept_whatever_they_contain(texts: list[str]) -> None:
    block = Texts.of(texts)
    assert list(block) == texts
    assert [block[number] for number in range(len(texts))] == texts
    rows = np.arange(len(texts))[::-1]
    assert list(block.take(rows)) == texts[::-1]


def test_a_name_that_is_not_valid_unicode_is_kept() -> None:
    assert list(Texts.of(["a\udcff", ""])) == ["a\udcff", ""]
