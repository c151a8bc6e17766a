"""The regions in exports of Label Studio, against boxes that are worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detector.core.errors import InputError
from detector.core.label_studio_file import (
    read_regions,
    reference_parts,
)
from detector.core.shapes import Shape
from tests.data.layouts import label_studio_region
from tests.proposals.readers.region_files import brush_encoded

SIZE = (200, 400)


def studio(*regions: dict[str, Any], **policy: Any) -> list[Shape]:
    return read_regions({"result": list(regions)}, Path("file.txt"), "tasks[0]", **policy)[1]


def test_label_studio_regions() -> None:
    box = (40, 20, 120, 60)
    plain = label_studio_region(1, ["cat", "small"], box, SIZE)
    polygon = {**label_studio_region(2, [], box, SIZE), "type": "polygonlabels"}
    polygon["value"] = {"points": [[10, 10], [30, 20], [20, 50]], "polygonlabels": ["dog"]}
    ellipse = {**label_studio_region(3, [], box, SIZE), "type": "ellipselabels"}
    ellipse["value"] = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 5, "ellipselabels": ["egg"]}
    region = {**label_studio_region(4, [], box, SIZE), "type": "rectangle"}
    label = {**region, "type": "labels", "value": {"labels": ["bird"]}}
    choice = {"id": "r4", "type": "choices", "from_name": "colour", "value": {"choices": ["red", "blue"]}}
    whole = {"id": "w", "type": "choices", "from_name": "weather", "value": {"choices": ["sun"]}}
    found = studio(plain, polygon, ellipse, region, label, choice, whole)
    assert [shape.labels for shape in found] == [("cat", "small"), ("dog",), ("egg",), ("bird",)]
    assert found[0].box == pytest.approx(box)
    assert found[1].box == pytest.approx((40, 20, 120, 100))
    assert len(found[1].polygons[0]) == 3
    assert found[2].box == pytest.approx((160, 90, 240, 110))
    assert found[3].attributes == {"colour": ["red", "blue"]}


@pytest.mark.parametrize("degrees", [15, 90, 200, -30])
def test_turned_rectangles_and_ellipses_of_label_studio(degrees: float) -> None:
    """Against OpenCV: the corners turned by a matrix, and the points of a turned ellipse."""
    x, y, width, height = 200.0, 100.0, 60.0, 30.0
    turned = label_studio_region(1, ["a"], (x, y, x + width, y + height), SIZE, rotation=degrees)
    matrix = cv2.getRotationMatrix2D((x, y), -degrees, 1)  # its angles are counter-clockwise
    corners = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
    expected = cv2.transform(corners[None], matrix)[0]
    ellipse = {**label_studio_region(2, [], (0, 0, 1, 1), SIZE), "type": "ellipselabels"}
    radii = {"radiusX": 10, "radiusY": 10}  # 40 and 20 pixels
    ellipse["value"] = {"x": 50, "y": 50, **radii, "rotation": degrees, "ellipselabels": ["egg"]}
    rectangle, egg = studio(turned, ellipse)
    assert rectangle.box == pytest.approx((*expected.min(0), *expected.max(0)))
    angles = np.linspace(0, 2 * math.pi, 20_000)
    points = np.stack((200 + 40 * np.cos(angles), 100 + 20 * np.sin(angles)), 1)
    points = cv2.transform(points[None], cv2.getRotationMatrix2D((200, 100), -degrees, 1))[0]
    assert egg.box == pytest.approx((*points.min(0), *points.max(0)), abs=1e-3)


def test_results_with_one_id() -> None:
    """What draws the same again adds labels; what draws something else is another region."""
    first = label_studio_region(1, ["cat"], (40, 20, 120, 60), SIZE)
    again = {**first, "type": "rectangle", "value": {**first["value"], "labels": ["small", "cat"]}}
    other = label_studio_region(1, ["dog"], (40, 20, 120, 61), SIZE)
    rating = {"id": first["id"], "type": "rating", "from_name": "stars", "value": {"rating": 3}}
    found = studio(rating, first, again, other)
    assert [shape.labels for shape in found] == [("cat", "small"), ("dog",)]
    assert [shape.attributes for shape in found] == [{"stars": 3}] * 2
    assert found[1].box == pytest.approx((40, 20, 120, 61))


def test_regions_without_labels() -> None:
    """As regions of a proposal file need them."""
    bare = label_studio_region(1, [], (40, 20, 120, 60), SIZE)
    blank = {**label_studio_region(2, [" "], (4, 2, 12, 6), SIZE), "score": 0.5}
    point = {**label_studio_region(3, ["a"], (4, 2, 12, 6), SIZE), "type": "keypointlabels"}
    found = studio(bare, point, blank, labelled=False, skip_others=True)
    assert [(shape.labels, shape.confidence, shape.place) for shape in found] == [
        ((), None, "tasks[0], region 1"),
        ((), 0.5, "tasks[0], region 2"),
    ]
    with pytest.raises(InputError, match="a keypointlabels has no box"):
        studio(point, labelled=False)
    with pytest.raises(InputError, match="score is 'high'"):
        studio({**blank, "score": "high"}, labelled=False)
    with pytest.raises(InputError, match="the label is 5"):
        studio({**bare, "value": {**bare["value"], "labels": [5]}}, labelled=False)


def test_brush_strokes_where_they_are_asked_for() -> None:
    pixels = np.zeros((*SIZE, 4), np.uint8)
    pixels[50:60, 100:130, 3] = 255
    region = {**label_studio_region(1, [], (0, 0, 1, 1), SIZE), "type": "brushlabels"}
    region["value"] = {"format": "rle", "rle": brush_encoded(pixels.ravel()), "brushlabels": ["a"]}
    (stroke,) = studio(region, brushes=True)
    assert (stroke.labels, stroke.box, stroke.is_box) == (("a",), (100, 50, 130, 60), False)
    decoded = coco_mask.decode({"size": list(SIZE), "counts": stroke.mask(SIZE, "x")})
    assert np.array_equal(decoded, pixels[..., 3] != 0)
    region["value"]["format"] = "png"
    with pytest.raises(InputError, match="must have the format 'rle'"):
        studio(region, brushes=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": {"x": 1, "y": 1, "width": 2, "height": 2}}, "has no label"),
        ({"value": {"x": 1, "y": 1, "width": 2, "rectanglelabels": ["a"]}}, "height is None"),
        ({"value": {"x": 1, "y": 1, "width": "2", "height": 2, "rectanglelabels": ["a"]}}, "width is '2'"),
        ({"value": {"rectanglelabels": "a"}}, "rectanglelabels is 'a'"),
        ({"original_width": None}, "no original_width"),
        ({"original_width": 1.5}, "whole number"),
        ({"original_width": ""}, "original_width is ''"),
        (
            {"value": {"x": 1, "y": 1, "width": 2, "height": 2, "rotation": "a", "rectanglelabels": ["a"]}},
            "rotation is 'a'",
        ),
        ({"value": 3}, "has no label"),
        ({"image_rotation": 90}, "turned in Label Studio"),
        ({"type": "brushlabels"}, "a brushlabels has no box"),
        ({"type": "polygonlabels"}, "points is None"),
        ({"original_width": 30}, "the image is"),
    ],
)
def test_label_studio_regions_that_are_refused(change: dict[str, Any], message: str) -> None:
    regions = [label_studio_region(number, ["a"], (1, 2, 3, 4), SIZE) for number in (1, 2)]
    regions[1] |= change
    with pytest.raises(InputError, match=message) as caught:
        studio(*regions)
    assert "file.txt: tasks[0], region 2" in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("/data/upload/1/ab-x.jpg", ("data", "upload", "1", "ab-x.jpg")),
        ("/data/local-files/?d=set%2Fimages/x%20y.jpg", ("set", "images", "x y.jpg")),
        ("/data/local-files/?d=set/x%2520y.jpg", ("set", "x%20y.jpg")),
        ("https://host/a/b.jpg?token=1#x", ("a", "b.jpg")),
        ("s3://bucket/a/b.jpg", ("a", "b.jpg")),
        ("C:\\a\\b.jpg", ("a", "b.jpg")),
        ("../../etc/../b.jpg", ("etc", "b.jpg")),
        ("%2e%2e/%2e%2e/b.jpg", ("b.jpg",)),
        ("http://[", ()),
    ],
)
def test_paths_in_references(reference: str, parts: tuple[str, ...]) -> None:
    assert reference_parts(reference) == parts
