"""The shapes in files of LabelMe, against boxes that are worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detector.core.errors import InputError
from detector.core.labelme_file import WITHOUT_AREA, read_labelme
from detector.core.shapes import Shape
from tests.data.layouts import labelme_shape


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "file.txt"
    path.write_text(json.dumps(content))
    return path


def labelme(tmp_path: Path, *shapes: object, **more: Any) -> list[Shape]:
    content = {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": 40, "imageWidth": 60, **more}
    return read_labelme(written(tmp_path, content)).shapes


@pytest.mark.parametrize(
    ("kind", "points", "box"),
    [
        ("rectangle", [(30, 5), (10, 20.5)], (10, 5, 30, 20.5)),
        ("rectangle", [(10, 5), (30, 5), (30, 20), (10, 20)], (10, 5, 30, 20)),
        ("polygon", [(10, 5), (30, 7), (20, 20)], (10, 5, 30, 20)),
        ("circle", [(20, 20), (23, 24)], (15, 15, 25, 25)),
        ("linestrip", [(1, 2), (3, 8), (9, 4)], (1, 2, 9, 8)),
        ("mask", [(3, 4), (7, 9)], (3, 4, 8, 10)),
        ("rotation", [(10, 5), (30, 7), (28, 20), (8, 18)], (8, 5, 30, 20)),
        ("oriented_rectangle", [(10, 5), (30, 7), (28, 20), (8, 18)], (8, 5, 30, 20)),
    ],
)
def test_labelme_shapes(tmp_path: Path, kind: str, points: list[Any], box: tuple[float, ...]) -> None:
    (shape,) = labelme(tmp_path, labelme_shape(" cat ", points, kind))
    assert shape.box == pytest.approx(box)
    assert shape.labels == ("cat",)
    assert bool(shape.polygons) == (kind in ("polygon", "rotation", "oriented_rectangle"))


def test_a_labelme_file(tmp_path: Path) -> None:
    plain = labelme_shape("cat", [(1, 2), (3, 4)], "rectangle", flags={"occluded": True}, difficult=True)
    parts = [
        labelme_shape("dog", [(x, 5), (x + 2, 9)], "rectangle", group_id=7, attributes={"n": x})
        for x in (10, 30)
    ]
    other = labelme_shape("cat", [(5, 6), (9, 8)], "rectangle", group_id=7)
    found = labelme(tmp_path, plain, parts[0], other, parts[1], flags={}, imageData="x" * 1000)
    assert [(shape.labels[0], shape.box) for shape in found] == [
        ("cat", (1, 2, 3, 4)),
        ("dog", (10, 5, 32, 9)),
        ("cat", (5, 6, 9, 8)),
    ]
    assert found[0].difficult
    assert found[0].attributes == {"occluded": True}
    file = read_labelme(written(tmp_path, {"shapes": []}))
    assert (file.image, file.size, file.shapes) == (None, None, [])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (7, r"shapes\[1\] is 7"),
        (labelme_shape("", [(1, 2), (3, 4)], "rectangle"), "the label is ''"),
        (labelme_shape("a", [(1, 2)], "point"), "a 'point' has no box"),
        (labelme_shape("a", [(1, 2)], "rectangle"), "a rectangle of 1 points"),
        (labelme_shape("a", [(1, 2), (3, 4)], "polygon"), "a polygon of 2 points"),
        (labelme_shape("a", [], "polygon"), r"points is \[\]"),
        (labelme_shape("a", [(1, 2, 3)], "polygon"), r"a point is \[1, 2, 3\]"),
        ({**labelme_shape("a", [], "line"), "points": [[1, "2"], [3, 4]]}, "y is '2'"),
        (labelme_shape("a", [(1, 2), (3, 1e300)], "line"), "y is 1e[+]300"),
        (labelme_shape("a", [(1, 2), (3, 4)], "line", difficult="no"), "difficult is 'no'"),
        (labelme_shape("a", [(1, 2), (3, 4)], "star"), "the shape_type 'star' is unknown"),
        ({**labelme_shape("a", [(1, 2), (3, 4)], "x"), "shape_type": 7}, "the shape_type '7' is unknown"),
        (labelme_shape("a", [(1, 2), (3, 4), (5, 6)], "circle"), "a circle of 3 points; expected 2"),
        (labelme_shape("a", [(1, 2), (3, 4.5)], "mask"), "the mask's corners .* are not pixels"),
        (labelme_shape("a", [(1, 2), (60, 4)], "mask"), "the mask's corners .* are not pixels"),
        (labelme_shape("a", [(-1, 2), (6, 4)], "mask"), "the mask's corners .* are not pixels"),
    ],
)
def test_labelme_shapes_that_are_refused(tmp_path: Path, shape: Any, message: str) -> None:
    good = labelme_shape("cat", [(1, 2), (3, 4)], "rectangle")
    with pytest.raises(InputError, match=message) as caught:
        labelme(tmp_path, good, shape)
    assert "file.txt: shapes[1]" in str(caught.value)
    faults: list[InputError] = []
    assert len(read_labelme(tmp_path / "file.txt", faults.append).shapes) == 1
    assert len(faults) == 1


def test_shapes_without_labels(tmp_path: Path) -> None:
    """As regions need them: the type of a shape decides before anything else of it is looked at."""
    box = {"shape_type": "rectangle", "points": [[1, 2], [3, 4]]}
    shapes = [box, {**box, "label": " "}, {"shape_type": "point"}, {"shape_type": "line", "points": 3}]
    path = written(tmp_path, {"shapes": shapes})
    found = read_labelme(path, labelled=False, skip=WITHOUT_AREA).shapes
    assert [(shape.labels, shape.box, shape.place) for shape in found] == [
        ((), (1, 2, 3, 4), "shapes[0]"),
        ((), (1, 2, 3, 4), "shapes[1]"),
    ]
    with pytest.raises(InputError, match="the label is None"):
        read_labelme(path)
    with pytest.raises(InputError, match="the label is 5"):
        read_labelme(written(tmp_path, {"shapes": [{**box, "label": 5}]}), labelled=False)


def test_parts_of_one_object_are_drawn_together(tmp_path: Path) -> None:
    shapes = [
        labelme_shape("a", [(2, 3), (10, 3), (2, 11)], "polygon", group_id=1),
        labelme_shape("a", [(20, 20), (24, 30)], "rectangle", group_id=1),
        labelme_shape("a", [(50, 1), (50.1, 1), (50, 1.1)], "polygon", group_id=1),
        labelme_shape("b", [(1, 1), (4, 5)], "rectangle", group_id=1),
        labelme_shape("b", [(6, 6), (9, 8)], "rectangle", group_id=1),
    ]
    mixed, boxes = labelme(tmp_path, *shapes)
    assert (mixed.box, mixed.joined) == ((2, 1, 50.1, 30), True)
    assert (boxes.box, boxes.is_box, boxes.mask((40, 60), "x")) == ((1, 1, 9, 8), True, b"")
    pixels = coco_mask.decode({"size": [40, 60], "counts": mixed.mask((40, 60), "x")})
    expected = np.zeros((40, 60), np.uint8)
    expected[20:30, 20:24] = 1
    assert np.array_equal(pixels[15:], expected[15:])
    alone = coco_mask.decode(coco_mask.frPyObjects([[2, 3, 10, 3, 2, 11]], 40, 60))[..., 0]
    assert np.array_equal(pixels[:15], alone[:15])


@pytest.mark.parametrize("height", ["", "40", False, -1, 1.5, 1e9])
def test_sizes_that_are_refused(tmp_path: Path, height: object) -> None:
    with pytest.raises(InputError, match=r"file\.txt: imageHeight is"):
        labelme(tmp_path, imageHeight=height)


@pytest.mark.parametrize("content", [[], {"images": []}, {"shapes": {}}, {"shapes": [], "imagePath": 3}])
def test_what_is_no_labelme_file(tmp_path: Path, content: object) -> None:
    with pytest.raises(InputError, match=r"LabelMe|imagePath"):
        read_labelme(written(tmp_path, content))
