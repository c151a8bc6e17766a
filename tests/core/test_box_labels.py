"""Objects with several labels, against dictionaries."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.core.box_labels import labels_of_boxes
from detector.core.records import Objects
from detector.core.structures import Targets

Thing = tuple[float, float, int, bool]
corners = st.sampled_from([0.0, -0.0, 1.5, 3.0])
things = st.lists(st.tuples(corners, corners, st.integers(1, 3), st.booleans()), max_size=12)


@given(st.lists(things, max_size=4))
def test_the_labels_of_equal_boxes_are_put_together(
    images: list[list[Thing]],
) -> None:
    found: dict[tuple[int, float, float], tuple[int, set[int]]] = {}
    targets, keep, row = [], [], 0
    for number, objects in enumerate(images):
        boxes = torch.tensor([(x, y, 5.0, 5.0) for x, y, _, _ in objects]).reshape(-1, 4)
        targets.append(Targets.make(boxes, torch.tensor([one[2] for one in objects], dtype=torch.int64)))
        for x, y, label, kept in objects:
            keep.append(kept)
            if kept:
                found.setdefault((number, x, y), (row, set()))[1].add(label)  # 0 and -0 are one key
            row += 1
    result = labels_of_boxes(Objects.of(targets), np.array(keep, bool))
    assert result.rows.tolist() == [first for first, _ in found.values()]
    assert result.counts.tolist() == [len(labels) for _, labels in found.values()]
    for box, (_, labels) in enumerate(found.values()):
        assert result.labels[result.offsets[box] : result.offsets[box + 1]].tolist() == sorted(labels)
    order = np.arange(len(found))[::-1]
    places, labels_of = result.repeated(order)
    expected = [(at, label) for at, box in enumerate(order) for label in sorted(list(found.values())[box][1])]
    assert list(zip(places.tolist(), labels_of.tolist(), strict=True)) == expected
