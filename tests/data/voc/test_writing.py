"""Annotations that a program writes are read again as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.core.errors import InputError
from detector.core.structures import Detections
from detector.data.voc.annotation import read_annotation
from detector.data.voc.writing import FoundObjects, annotation_text, new_folder, write_found

CLASSES = ("plain", "<&> \u00e9")


def found(boxes: list[list[float]], name: str = "a") -> FoundObjects:
    labels = torch.arange(len(boxes)) % 2 + 1
    detections = Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.ones(len(boxes)),
        labels=labels,
    )
    return FoundObjects(image_id=name, filename=f"{name}.jpg", size=(90, 120), detections=detections)


@given(
    boxes=st.lists(
        st.lists(st.just(0.0) | st.floats(0.0009765625, 5000, width=32), min_size=4, max_size=4), max_size=4
    ),
    first_pixel=st.sampled_from([0, 1]),
)
def test_boxes_are_read_again_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[list[float]], first_pixel: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.xml"
    path.write_text(annotation_text(found(boxes), CLASSES, first_pixel), encoding="utf-8")
    again = read_annotation(path, first_pixel)
    assert again.size == (90, 120)
    assert again.filename == "a.jpg"
    assert [thing.name for thing in again.objects] == [CLASSES[row % 2] for row in range(len(boxes))]
    read = np.array([thing.box for thing in again.objects], np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(read, np.array(boxes, np.float32).reshape(-1, 4))


def test_nothing_is_left_of_a_folder_that_could_not_be_finished(tmp_path: Path) -> None:
    place = tmp_path / "new"
    with (
        pytest.raises(InputError, match=r"a\.jpg: another image of s has the id 'a'"),
        new_folder(place) as one,
    ):
        write_found(one, "s", [found([]), found([])], CLASSES)
    with pytest.raises(InputError, match="cannot be written as XML"), new_folder(place) as one:
        write_found(one, "s", [found([[0, 0, 1, 1]])], ("a\0b",))
    assert list(tmp_path.iterdir()) == []
    with new_folder(place) as one:
        write_found(one, "s", [found([], "deep/b")], CLASSES, others={"t": ["c"]})
    assert (place / "ImageSets/Main/t.txt").read_text() == "c\n"
    assert (place / "Annotations/s/deep/b.xml").is_file()
    with pytest.raises(InputError, match="nothing is overwritten"), new_folder(place):
        pass
    assert (place / "ImageSets/Main/s.txt").read_text() == "deep/b\n"
